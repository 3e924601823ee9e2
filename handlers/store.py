"""The archives to be served: which they are, and the names their manifests give."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from handlers.settings import ServeSettings

_MANIFEST = "MAR-INF/MANIFEST.json"
_FILE_NAME = re.compile(r"\w[\w.+-]*\.mar")
"""TorchServe splits its list of models at commas and equals signs."""


@dataclass(frozen=True)
class ServedModel:
    """One version of one model. Its name comes from the manifest, not from the file."""

    archive: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def served_models(settings: ServeSettings) -> tuple[ServedModel, ...]:
    """Read the manifest of each archive that is to be served.

    Raises:
        ValueError: the store or an archive is missing, an archive cannot be read, or two are the same version.
    """
    models = tuple(_read_archive(path) for path in _archives(settings))
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
    present = sorted(path.name for path in store.glob("*.mar"))
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


def _read_archive(path: Path) -> ServedModel:
    if not _FILE_NAME.fullmatch(path.name) or ".." in path.name:
        raise ValueError(
            f"expected an archive's file name of letters, digits and . _ + -, but got {path.name!r}: rename the file"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read(_MANIFEST))["model"]
        return ServedModel(archive=path.name, name=str(model["modelName"]), version=str(model["modelVersion"]))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected {path} to be a model archive whose {_MANIFEST} names the model and its version, but got "
            f"{type(error).__name__} ({error}): make it again with `segserve package`"
        ) from error
