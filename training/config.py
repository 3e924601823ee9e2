"""Recipe: everything that decides a training run, read from one TOML file and checked before anything starts."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from segserve.networks import auxiliary_choices, check_classifier
from segserve.settings import Settings, explain
from segserve.spec import (
    ARCHITECTURES,
    Architecture,
    ModelName,
    ModelSpec,
    ServingSpec,
    Sizing,
    Task,
    check_architecture,
    check_encoder,
)
from segserve.text import read_text
from training.losses.terms import FOR_LABELS, LossSettings

Layout = Literal["folder", "coco", "voc", "cityscapes", "pet"]
"""How a data set lies on disk, see `training.layouts`."""


class DataSettings(Settings):
    """Which data set."""

    root: Path
    """Its folder; a relative path starts at the current folder."""
    layout: Layout = "folder"


class NetworkSettings(Settings):
    """Which network, and what its encoder starts from."""

    architecture: Architecture | None = None
    """None: `unet`, or `classifier` for labels."""
    encoder: str = "resnet50"
    """Of `classifier`: any of torchvision's classification networks that takes images of any size; of the others: see
    `segserve.spec.ENCODERS`."""
    encoder_weights: str = "none"
    """`none`, `imagenet` (downloaded by torchvision), or the path of a file with a torchvision state dict."""
    auxiliary_heads: int | None = None
    """Further outputs that are trained along, for deep supervision, and left behind at the export: `unet` 0 to 4, `fcn`
    and `deeplabv3` 0 or 1; None: 0, but GoogLeNet has its own 2."""

    def architecture_for(self, task: Task) -> Architecture:
        """The one named, or the task's first."""
        return self.architecture or ARCHITECTURES[task][0]

    def auxiliary_heads_for(self, task: Task) -> int:
        """The number named, or the architecture's usual."""
        usual = auxiliary_choices(self.architecture_for(task), self.encoder)[0]
        return usual if self.auxiliary_heads is None else self.auxiliary_heads


class DistillationSettings(Settings, allow_inf_nan=False):
    """A teacher whose answers are learned beside the truth, see `training.distillation`."""

    teacher: Path
    """An artifact with the same task, classes and working size; a relative path starts at the current folder."""
    weight: float = Field(default=1.0, gt=0.0)
    """Of the distillation loss; the other losses keep theirs."""
    temperature: float = Field(default=2.0, gt=0.0)
    """Both networks' logits are divided by it."""


FOR_LABELS_ONLY = ("policy", "erasing", "mixup", "cutmix")
"""Keys of [augment] that a segmentation cannot have."""


class AugmentSettings(Settings, allow_inf_nan=False):
    """Random changes to each training image; the defaults change nothing but the size."""

    crop: tuple[int, int]
    """Height and width of the training samples, in pixels at the working size; what is missing is padded."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random enlargement, relative to the working size."""
    hflip: bool = False
    vflip: bool = False
    quarter_turns: bool = False
    rotation: float = Field(default=0.0, ge=0.0, le=180.0)
    """Largest random rotation, in degrees, either way."""
    brightness: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Factor from 1 - x to 1 + x; the same for contrast and saturation."""
    contrast: float = Field(default=0.0, ge=0.0, lt=1.0)
    saturation: float = Field(default=0.0, ge=0.0, le=1.0)
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest random turn of the colour circle, either way, 0.5 being half of it."""
    blur: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the images that are blurred."""
    foreground: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the crops placed over a pixel of a class drawn evenly from the mask's, its largest one left out."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """torchvision's, with its defaults, after the rest; this and what follows are for labelled images only."""
    erasing: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the images in which a rectangle (2 to 33 % of it) gets the mean colour."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Parameter of the beta distribution from which each batch draws how much of another sample is added to each."""
    cutmix: float = Field(default=0.0, ge=0.0)
    """The same for the area of the rectangle taken from another sample; with `mixup`, each batch has one of the two."""

    @model_validator(mode="after")
    def _ranges_are_sound(self) -> Self:
        if min(self.crop) < 32:
            raise ValueError(f"expected a crop of at least 32 x 32 pixels, but got {list(self.crop)}: enlarge it")
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(
                f"expected scale to be [low, high] with 0 < low <= high, but got {[low, high]}: correct it"
            )
        return self


