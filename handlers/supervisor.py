"""`segserve serve`: starts TorchServe, watches it, answers the ops port, and stops it without losing a request."""

import contextlib
import errno
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from handlers import landlock, nginx, running, torchserve
from handlers.drain import Drain
from handlers.exposition import GatewayMetrics, Scrape, SupervisorMetrics, TorchServeMetrics, WorkerMetrics
from handlers.gateway import Gateway
from handlers.health import Health
from handlers.jvm import Jvm
from handlers.management import Management
from handlers.ops import OpsServer
from handlers.output import say
from handlers.settings import ServeSettings
from handlers.signals import StopSignals
from handlers.store import ServedModel, served_models
from handlers.throughput import Throughput, worker_counts
from handlers.torchserve import LOOPBACK, RunFolder, ServeError
from segserve.doubtful import delete_old

GATEWAY_STOP_SECONDS = 2.0
"""For answers that are still on their way to slow clients."""
WATCH_SECONDS = 0.2
DELETE_SECONDS = 3600.0
"""Between two looks for doubtful images that are too old."""
MANAGEMENT_TIMEOUT_SECONDS = 5.0
SCRAPE_TIMEOUT_SECONDS = 0.5
_LONGEST_FOLDER = 80
"""Characters. A socket's path may have 107, and TorchServe appends its own name."""


def serve(settings: ServeSettings) -> int:
    """Serve until a stop signal comes; runs in the main thread.

    Returns:
        0 after an orderly stop; 1 when a port is taken, a model could not be loaded or TorchServe died.

    Raises:
        ValueError: the store, an archive, the address or the certificate is not as expected.
    """
    models = served_models(settings)
    try:
        with StopSignals() as signals, _run_folder() as folder:
            _Service(settings, models, folder=folder, signals=signals).run()
    except ServeError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(
            f"expected room for temporary files below {tempfile.gettempdir()}, but got: {error.strerror}; "
            "make room there, or let TMPDIR name another folder"
        )
    say("stopped")
    return 0


def _fail(sentence: str) -> int:
    print(f"segserve: {sentence}", file=sys.stderr, flush=True)
    return 1


