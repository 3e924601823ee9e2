"""The archives to be served: which they are, the names their manifests give, and the digests they must have."""

import contextlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from handlers.contract import ARTIFACT_FOLDER
from handlers.settings import ServeSettings
from segserve.digest import sha256_of
from segserve.settings import explain
from segserve.spec import ModelSpec, Task

SUMS = "SHA256SUMS"
"""A store's file, as sha256sum writes it. Where there is one, each archive's digest must stand in it."""
MANIFEST = "MAR-INF/MANIFEST.json"
_SPEC = f"{ARTIFACT_FOLDER}/spec.json"
_PLAIN = re.compile(r"\w[\w.+-]*")
"""TorchServe splits its list of models at commas and equals signs."""


@dataclass(frozen=True)
class ServedModel:
    """One version of one model. Its name comes from the manifest, not from the file."""

    archive: str
    name: str
    version: str
    task: Task | None = None
    """None: the handler is not one of segserve's."""
    places: int = 1
    """Requests that its workers compute at once: workers x batch size."""
    answer_seconds: int = 120
    """After so long TorchServe ends a worker that has not answered."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def served_models(settings: ServeSettings) -> tuple[ServedModel, ...]:
    """Read the manifest of each archive that is to be served.

    Raises:
        ValueError: the store or an archive is missing, an archive cannot be read, is not the one that `SUMS` names, or
            two are the same version.
    """
    models = tuple(_read_checked(path) for path in _archives(settings))
    for number, model in enumerate(models):
        for other in models[:number]:
            if (model.name, model.version) == (other.name, other.version):
                raise ValueError(
                    f"expected each archive to be another model or version, but {other.archive} and {model.archive} "
                    f"are both {model}: name one of them with --models, or package one with another --version"
                )
    return models


def _archives(settings: ServeSettings) -> list[Path]:
    store = settings.store
    if not store.is_dir():
        raise ValueError(
            f"expected the model store {store} to be a folder, but there is none: "
            f"make an archive with `segserve package ARTIFACT --store {store}`, or name another folder with --store"
        )
    present = sorted(name for name in _listed(store) if name.endswith(".mar"))
    if not present:
        raise ValueError(
            f"expected an archive (*.mar) in the model store {store}, but it has none: "
            f"make one with `segserve package ARTIFACT --store {store}`"
        )
    for name in settings.models:
        if name not in present:
            raise ValueError(
                f"expected --models to name archives in {store} ({', '.join(present)}), but got {name!r}: "
                f"correct the name, or make the archive with `segserve package ARTIFACT --store {store}`"
            )
    return [store / name for name in dict.fromkeys(settings.models or present)]


def _listed(store: Path) -> list[str]:
    """Path.glob says nothing where it may not look."""
    try:
        return os.listdir(store)
    except OSError as error:
        raise ValueError(
            f"expected the model store {store} to be readable, but got: {error.strerror}; let whoever serves read it"
        ) from error


def listed_digests(store: Path) -> frozenset[str] | None:
    """Those in the store's `SUMS`; None: it has none."""
    try:
        lines = (store / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return None
    return frozenset(line.split()[0].lower() for line in lines if line.strip())


def put(store: Path, archive: str, new: Path) -> None:
    """Let `new`, which lies in the store, take the place of an archive, which is kept as `previous`.

    Both names stand for a whole file at every moment, also where `new` is what was kept.
    """
    kept = store / f".{archive}.kept"
    kept.unlink(missing_ok=True)
    os.link(store / archive, kept)
    os.replace(new, store / archive)
    os.replace(kept, previous(store, archive))


@contextlib.contextmanager
def exchanged(store: Path, archive: str, new: Path) -> Iterator[None]:
    """`put`, and on an exception inside everything back, what was kept before included."""
    older = store / f".{archive}.older"
    older.unlink(missing_ok=True)
    kept = previous(store, archive)
    if kept.is_file():
        os.link(kept, older)
    put(store, archive, new)
    try:
        yield
    except BaseException:
        os.replace(kept, store / archive)
        if older.is_file():
            os.replace(older, kept)
        raise
    older.unlink(missing_ok=True)


def previous(store: Path, archive: str) -> Path:
    """Where the archive is kept that was served before; its name makes no archive of it."""
    return store / f"{archive}.previous"


def _read_checked(path: Path) -> ServedModel:
    """The name and the digest must be right before anything is read."""
    _check_name(path)
    check_listed(path)
    return read_archive(path)


def check_listed(path: Path) -> None:
    """A ValueError says that the archive's digest does not stand in its store's `SUMS`, if there is one."""
    digests = listed_digests(path.parent)
    if digests is not None and sha256_of(path) not in digests:
        listed = ["*.mar", *(["*.mar.previous"] if any(path.parent.glob("*.mar.previous")) else [])]
        raise ValueError(
            f"expected the SHA-256 of {path} to stand in {path.parent / SUMS}, but it does not: put the archive there "
            f"that was meant, or, if it is, write the file again with `sha256sum {' '.join(listed)} > {SUMS}`"
        )


def is_plain(name: str) -> bool:
    """Whether a file can be called so, in a list of TorchServe's and in an address."""
    return _PLAIN.fullmatch(name) is not None and ".." not in name


def _check_name(path: Path) -> None:
    if not is_plain(path.name):
        raise ValueError(
            f"expected an archive's file name of letters, digits and . _ + -, but got {path.name!r}: rename the file"
        )


def read_archive(path: Path) -> ServedModel:
    """What an archive's manifest and configuration say.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read(MANIFEST))["model"]
            config = yaml.safe_load(archive.read(model["configFile"])) if "configFile" in model else {}
        return _served_model(path.name, model, config or {})
    except OSError as error:
        raise ValueError(
            f"expected {path} to be readable, but got: {error.strerror}; let whoever serves read it"
        ) from error
    except (zipfile.BadZipFile, zlib.error, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"expected {path} to be a model archive whose {MANIFEST} names the model and its version, but got "
            f"{type(error).__name__} ({error}): make it again with `segserve package`"
        ) from error


def read_spec(path: Path) -> ModelSpec:
    """The spec of the artifact in an archive.

    Raises:
        ValueError: `segserve package` did not make it, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return ModelSpec.model_validate_json(archive.read(_SPEC))
    except KeyError:
        raise ValueError(f"expected {path} to be made by `segserve package`, but it has no {_SPEC}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"expected {path} to be whole, but got: {error}; fetch it again") from None
    except ValidationError as error:
        raise ValueError(f"{_SPEC} in {path}: {explain(error)}") from None


def _served_model(archive: str, model: Mapping[str, Any], config: Mapping[str, Any]) -> ServedModel:
    """Where the archive does not say, TorchServe's configuration in `handlers/config` does."""
    return ServedModel(
        archive=archive,
        name=str(model["modelName"]),
        version=str(model["modelVersion"]),
        task=next((task for task in get_args(Task) if model.get("handler") == f"{task}_handler.py"), None),
        places=int(config.get("minWorkers", 1)) * int(config.get("batchSize", 1)),
        answer_seconds=int(config.get("responseTimeout", 120)),
    )