class PseudoSettings(Settings, allow_inf_nan=False):
    """A round of `segserve pseudolabel` that is trained on, too, and the strong changes its images get in addition.

    Those of ST++, Yang et al. 2022, https://arxiv.org/abs/2106.05095.
    """

    round: Path
    """Its folder; a relative path starts at the current folder."""
    oversample: bool = True
    """Where there are more such images than labelled ones, every other sample is a labelled one, as in ST++; else each
    image comes as often as any other."""
    jitter: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Brightness, contrast and saturation: factors from 1 - x to 1 + x."""
    hue: float = Field(default=0.25, ge=0.0, le=0.5)
    """Largest turn of the colour circle, either way, 0.5 being half of it."""
    recolor: float = Field(default=0.8, ge=0.0, le=1.0)
    """Share of the images that get these two; the next ones are shares, too."""
    gray: float = Field(default=0.2, ge=0.0, le=1.0)
    blur: float = Field(default=0.5, ge=0.0, le=1.0)
    cutout: float = Field(default=0.5, ge=0.0, le=1.0)
    """A rectangle (2 to 40 % of the image) gets the mean colour, and no loss."""


class OptimSettings(Settings, allow_inf_nan=False):
    """AdamW, a linear warm-up and a cosine to zero, and the moving average that becomes the result."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0.0)
    """The highest, reached after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    ema_decay: float = Field(default=0.995, ge=0.0, lt=1.0)
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient; a larger one is scaled down."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which each process runs its share of a batch, one after the other, to need less memory."""
    precision: Literal["auto", "float32"] = "auto"
    """`auto`: convolutions compute in bfloat16 where the device is faster in it."""
    steps_per_epoch: int | None = Field(default=None, ge=1)
    """None: as many as the training images fill; else they come round as often as needed, to compare sets of different
    sizes at equal steps."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"expected warmup_epochs to be less than epochs ({self.epochs}), but got {self.warmup_epochs}: lower it"
            )
        return self


class EvalSettings(Settings):
    """When the val split is scored during training (always after the last epoch, too)."""

    every_epochs: int = Field(default=5, ge=1)
    keep: Literal["last", "best-on-val"] = "last"
    """Which moving average is the result. The best on val is marked: its val score is too good, having been chosen."""
    keep_thirds: bool = False
    """Keep the moving average after one and two thirds of the epochs, too, for `segserve pseudolabel --run`."""


class Recipe(Settings):
    """One training run."""

    name: ModelName
    task: Task
    seed: int = Field(default=0, ge=0)
    data: DataSettings
    pseudo: PseudoSettings | None = None
    network: NetworkSettings = NetworkSettings()
    distillation: DistillationSettings | None = None
    preprocess: Sizing
    """Mean and standard deviation are not chosen: see `training.data.channel_statistics`."""
    augment: AugmentSettings
    loss: LossSettings = LossSettings()
    optim: OptimSettings
    eval: EvalSettings = EvalSettings()
    serving: ServingSpec = ServingSpec()

    @model_validator(mode="after")
    def _network_fits_task(self) -> Self:
        network, architecture = self.network, self.network.architecture_for(self.task)
        check_architecture(architecture, self.task)
        if architecture == "classifier":
            check_classifier(network.encoder)
        check_encoder(architecture, network.encoder)
        choices = auxiliary_choices(architecture, network.encoder)
        if network.auxiliary_heads_for(self.task) not in choices:
            raise ValueError(
                f"expected network.auxiliary_heads of {architecture} to be {' or '.join(map(str, sorted(choices)))}, "
                f"but got {network.auxiliary_heads}"
            )
        return self

    @model_validator(mode="after")
    def _augment_fits_task(self) -> Self:
        given = [name for name in FOR_LABELS_ONLY if getattr(self.augment, name) not in ("none", 0.0)]
        if self.task == "segmentation" and given:
            raise ValueError(
                f"expected augment of segmentation without {', '.join(FOR_LABELS_ONLY)} (they change images but not "
                f"their masks), but got {', '.join(given)}: remove them"
            )
        if self.task == "classification" and self.augment.foreground > 0:
            raise ValueError(
                f"expected augment.foreground only with masks, but got {self.augment.foreground:g} for classification: "
                "remove it"
            )
        return self

    @model_validator(mode="after")
    def _pseudo_fits_task(self) -> Self:
        if self.pseudo is not None and self.task != "segmentation":
            raise ValueError(f"expected [pseudo] only with task segmentation, but got {self.task}: remove it")
        return self

    @model_validator(mode="after")
    def _loss_fits_task(self) -> Self:
        others = [term.kind for term in self.loss.terms if term.kind not in FOR_LABELS]
        if self.task == "classification" and others:
            raise ValueError(
                f"expected loss.terms of classification to be {' or '.join(FOR_LABELS)} (the others are defined on "
                f"masks), but got {', '.join(others)}: remove them"
            )
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file.
        overrides: `key=value` with dotted keys, as in `optim.epochs=3`; the value is TOML, or else taken as text.

    Raises:
        ValueError: one sentence that names the file and the key.
    """
    table = _read_toml(path)
    for override in overrides:
        _apply(table, override)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        changes = f" (with --set {' '.join(overrides)})" if overrides else ""
        raise ValueError(f"{path}{changes}: {explain(error, known_keys=_known_keys(error))}") from None


def recipe_of(spec: ModelSpec) -> Recipe:
    """The recipe that an artifact was trained by; a ValueError where it does not tell."""
    try:
        return Recipe.model_validate(spec.provenance.recipe)
    except ValidationError as error:
        raise ValueError(f"expected {spec.name} to tell its recipe, but it does not ({explain(error)})") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"expected a recipe, but {path} cannot be read ({error.strerror}): give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected {path} to be TOML, but it is not: {error}; correct it there") from None


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one dotted key, in place."""
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise ValueError(f"expected --set key=value, but got {override!r}: write for example optim.epochs=3")
    section = table
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"expected --set to name a key of the recipe, but {parent!r} in {key!r} holds no keys")
    section[last] = _parse_value(text.strip())


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _known_keys(error: ValidationError) -> tuple[str, ...]:
    """The keys of the section in which the first unknown key stands."""
    unknown = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
    sections: tuple[type[BaseModel], ...] = (Recipe,)
    for part in unknown[0][:-1] if unknown else ():
        sections = _inner(sections, str(part))
    return tuple(dict.fromkeys(key for section in sections for key in section.model_fields))


def _inner(sections: tuple[type[BaseModel], ...], part: str) -> tuple[type[BaseModel], ...]:
    """Where one step leads: to a key's sections, to those of one kind, or, in a list, to the same."""
    if part.isdecimal():
        return sections
    fields = [section.model_fields for section in sections]
    if any(part in keys for keys in fields):
        return tuple(model for keys in fields if part in keys for model in _models(keys[part].annotation))
    return tuple(section for section in sections if part in get_args(section.model_fields["kind"].annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
