"""`segserve deploy` and `segserve rollback`: another version of a model answers, and no request is lost.

TorchServe keeps a queue for each version, and only requests that come later go to another default: what has been queued
is answered by the version it was sent to. So both are loaded, and the default is changed.
"""

import contextlib
import http.client
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from handlers import running, store
from handlers.comparison import Limits, Replayer
from handlers.management import Management, VersionState
from handlers.running import Running
from handlers.settings import ServeSettings
from handlers.store import ServedModel
from handlers.torchserve import RunFolder
from segserve import sample
from segserve.codec import may_be_image
from segserve.digest import sha256_of
from segserve.sample import Views
from segserve.settings import Settings
from segserve.spec import ModelSpec
from segserve.whole import write_whole

MANAGEMENT_TIMEOUT_SECONDS = 60.0
"""TorchServe unpacks an archive before it answers."""
POLL_SECONDS = 0.3

Say = Callable[[str], None]


class DeploySettings(Settings):
    """What is to be served, and on which condition."""

    archive: Path
    store: Path = Path("model_store")
    sha256: str | None = None
    """Which the archive must have."""
    images: Path | None = None
    """A folder of images to compare on. None: the next requests of clients."""
    requests: int = Field(default=20, ge=1)
    """How many images to compare on."""
    wait_seconds: float = Field(default=60.0, gt=0)
    """How long to wait for so many requests."""
    limits: Limits = Limits()


class RollbackSettings(Settings):
    """Which model is to be served in its previous version."""

    model: str
    store: Path = Path("model_store")


def deploy(settings: DeploySettings, *, say: Say) -> str:
    """Load a new version beside the one that is served, compare them, and let the new one answer.

    Args:
        settings: what, and on which condition.
        say: is told each step.

    Returns:
        a sentence with the figures.

    Raises:
        ValueError: the archive is not one to take this model's place, or no service runs.
        RuntimeError: the new version did not load, is beyond the limits, or TorchServe did not do as it was told, or
            ended; the served one goes on, and the sentence has the figures.
    """
    new, spec = store.read_archive(settings.archive), store.read_spec(settings.archive)
    digest = _check_digest(settings)
    files = None if settings.images is None else _files(settings.images, count=settings.requests)
    found, folder = running.find(settings.store)
    with running.alone(folder), _answering():
        served = _Served(found, folder, name=new.name)
        _check_may_follow(served, new, spec)
        with _copied(settings.archive, served, digest=digest) as coming, _sampled(settings, folder):
            say(f"{new}, SHA-256 {digest}, loads beside {served.model.version}")
            with served.beside(coming, new):
                images = _requests(settings, folder, say=say) if files is None else _read(files)
                replayer = _replayer(found, served.model, spec)
                figures = replayer.compare(images, served=served.model.version, new=new.version)
                sentence = figures.sentence(settings.limits)
                if not figures.within(settings.limits):
                    raise RuntimeError(f"{new} was refused, {served.model.version} is served as before: {sentence}")
                _allow(settings.store, digest, name=served.model.archive)
                served.switch(coming, new.version)
    return f"{new} is served: {sentence}; next, if need be: segserve rollback {new.name}"


def rollback(settings: RollbackSettings, *, say: Say) -> str:
    """Let the version answer that did before the last deployment, or rollback.

    Where the service was started again in between, it must load first. Otherwise as `deploy`.
    """
    found, folder = running.find(settings.store)
    with running.alone(folder), _answering():
        served = _Served(found, folder, name=settings.model)
        kept = served.previous
        if not kept.is_file():
            raise ValueError(f"expected {kept}, the archive that was served before, but there is none: deploy one")
        store.check_listed(kept)
        old = store.read_archive(kept)
        if any(state.version == old.version and state.workers["ready"] for state in served.versions()):
            served.switch(kept, old.version)
        else:
            say(f"{old} loads beside {served.model.version}")
            with served.beside(kept, old):
                served.switch(kept, old.version)
    return f"{old} is served again; {served.model.version} is kept"


class _Served:
    """The version of one model that answers, and its archive in the store.

    Raises:
        ValueError: the model is not served, or its archive is not the one that was loaded.
    """

    def __init__(self, found: Running, folder: RunFolder, *, name: str) -> None:
        self.folder = folder
        self.store = found.settings.store
        self.management = Management(found.settings.management_port, timeout=MANAGEMENT_TIMEOUT_SECONDS)
        self.model = _stored(found.settings, name)
        default = next((state.version for state in self._all(name) if state.is_default), None)
        if default != self.model.version:
            raise ValueError(
                f"expected {self.store / self.model.archive} to be the version that answers, {name} {default}, but it "
                f"is {self.model}: put the archive back that was there, or start the service again"
            )

    @property
    def path(self) -> Path:
        """Its archive."""
        return self.store / self.model.archive

    @property
    def previous(self) -> Path:
        """The archive that was served before."""
        return store.previous(self.store, self.model.archive)

    def versions(self) -> tuple[VersionState, ...]:
        """What TorchServe has loaded of this model."""
        return self._all(self.model.name)

    @contextlib.contextmanager
    def beside(self, archive: Path, version: ServedModel) -> Iterator[None]:
        """Load another version, wait until it is ready, and unload it on an exception.

        What else is loaded goes first: there are never more than two in memory.
        """
        for state in self.versions():
            if not state.is_default:
                self.management.unregister(state.name, state.version)
        try:
            self._load(archive, version)
            yield
        except BaseException:
            if any(state.version == version.version and not state.is_default for state in self.versions()):
                self.management.unregister(version.name, version.version)
            raise

    def switch(self, archive: Path, version: str) -> None:
        """From now on this version answers, also after another start; the one that did is kept."""
        with store.exchanged(self.store, self.model.archive, archive):
            self.management.set_default(self.model.name, version)

    def _all(self, name: str) -> tuple[VersionState, ...]:
        return self.management.versions([name])

    def _load(self, archive: Path, version: ServedModel) -> None:
        """TorchServe reads the archive before it answers; then nobody can have it loaded once more."""
        self.folder.withdraw()  # what a deployment left that was killed here
        self.folder.offer(archive, name="next.mar")
        try:
            self.management.register("next.mar")
        finally:
            self.folder.withdraw()
        while not self._is_ready(version):
            time.sleep(POLL_SECONDS)

    def _is_ready(self, version: ServedModel) -> bool:
        """TorchServe would start a worker that has ended again and again."""
        [state] = [state for state in self.versions() if state.version == version.version]
        if state.workers["other"]:
            raise RuntimeError(
                f"expected {version} to load, but its worker ended: the service's log says why; {self.model.version} "
                "is served as before"
            )
        return state.workers["ready"] > 0 and not state.workers["loading"]


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """A service that stops, or hangs, in the middle is no mistake of the user's."""
    try:
        yield
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise RuntimeError(f"expected the service to go on answering, but got: {error!r}; see its log") from error