class _Service:
    """One life of the service."""

    def __init__(
        self, settings: ServeSettings, models: tuple[ServedModel, ...], *, folder: RunFolder, signals: StopSignals
    ) -> None:
        self.settings = settings
        self.models = models
        self.folder = folder
        self.signals = signals
        taken = {settings.inference_port, settings.management_port, settings.ops_port}
        self.metrics_port, inside = torchserve.free_ports(2, apart_from=taken)
        self.began = time.monotonic()
        self.delete_at = self.began
        self.inner = _behind_gateway(settings, port=inside) if settings.gateway else settings
        """TorchServe's own view: where it listens itself."""
        waiting_batches = settings.gateway.waiting_batches if settings.gateway else 0
        self.places = nginx.places(models, waiting_batches=waiting_batches)
        workers = WorkerMetrics(folder.metrics)
        self.throughput = Throughput(
            {place.name: place.limit for place in self.places}, counts=lambda: worker_counts(workers.collect())
        )

    def run(self) -> None:
        """Start, watch, drain, stop."""
        self._check_ports()
        self._check_doubtful()
        gateway = self._make_gateway()
        with (
            self._torchserve() as jvm,
            self._health(jvm, gateway) as health,
            self._ops(health, gateway),
            self._started(gateway),
        ):
            if self._until_ready(jvm, health, gateway):
                self.folder.withdraw()
                running.announce(self.folder, settings=self.settings, inner=self.inner)
                self._announce()
                self._until_signal(jvm, gateway)
            elif not health.answers():
                return
            say("draining")
            drain = Drain(self.inner, health=health, folder=self.folder, signals=self.signals)
            if not drain.run():
                say("the drain was cut short; requests may have been lost")
            self._check_running(jvm)

    def _check_ports(self) -> None:
        settings = self.settings
        for option, host, port in (
            ("--inference-port", settings.host, settings.inference_port),
            ("--management-port", LOOPBACK, settings.management_port),
            ("--ops-port", settings.host, settings.ops_port),
        ):
            with _listening(option, host, port):
                socket.create_server((host, port)).close()

    def _check_doubtful(self) -> None:
        if self.settings.doubtful is None:
            return
        folder = self.settings.doubtful.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".tried").touch()
            (folder / ".tried").unlink()
        except OSError as error:
            raise ServeError(
                f"expected a folder for doubtful images that this user can write to, but got {error}: choose another "
                "in the file that --doubtful names"
            ) from error

    @contextlib.contextmanager
    def _torchserve(self) -> Iterator[Jvm]:
        """Started before any thread is, because a copy of a threaded process must not do much between fork and exec."""
        java = torchserve.find_java(os.environ)
        torchserve.leave_forms_unparsed(self.folder)
        torchserve.take_no_folders(self.folder)
        for model in self.models:
            self.folder.offer(self.settings.store / model.archive, name=model.archive)
        self.folder.properties.write_text(torchserve.properties_text(self.inner, metrics_port=self.metrics_port))
        names = ", ".join(str(model) for model in self.models)
        say(f"starting TorchServe {torchserve.version()} on Java {java.version} with {names}")
        with _protected(self.settings.store) as ruleset:
            jvm = Jvm(
                torchserve.command(self.models, folder=self.folder, java=java),
                environment=torchserve.environment(
                    os.environ, self.settings, folder=self.folder, num_models=len(self.models)
                ),
                folder=self.folder.root,
                ruleset=ruleset,
            )
        try:
            yield jvm
        finally:
            jvm.end()

    @contextlib.contextmanager
    def _health(self, jvm: Jvm, gateway: Gateway | None) -> Iterator[Health]:
        management = Management(self.settings.management_port, timeout=MANAGEMENT_TIMEOUT_SECONDS)
        health = Health(
            self.models,
            management=management,
            is_running=lambda: jvm.is_running,
            admit=gateway.admit if gateway else lambda versions: None,
        )
        health.start()
        try:
            yield health
        finally:
            health.close()

    @contextlib.contextmanager
    def _ops(self, health: Health, gateway: Gateway | None) -> Iterator[None]:
        settings = self.settings
        scrape = Scrape(
            SupervisorMetrics(health),
            WorkerMetrics(self.folder.metrics),
            TorchServeMetrics(self.metrics_port, timeout=SCRAPE_TIMEOUT_SECONDS),
            *([GatewayMetrics(gateway.answers)] if gateway else []),
        )
        with _listening("--ops-port", settings.host, settings.ops_port):
            server = OpsServer(
                settings.host,
                settings.ops_port,
                health=health,
                metrics=scrape,
                throughput=self.throughput if settings.gateway else None,
            )
        server.start()
        try:
            yield
        finally:
            server.close()

    def _make_gateway(self) -> Gateway | None:
        """Before anything is started, because it may be refused."""
        if self.settings.gateway is None:
            return None
        return Gateway(
            self.settings,
            self.settings.gateway,
            self.places,
            folder=self.folder.gateway,
            torchserve_port=self.inner.inference_port,
        )

    @contextlib.contextmanager
    def _started(self, gateway: Gateway | None) -> Iterator[None]:
        """From the first moment on, so that clients hear 503 and when to come back while the models load."""
        if gateway is None:
            yield
            return
        gateway.start()
        try:
            yield
        finally:
            gateway.stop(seconds=GATEWAY_STOP_SECONDS)

    def _watch(self, gateway: Gateway | None) -> None:
        if self.settings.doubtful and time.monotonic() >= self.delete_at:
            try:
                delete_old(self.settings.doubtful)
            except OSError as error:
                say(f"old doubtful images could not be deleted: {error}")
            self.delete_at = time.monotonic() + DELETE_SECONDS
        if gateway is not None:
            gateway.watch()
            self.throughput.places = {place.name: place.limit for place in gateway.models}
            self.throughput.sample()

    def _until_ready(self, jvm: Jvm, health: Health, gateway: Gateway | None) -> bool:
        """Wait for the models; False if a stop signal came first. TorchServe itself would try for ever."""
        while reasons := health.reasons():
            self._watch(gateway)
            if self.signals.wait(WATCH_SECONDS):
                return False
            self._check_running(jvm)
            for model in health.refused():
                raise ServeError(_with_tail(f"TorchServe did not take the archive {model.archive} ({model})", jvm))
            if time.monotonic() - self.began > self.settings.start_seconds:
                bound = self.settings.start_seconds
                late = f"expected every model to be ready within {bound:g} s, but {'; '.join(reasons)}"
                raise ServeError(_with_tail(late, jvm))
        return True

    def _until_signal(self, jvm: Jvm, gateway: Gateway | None) -> None:
        while not self.signals.wait(WATCH_SECONDS):
            self._check_running(jvm)
            running.forget_left(self.folder)
            self._watch(gateway)

    def _check_running(self, jvm: Jvm) -> None:
        if not jvm.is_running:
            raise ServeError(_with_tail("TorchServe ended by itself", jvm))

    def _announce(self) -> None:
        seconds = time.monotonic() - self.began
        host = self.settings.reachable_host
        gateway = self.settings.gateway
        scheme = "https" if gateway and gateway.certificate else "http"
        for model in self.models:
            url = f"{scheme}://{host}:{self.settings.inference_port}/predictions/{model.name}"
            say(f"ready in {seconds:.1f} s: {model} -> {url}")
        say(f"ops http://{host}:{self.settings.ops_port}/metrics")


def _behind_gateway(settings: ServeSettings, *, port: int) -> ServeSettings:
    return settings.model_copy(update={"host": LOOPBACK, "inference_port": port})


@contextlib.contextmanager
def _run_folder() -> Iterator[RunFolder]:
    try:
        running.delete_dead()
        root = Path(tempfile.mkdtemp(prefix=running.PREFIX))
    except OSError as error:
        raise ServeError(f"expected a temporary folder with room in it, but got: {error}; set TMPDIR to one") from error
    try:
        if len(str(root)) > _LONGEST_FOLDER:
            raise ServeError(
                f"expected a temporary folder with a path of at most {_LONGEST_FOLDER} characters for sockets, "
                f"but got {root}: set TMPDIR to a shorter one"
            )
        folder = RunFolder(root)
        with running.alive(folder):
            folder.make()
            yield folder
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _protected(store: Path) -> Iterator[int | None]:
    """By which TorchServe and its workers cannot write to the store."""
    ruleset = landlock.protect(store)
    if ruleset is None:
        say("this system has no Landlock (Linux 6.2): nothing but file permissions keeps workers from the model store")
    try:
        yield ruleset
    finally:
        if ruleset is not None:
            os.close(ruleset)


@contextlib.contextmanager
def _listening(option: str, host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL or (error.errno or 0) < 0:  # below 0: of the names' lookup
            raise ValueError(
                f"expected --host to be an address of this machine, but got {host}: give 127.0.0.1 or 0.0.0.0"
            ) from error
        reason = os.strerror(error.errno) if error.errno and error.errno in errno.errorcode else error
        raise ServeError(
            f"expected port {port} of {host} to be free, but got: {reason}; "
            f"stop what listens there, or choose another with {option}"
        ) from error


def _with_tail(sentence: str, jvm: Jvm) -> str:
    return f"{sentence}; its last lines were:\n{jvm.tail}"
