"""ModelSpec: everything the predictor must know about a trained model, in one checked and frozen object.

It travels as `spec.json` beside the weights, so that nobody can serve weights with another preprocessing, another class
list or another network than they were trained with.
"""

import difflib
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from segserve.settings import Settings

Task = Literal["segmentation", "classification"]
Architecture = Literal["unet", "fcn", "deeplabv3", "lraspp", "classifier"]
EncoderName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
]
"""The U-Net's."""
ARCHITECTURES: dict[Task, tuple[Architecture, ...]] = {
    "segmentation": ("unet", "fcn", "deeplabv3", "lraspp"),
    "classification": ("classifier",),
}
"""Those of each task; the first is for recipes that name none."""
ENCODERS: dict[Architecture, tuple[str, ...]] = {
    "unet": get_args(EncoderName),
    "fcn": ("resnet50", "resnet101"),
    "deeplabv3": ("resnet50", "resnet101", "mobilenet_v3_large"),
    "lraspp": ("mobilenet_v3_large",),
}
"""A classifier's encoder is any network that `segserve.networks.classifier_names` lists."""
Plan = Literal["none", "hflip", "flips", "d4", "multiscale", "multiscale-hflip"]
"""Views of test-time augmentation, see `segserve.tta`."""
Aggregate = Literal["mean", "logits", "max", "vote"]
"""How the views' answers are joined, see `segserve.tta`."""
Measure = Literal["entropy", "mutual-information", "disagreement"]
"""What an uncertainty map shows, see `segserve.tta`."""
StoredPrecision = Literal["uint8", "float16"]
"""Of probabilities that leave the predictor."""
Split = Literal["none", "watershed"]
"""How touching objects are taken apart, see `segserve.watershed`."""
EngineName = Literal["openvino", "openvino-int8"]
"""Engines that are built from the weights at export; `torch` runs the weights themselves, everywhere."""
EngineChoice = Literal["auto", "torch", EngineName]
"""`auto`: the exported engine where there is one, it is installed and there is no GPU; else torch."""
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def _is_8_bit(color: tuple[int, int, int]) -> tuple[int, int, int]:
    if not all(0 <= channel <= 255 for channel in color):
        raise ValueError(f"expected three values from 0 to 255, but got {list(color)}")
    return color


Color = Annotated[tuple[int, int, int], AfterValidator(_is_8_bit)]
"""Red, green, blue."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

MAX_CLASSES = 255
"""Masks are 8-bit; the index 255 is kept for "no class asked for"."""


class ClassSpec(Settings):
    """One class: its index in masks and logits, its name, and its colour (R, G, B; 0 to 255) in palettes."""

    id: int = Field(ge=0)
    name: str = Field(min_length=1)
    color: Color


class NetworkSpec(Settings):
    """Which network the weights belong to."""

    architecture: Architecture | None = None
    """None: what it was before there was a choice, U-Net or, for labels, an encoder with a linear layer."""
    encoder: str = "resnet50"
    """Torchvision's name of the encoder, or of the whole classifier."""
    encoder_weights: str = "none"
    """Where the encoder's weights came from before training: `none`, `torchvision:NAME` or `file:sha256:DIGEST`."""

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        check_encoder(self.architecture or "unet", self.encoder)
        return self


def check_architecture(architecture: Architecture, task: Task) -> None:
    """A ValueError where it is none for the task."""
    known = ARCHITECTURES[task]
    if architecture not in known:
        raise ValueError(f"expected network.architecture for {task} to be {' or '.join(known)}, but got {architecture}")


def check_encoder(architecture: Architecture, encoder: str) -> None:
    """Refuse, by a ValueError, an encoder that the architecture cannot have; classifiers' names are left unchecked."""
    known = ENCODERS.get(architecture)
    if known is None or encoder in known:
        return
    near = difflib.get_close_matches(encoder, known, n=1)
    raise ValueError(
        f"expected an encoder of {architecture}, {', '.join(known)}, but got {encoder!r}: "
        + (f"did you mean {near[0]}?" if near else "choose one of these")
    )


class Sizing(Settings, allow_inf_nan=False):
    """At which size, and in how many pieces, the network sees an image."""

    resize: Literal["always", "larger", "never"] = "always"
    """`always`: the longer side becomes `working_side`; `larger`: only images with a longer side are made smaller;
    `never`: images keep their size, and those above `working_side` are seen in overlapping windows of that side."""
    working_side: int = Field(ge=32)
    """Pixels of the longer side at which the network sees the image; the shorter side keeps the aspect ratio."""
    overlap: int = Field(default=0, ge=0)
    """Least pixels that neighbouring windows share; only with `resize = "never"`."""
    scaled_jpeg: bool = False
    """JPEG files that are to be made smaller are decoded at a half, a quarter or an eighth of their size where that is
    still enough; not where the answer shows the image."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap and self.resize != "never":
            raise ValueError(f"expected overlap only with resize = 'never', but resize is {self.resize!r}: remove it")
        most = min(self.working_side // 2, self.working_side - 32)
        if self.overlap > most:
            raise ValueError(
                f"expected overlap to be at most half of working_side and 32 pixels less than it, {most}, "
                f"but got {self.overlap}: lower it"
            )
        return self


class PreprocessSpec(Sizing):
    """From an upright 8-bit RGB image to the network's input. Depends on sizes and this spec, never on pixel values."""

    mean: tuple[float, float, float]
    """Per channel, of values scaled to 0..1."""
    std: tuple[Positive, Positive, Positive]