def _stored(settings: ServeSettings, name: str) -> ServedModel:
    models = store.served_models(settings)
    own = [model for model in models if model.name == name]
    if not own:
        names = ", ".join(dict.fromkeys(model.name for model in models))
        raise ValueError(f"expected a model that is served ({names}), but got {name!r}: name one of them")
    if len(own) > 1:
        archives = ", ".join(model.archive for model in own)
        raise ValueError(
            f"expected one archive of {name} in {settings.store}, but there are {archives}: start the service with one "
            "of them in --models"
        )
    return own[0]


def _check_digest(settings: DeploySettings) -> str:
    """The archive's own; it must be the one that was named, and without a name one that the store's list names."""
    digest = sha256_of(settings.archive)
    if settings.sha256 is not None and digest != settings.sha256.lower():
        raise ValueError(
            f"expected {settings.archive} to have SHA-256 {settings.sha256}, but it has {digest}: fetch it again"
        )
    listed = store.listed_digests(settings.store)
    if settings.sha256 is None and listed is not None and digest not in listed:
        raise ValueError(
            f"expected the SHA-256 of {settings.archive} to stand in {settings.store / store.SUMS}, but it does not: "
            "say with --sha256 which it must have"
        )
    return digest


def _check_may_follow(served: _Served, new: ServedModel, spec: ModelSpec) -> None:
    if new.version == served.model.version:
        raise ValueError(f"expected another version than {new}, which is served: package it with another --version")
    before = store.read_spec(served.path)
    if (before.task, before.class_names) != (spec.task, spec.class_names):
        raise ValueError(
            f"expected {new} to be for {before.task} with the classes {', '.join(before.class_names)}, as "
            f"{served.model.version} is, but it is for {spec.task} with {', '.join(spec.class_names)}: its answers "
            "would mean something else to clients; package it with another --name"
        )


@contextlib.contextmanager
def _copied(archive: Path, served: _Served, *, digest: str) -> Iterator[Path]:
    """A copy beside the archive whose place it may take, on the same disk and of the same bytes."""
    copy = served.path.with_name(f"{served.path.name}.new")
    try:
        shutil.copyfile(archive, copy)
        if sha256_of(copy) != digest:
            raise ValueError(f"expected {archive} to stay as it is while it is deployed, but it has changed")
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def _sampled(settings: DeploySettings, folder: RunFolder) -> Iterator[None]:
    """Workers keep requests while the new version loads and until they are compared; then none is left."""
    if settings.images is not None:
        yield
        return
    shutil.rmtree(folder.sample, ignore_errors=True)
    sample.ask(folder.sample, count=settings.requests)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):  # the service has ended, and its folder with it
            shutil.rmtree(folder.sample)


def _files(folder: Path, *, count: int) -> list[Path]:
    listed = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path for path in listed if path.is_file() and may_be_image(path.relative_to(folder)))
    if not found:
        raise ValueError(f"expected images in the folder {folder}, but there are none: name another with --images")
    return found[:count]


def _read(files: Sequence[Path]) -> Iterator[tuple[bytes, Views]]:
    return ((path.read_bytes(), Views()) for path in files)


def _requests(settings: DeploySettings, folder: RunFolder, *, say: Say) -> Iterator[tuple[bytes, Views]]:
    deadline = time.monotonic() + settings.wait_seconds
    while (count := sample.count_kept(folder.sample)) < settings.requests:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected {settings.requests} requests within {settings.wait_seconds:g} s, but {count} were answered: "
                "allow more with --wait, ask for fewer with --requests, or name a folder with --images"
            )
        time.sleep(POLL_SECONDS)
    say(f"{count} requests of clients are sent to both versions")
    return sample.kept(folder.sample)


def _replayer(found: Running, model: ServedModel, spec: ModelSpec) -> Replayer:
    inner = found.inner
    return Replayer(
        inner.reachable_host, inner.inference_port, name=model.name, spec=spec, timeout=model.answer_seconds
    )


def _allow(folder: Path, digest: str, *, name: str) -> None:
    """Add a digest to the store's list, where there is one, before an archive has it."""
    listed = store.listed_digests(folder)
    if listed is not None and digest not in listed:
        lines = (folder / store.SUMS).read_text().rstrip("\n")
        write_whole(folder / store.SUMS, f"{lines}\n{digest}  {name}\n")
