"""Which engine runs an artifact on this machine."""

import logging
from importlib.util import find_spec
from typing import Literal

import torch

from segserve.artifact import ENGINE_FOLDER, Artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import Engine
from segserve.spec import EngineChoice, EngineName, ModelSpec

logger = logging.getLogger(__name__)

INSTALL = "the package openvino is not installed: `pip install openvino`"


def build_engine(artifact: Artifact, *, device: torch.device | str, choice: EngineChoice | None = None) -> Engine:
    """The engine for an artifact.

    Args:
        artifact: as loaded.
        device: where torch would run.
        choice: None: the one that its spec asks for. `auto`: on the CPU the exported engine if there is one and it is
            installed, else torch.

    Raises:
        ValueError: an engine is asked for by name that the artifact or this machine does not have.
    """
    choice = choice or artifact.spec.serving.engine
    if choice == "auto":
        choice = _best(artifact.spec, torch.device(device))
    if choice != "torch":
        return _exported(artifact, choice)
    return TorchEngine(artifact.network, device=device, cuda_graphs=artifact.spec.serving.cuda_graphs)


def _best(spec: ModelSpec, device: torch.device) -> Literal["torch", EngineName]:
    if spec.engine is None or device.type != "cpu":
        return "torch"
    if not _is_installed():
        logger.warning("%s is run by torch, though it has the engine %s: %s", spec.name, spec.engine.name, INSTALL)
        return "torch"
    return spec.engine.name


def _exported(artifact: Artifact, choice: EngineName) -> Engine:
    engine = artifact.spec.engine
    if engine is None or choice != engine.name:
        there = "torch" if engine is None else f"torch and {engine.name}"
        raise ValueError(
            f"expected {artifact.spec.name} to have the engine {choice}, but it has {there}: "
            f"make it with `segserve export --engine {choice}`"
        )
    if not _is_installed():
        raise ValueError(f"expected to run {artifact.spec.name} by {choice}, but {INSTALL}")
    from segserve.engines.openvino_engine import OpenVINOEngine  # the package is optional

    (model,) = (name for name in engine.files if name.endswith(".xml"))
    return OpenVINOEngine(artifact.path / ENGINE_FOLDER / model, name=engine.name, least_side=engine.least_side)


def _is_installed() -> bool:
    return find_spec("openvino") is not None
