"""An artifact is a trained model as a folder: `spec.json`, `weights.safetensors`, and one worked example; for some also
an `engine`, built from the weights, which then stay there for torch.

The example is an image and the answer the predictor gave when the artifact was written. Whoever loads the artifact
checks that the answer comes out again, so that a wrong weight, preprocessing or library shows before a client sees it.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from segserve.digest import sha256_of
from segserve.engines.torch_engine import TorchEngine
from segserve.png import encode_index_png, encode_png
from segserve.prediction import Query
from segserve.predictor import ClassificationPredictor, Predictor, SegmentationPredictor, build_predictor
from segserve.settings import explain
from segserve.spec import ModelSpec
from segserve.whole import write_whole

if TYPE_CHECKING:
    from segserve.networks import Network

SPEC, WEIGHTS, ENGINE_FOLDER = "spec.json", "weights.safetensors", "engine"
EXAMPLE_INPUT = "example/input.png"

MIN_AGREEMENT = 0.995
"""Least share of the example's pixels that must come out as stored."""
MAX_PROBABILITY_SHIFT = 0.05
"""Most that a probability of the example may differ from the stored one (labels)."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A loaded artifact; `digest` is the SHA-256 of its spec, which holds that of the weights."""

    path: Path
    spec: ModelSpec
    digest: str

    @cached_property
    def network(self) -> "Network":
        """With its weights, built when it is first asked for; a ValueError says that they do not fit."""
        # Torchvision takes seconds to import, and much memory, which a service with an exported engine does without.
        from segserve.networks import build_network

        network = build_network(self.spec.network, task=self.spec.task, num_classes=self.spec.num_classes)
        weights = self.path / WEIGHTS
        _check_digest(weights, self.spec.weights_sha256)
        try:
            network.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"expected {weights} to fit {self.spec.network.encoder}, but it does not: {error}"
            ) from error
        return network


class ExampleMismatch(RuntimeError):
    """The worked example did not come out as it did when the artifact was written."""


def save_artifact(path: Path, spec: ModelSpec, network: nn.Module, *, example_HWC: NDArray[np.uint8]) -> Artifact:
    """Write an artifact, its worked example included; nothing is left behind if that fails.

    Args:
        path: the folder to make; an artifact that is there already is replaced.
        spec: its `weights_sha256` is filled in here.
        network: the trained network the spec names.
        example_HWC: an upright RGB image, (H, W, 3) uint8, for the worked example.

    Returns:
        The artifact as loaded back from the disk, its example checked.
    """
    with replaced_folder(path) as folder:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        (folder / WEIGHTS).write_bytes(save(tensors))  # save_file knows no OSError
        spec = spec.model_copy(update={"weights_sha256": sha256_of(folder / WEIGHTS)})
        write_spec(folder, spec)
        artifact = load_artifact(folder)
        predictor = build_predictor(artifact.spec, TorchEngine(artifact.network))
        (folder / EXAMPLE_INPUT).parent.mkdir()
        (folder / EXAMPLE_INPUT).write_bytes(encode_png(Image.fromarray(example_HWC)))
        write_example_answer(folder, predictor)
        check_example(artifact, predictor)
    return replace(artifact, path=path)


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Put a spec in an artifact's folder, whole or not at all."""
    write_whole(folder / SPEC, spec.model_dump_json(indent=1) + "\n")


def load_artifact(path: Path) -> Artifact:
    """Read an artifact, and build its network unless it has an exported engine.

    Raises:
        ValueError: the folder is no artifact, its spec is wrong, or its files are not those the spec names.
    """
    spec = read_spec(path)
    artifact = Artifact(path=path, spec=spec, digest=sha256_of(path / SPEC))
    if spec.engine is None:
        artifact.network.eval()  # what is wrong in the weights is said here
        return artifact
    _check_digest(path / WEIGHTS, spec.weights_sha256)
    for name, digest in spec.engine.files.items():
        _check_digest(path / ENGINE_FOLDER / name, digest)
    return artifact