class CalibrationSpec(Settings):
    """Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599), fitted on held-out images."""

    temperature: Positive = 1.0
    """Logits are divided by it before the softmax; 1 leaves them as they are."""
    split: str | None = None
    """The split it was fitted on; None: it was not fitted."""


class ReferenceSpec(Settings):
    """The answers on held-out images, for comparison with those of the service; docs/observability.md."""

    split: str
    num_images: int = Field(ge=1)
    class_shares: tuple[float, ...]
    """Of each class among all pixels, or among the images' most probable labels; the sum is 1."""
    confidence_shares: dict[str, float]
    """Of the images, by the bin of their mean confidence, see `segserve.drift`; the sum is 1."""


class ServingSpec(Settings, allow_inf_nan=False):
    """How TorchServe is to batch requests for this model."""

    batch_size: int = Field(default=8, ge=1)
    max_batch_delay_ms: int = Field(default=5, ge=0)
    workers: int = Field(default=1, ge=1)
    max_seconds: int = Field(default=100, ge=1)
    """No forward pass is begun for a request that arrived longer ago; it gets 504."""
    engine: EngineChoice = "auto"
    threads: int | None = Field(default=None, ge=1)
    """Of one worker; None: the cores, shared out among the workers."""
    cuda_graphs: bool = False
    """Torch on a GPU launches all of a forward pass in one go, see `segserve.engines.cuda_graphs`."""


class Certificate(Settings):
    """What an exported engine answers differently from torch in float32, and how fast both are.

    Measured by the predictor's own path on a split that the weights were not trained on; `segserve export` writes none
    for an engine that loses too much.
    """

    split: str
    num_images: int = Field(ge=1)
    score: Literal["miou", "accuracy"]
    """What the next two are, 0 to 1."""
    torch_score: float
    engine_score: float
    agreement: float
    """Share of pixels, or of labelled images, that get the same class; 0 to 1."""
    max_probability_shift: float
    """Largest difference of a class's probability at any pixel, or of any label; 0 to 1."""
    torch_images_per_second: float
    """Of the forward pass, on the CPU, as is the next one: the medians of alternating batches."""
    engine_images_per_second: float
    machine: str
    """Processor, threads and versions."""
    date: str
    """YYYY-MM-DD."""

    def sentence(self) -> str:
        """All of it, for a terminal."""
        ratio = self.engine_images_per_second / self.torch_images_per_second
        return (
            f"{self.score} {self.engine_score:.4f} (torch {self.torch_score:.4f}), agreement {self.agreement:.2%}, "
            f"probabilities within {self.max_probability_shift:.3f}, {self.num_images} images of {self.split}; "
            f"{self.engine_images_per_second:.1f} images/s, {ratio:.2f} times torch's "
            f"({self.machine}, {self.date})"
        )


class EngineSpec(Settings):
    """An engine that was built from the weights and lies beside them; torch can always run these instead."""

    name: EngineName
    files: dict[str, str] = Field(min_length=1)
    """SHA-256 of each, by its name in the artifact's folder `engine`."""
    least_side: int = Field(default=1, ge=1)
    """Images with a shorter side are filled up to it by repeating the last pixel."""
    certificate: Certificate

    @field_validator("files")
    @classmethod
    def _names_have_no_folder(cls, files: dict[str, str]) -> dict[str, str]:
        if any("/" in name or name.startswith(".") for name in files):
            raise ValueError(f"expected plain file names, but got {sorted(files)}")
        return files


class Provenance(Settings):
    """Where the weights came from."""

    data_digest: str
    """SHA-256 over the names and bytes of the training set's files."""
    recipe: dict[str, Any]
    commit: str
    seed: int
    scores: dict[str, float]
    selected_on: str | None = None
    """The split whose scores chose the epoch, and are therefore too good; None: the last epoch was taken."""


class ModelSpec(Settings):
    """A trained model, without its weights."""

    schema_version: Literal[1] = 1
    name: ModelName
    task: Task
    network: NetworkSpec
    classes: tuple[ClassSpec, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    ignore_index: int | None = None
    preprocess: PreprocessSpec
    calibration: CalibrationSpec = CalibrationSpec()
    reference: ReferenceSpec | None = None
    """None: the data set was not there at export."""
    serving: ServingSpec = ServingSpec()
    provenance: Provenance
    weights_sha256: str = ""
    """Filled in when the artifact is written."""
    engine: EngineSpec | None = None
    """None: torch is the only one."""

    @model_validator(mode="after")
    def _ids_are_indices(self) -> Self:
        ids = [entry.id for entry in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"expected class ids 0 to {len(ids) - 1} in order, but got {ids}")
        if self.task == "classification" and self.preprocess.resize == "never":
            raise ValueError("expected preprocess.resize 'always' or 'larger' for classification, but got 'never'")
        if self.network.architecture is not None:
            check_architecture(self.network.architecture, self.task)
        if self.reference is not None and len(self.reference.class_shares) != len(ids):
            raise ValueError(
                f"expected reference.class_shares of {len(ids)} classes, but got {len(self.reference.class_shares)}"
            )
        names = [entry.name for entry in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"expected class names that differ, but got {names}")
        return self

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)
