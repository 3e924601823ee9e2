"""Artifact to `.mar`: the model and the code that runs it, in one reproducible zip file.

The code travels with the model, so that rolling a model back rolls its code back; the environment carries third-party
packages only. The same artifact and code give the same bytes: entries are sorted, stored without compression (weights
do not compress, and zlib's versions differ) and dated 1980.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

import handlers
import segserve
from handlers.contract import ARTIFACT_FOLDER
from handlers.store import MANIFEST, is_plain
from segserve.artifact import Artifact, check_example, load_artifact
from segserve.choice import build_engine
from segserve.predictor import build_predictor
from segserve.spec import ModelSpec
from segserve.whole import replacing

EPOCH = (1980, 1, 1, 0, 0, 0)
STARTUP_SECONDS = 300
GRACE_SECONDS = 60
"""From the last moment at which a forward pass may begin to the one at which TorchServe ends a worker as stuck."""

Entry = tuple[str, bytes]


def package(artifact_path: Path, *, name: str | None = None, version: str = "1.0", store: Path) -> Path:
    """Write `store/NAME.mar`, whole or not at all, after the artifact's worked example came out as stored.

    Args:
        artifact_path: the artifact's folder.
        name: of the model in the server and of the file; None: the spec's.
        version: as TorchServe's addresses name it.
        store: the folder for archives; made if missing.

    Raises:
        ValueError: the name or the version is none that can be served, or the artifact cannot be read.
    """
    artifact = load_artifact(artifact_path)
    name = artifact.spec.name if name is None else name
    _check_plain("name", name)
    _check_plain("version", version)
    check_example(artifact, build_predictor(artifact.spec, build_engine(artifact, device="cpu")))
    target = store / f"{name}.mar"
    with replacing(target) as temporary:
        _write_zip(temporary, sorted(_entries(artifact, name, version)))
    return target


def _check_plain(what: str, value: str) -> None:
    if not is_plain(value):
        raise ValueError(
            f"expected a {what} of letters, digits and . _ + -, a letter or digit first and no two dots together, "
            f"but got {value!r}: choose another with --{what}"
        )


def _write_zip(path: Path, entries: list[Entry]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name, date_time=EPOCH)
            info.create_system = 3  # Unix, whatever the machine, so that the bytes do not depend on it
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def _entries(artifact: Artifact, name: str, version: str) -> Iterator[Entry]:
    spec = artifact.spec
    yield MANIFEST, _manifest(spec, name, version)
    yield "model-config.yaml", yaml.safe_dump(_model_config(spec)).encode()
    yield from _tree(artifact.path, ARTIFACT_FOLDER, "*")
    yield from _tree(_folder_of(segserve), "segserve", "*.py")
    for module in ("__init__.py", "adapter.py", "contract.py"):
        yield f"handlers/{module}", (_folder_of(handlers) / module).read_bytes()
    handler = _handler_file(spec)
    yield handler, (_folder_of(handlers) / handler).read_bytes()


def _folder_of(package: object) -> Path:
    return Path(str(package.__file__)).parent  # type: ignore[attr-defined]


def _tree(folder: Path, prefix: str, pattern: str) -> Iterator[Entry]:
    for path in folder.rglob(pattern):
        if path.is_file():
            yield f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _handler_file(spec: ModelSpec) -> str:
    return f"{spec.task}_handler.py"


def _manifest(spec: ModelSpec, name: str, version: str) -> bytes:
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": _handler_file(spec),
            "configFile": "model-config.yaml",
        },
    }
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _model_config(spec: ModelSpec) -> dict[str, int]:
    return {
        "minWorkers": spec.serving.workers,
        "maxWorkers": spec.serving.workers,
        "batchSize": spec.serving.batch_size,
        "maxBatchDelay": spec.serving.max_batch_delay_ms,
        "responseTimeout": spec.serving.max_seconds + GRACE_SECONDS,
        "startupTimeout": STARTUP_SECONDS,
    }
