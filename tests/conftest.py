"""What several test files share: the seed, tiny specs and artifacts, and where the real data lies."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segserve.artifact import Artifact, load_artifact, save_artifact, write_example_answer, write_spec
from segserve.choice import build_engine
from segserve.digest import sha256_of
from segserve.log import ROOT
from segserve.networks import Network, build_network
from segserve.predictor import build_predictor
from segserve.spec import Certificate, ClassSpec, EngineSpec, ModelSpec, NetworkSpec, PreprocessSpec, Provenance, Task
from training.config import Recipe
from training.openvino_model import write_model

SHARED_DATA = Path(__file__).resolve().parents[1] / "../shared/data"

CLASSES = tuple(
    ClassSpec(id=index, name=name, color=color)
    for index, (name, color) in enumerate(
        [("sky", (70, 130, 180)), ("road", (128, 64, 128)), ("tree", (107, 142, 35)), ("car", (0, 0, 142))]
    )
)

TOY_WEIGHTS_KC = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def tiny_spec(task: Task) -> ModelSpec:
    return ModelSpec(
        name=f"tiny-{task}",
        task=task,
        network=NetworkSpec(encoder="resnet18"),
        classes=CLASSES,
        preprocess=PreprocessSpec(working_side=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        provenance=Provenance(data_digest="none", recipe={}, commit="none", seed=0, scores={}),
    )


def lively_network(spec: ModelSpec) -> Network:
    """Random weights; one step in training mode gives batch norm statistics that fit them, so that answers vary."""
    torch.manual_seed(0)
    network = build_network(spec.network, task=spec.task, num_classes=spec.num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))
    return network


def _tiny_artifact(path: Path, task: Task) -> Artifact:
    spec = tiny_spec(task)
    return save_artifact(path, spec, lively_network(spec), example_HWC=random_image(48, 64))


def random_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """RGB noise, (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class ToyEngine:
    """Classifies each pixel by its colour alone; remembers the shapes it was called with."""

    name = "toy"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        assert images_BCHW.dtype == torch.float32
        self.shapes.append(tuple(images_BCHW.shape))
        return torch.einsum("kc,bchw->bkhw", torch.from_numpy(TOY_WEIGHTS_KC), images_BCHW)


class ToyLabelsEngine(ToyEngine):
    """Classifies an image by its mean colour."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return super().__call__(images_BCHW).mean(dim=(-2, -1))


def expected_probs(image_HWC: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float64]:
    """What the toy says of an image that is not resized, (H, W, K)."""
    normalised_HWC = (image_HWC / 255 - spec.preprocess.mean) / spec.preprocess.std
    powers_HWK = np.exp(normalised_HWC @ TOY_WEIGHTS_KC.T)
    return powers_HWK / powers_HWK.sum(axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """A worker's log ends with the test that began it."""
    logger = logging.getLogger(ROOT)
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def spec() -> ModelSpec:
    return tiny_spec("segmentation")


@pytest.fixture
def labels_spec() -> ModelSpec:
    return tiny_spec("classification")


@pytest.fixture
def recipe() -> Recipe:
    """The least a recipe needs; its data set is not there."""
    return Recipe.model_validate(
        {
            "name": "small",
            "task": "segmentation",
            "data": {"root": "somewhere"},
            "preprocess": {"working_side": 32},
            "augment": {"crop": [32, 32]},
            "optim": {"epochs": 3, "batch_size": 2, "learning_rate": 1e-3},
        }
    )


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A segmentation artifact on disk: UNet on resnet18, 4 classes, random but seeded weights."""
    return _tiny_artifact(tmp_path_factory.mktemp("artifacts") / "segmentation", "segmentation")


@pytest.fixture(scope="session")
def labels_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same for classification."""
    return _tiny_artifact(tmp_path_factory.mktemp("artifacts") / "classification", "classification")


@pytest.fixture(scope="session")
def openvino_model(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmentation artifact's network as an OpenVINO model, in float32."""
    file = tmp_path_factory.mktemp("openvino") / "model.xml"
    assert write_model(file, artifact.network, "openvino", []) == 1
    return file


CERTIFICATE = Certificate(
    split="val",
    num_images=2,
    score="miou",
    torch_score=0.7,
    engine_score=0.7,
    agreement=1.0,
    max_probability_shift=0.0,
    torch_images_per_second=1.0,
    engine_images_per_second=2.0,
    machine="here",
    date="2026-11-24",
)


@pytest.fixture(scope="session")
def engine_artifact(artifact: Artifact, openvino_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The segmentation artifact with the engine `openvino`, its certificate invented."""
    path = tmp_path_factory.mktemp("artifacts") / "engine"
    shutil.copytree(artifact.path, path)
    shutil.copytree(openvino_model.parent, path / "engine")
    files = {file.name: sha256_of(file) for file in sorted((path / "engine").iterdir())}
    engine = EngineSpec(name="openvino", files=files, certificate=CERTIFICATE)
    write_spec(path, artifact.spec.model_copy(update={"engine": engine}))
    loaded = load_artifact(path)
    write_example_answer(path, build_predictor(loaded.spec, build_engine(loaded, device="cpu")))
    return loaded


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared data sets are not here ({SHARED_DATA})")
    return SHARED_DATA