def read_spec(path: Path) -> ModelSpec:
    """The spec alone of an artifact; a ValueError says that the folder is none, or what is wrong in it."""
    if not (path / SPEC).is_file():
        raise ValueError(f"expected an artifact, but {path} has no {SPEC}: make one with `segserve export`")
    try:
        return ModelSpec.model_validate_json((path / SPEC).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path / SPEC}: {explain(error)}") from None


def _check_digest(file: Path, expected: str) -> None:
    if not file.is_file():
        raise ValueError(f"expected the artifact's {file.stem}, but {file} is missing: export the run again")
    found = sha256_of(file)
    if found != expected:
        raise ValueError(f"expected {file} to have SHA-256 {expected}, but it has {found}: export the run again")


def check_example(artifact: Artifact, predictor: Predictor) -> float:
    """Run the worked example again.

    Returns:
        How well it agrees: the share of equal pixels, or 1 minus the largest shift of a probability.

    Raises:
        ExampleMismatch: less than `MIN_AGREEMENT`, or more than `MAX_PROBABILITY_SHIFT`.
        RuntimeError: the network gives no numbers.
    """
    query = _example_query(artifact.path)
    if isinstance(predictor, SegmentationPredictor):
        agreement, least = _mask_agreement(artifact, predictor, query), MIN_AGREEMENT
    else:
        agreement, least = _label_agreement(artifact, predictor, query), 1 - MAX_PROBABILITY_SHIFT
    if agreement < least:
        raise ExampleMismatch(
            f"expected the worked example of {artifact.spec.name} to come out as stored (agreement of "
            f"{least} at least), but it is {agreement:.4f}: weights, code or libraries are not those it was made with"
        )
    return agreement


def _mask_agreement(artifact: Artifact, predictor: SegmentationPredictor, query: Query) -> float:
    with Image.open(artifact.path / _example_answer(predictor)) as stored:
        stored_HW = np.asarray(stored)
    mask_HW = predictor.predict([query])[0].mask_HW
    return float((mask_HW == stored_HW).mean()) if mask_HW.shape == stored_HW.shape else 0.0


def _label_agreement(artifact: Artifact, predictor: ClassificationPredictor, query: Query) -> float:
    stored_K = np.asarray(json.loads((artifact.path / _example_answer(predictor)).read_text()), dtype=np.float32)
    probs_K = predictor.predict([query])[0].probs_K
    return float(1 - np.abs(probs_K - stored_K).max()) if probs_K.shape == stored_K.shape else 0.0


def _example_answer(predictor: Predictor) -> str:
    """Where the answer to the example is: int8's differs from torch's, so that each engine has its own."""
    engine = predictor.engine.name
    suffix = "" if engine == TorchEngine.name else f"-{engine}"
    kind = f"mask{suffix}.png" if isinstance(predictor, SegmentationPredictor) else f"labels{suffix}.json"
    return f"example/{kind}"


def write_example_answer(folder: Path, predictor: Predictor) -> None:
    """Store what a predictor says of the example in an artifact's folder, as right for its engine."""
    query, answer = _example_query(folder), folder / _example_answer(predictor)
    if isinstance(predictor, SegmentationPredictor):
        mask_HW = predictor.predict([query])[0].mask_HW
        answer.write_bytes(encode_index_png(mask_HW, predictor.spec.classes))
    else:
        probs_K = predictor.predict([query])[0].probs_K
        answer.write_text(json.dumps([round(float(p), 6) for p in probs_K]) + "\n")


def _example_query(folder: Path) -> Query:
    with Image.open(folder / EXAMPLE_INPUT) as image:
        return Query(image_HWC=np.asarray(image.convert("RGB")))


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        ValueError: `path` is there and no artifact.
    """
    if path.exists() and not (path / SPEC).is_file():
        raise ValueError(f"expected {path} to be an artifact or not to exist, but it is something else: choose another")
    path = path.resolve()  # nothing can be beside ".", and a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    folder.chmod(0o755)
    old = folder.with_name(f"{folder.name}.old")
    try:
        yield folder
        if path.exists():
            path.rename(old)
        folder.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
