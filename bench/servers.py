"""The servers that `python -m bench` compares: segserve and its peers, started, asked and stopped the same way."""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path

import psutil

from bench.peers import model
from handlers.archive import package
from handlers.load import Target, closed_loop
from handlers.torchserve import free_ports
from segserve.spec import ServingSpec

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = Path("runs/bench/peers")
REQUIREMENTS = ROOT / "bench" / "peers" / "requirements"
START_SECONDS = 300
STOP_SECONDS = 60
RAW = {"Content-Type": "application/octet-stream"}
_OURS, NAME = "segserve", "benched"


@dataclass(frozen=True, kw_only=True)
class Server:
    """How one is started and asked; PORT stands for its port, PORT_2 and PORT_3 for further ones."""

    name: str
    engine: model.EngineOfPeer
    command: tuple[str, ...]
    """After the Python of its environment."""
    path: str
    environment: str | None = None
    """Of `REQUIREMENTS`; None: the project's own."""
    headers: Mapping[str, str] = field(default_factory=lambda: RAW)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """And no peer."""
        return self.name == _OURS

    @property
    def title(self) -> str:
        """With what it runs: peers' torch computes in float32, segserve's in what is fastest."""
        if self.engine == "ours":
            return f"{self.name}, our engine"
        return f"{self.name}, {'our torch engine' if self.is_ours else 'torch fp32'}"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers."""

    target: Target
    start_seconds: float
    """From the start of its process to its first answer."""
    process: subprocess.Popen[bytes]

    @property
    def megabytes(self) -> float:
        """Memory of the process and its descendants; shared pages count in parts (PSS)."""
        root = psutil.Process(self.process.pid)
        total = 0
        for one in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended in the meantime
                total += int(one.memory_full_info().pss)
        return total / 1e6


def peers(engine: model.EngineOfPeer, serving: ServingSpec | None = None) -> list[Server]:
    """Each peer with one engine; TorchServe's stock handler runs torch only.

    Args:
        engine: what it runs.
        serving: its batches are to be as large and wait as long as these; None: as by default.
    """
    lines = [
        ("FastAPI and a queue", "fastapi", ("-m", "bench.peers.fastapi_app"), "/predict"),
        ("LitServe", "litserve", ("-m", "bench.peers.litserve_app"), "/predict"),
        ("BentoML", "bentoml", ("-m", "bentoml", "serve", "bench.peers.bentoml_app:Front", *_AT_PORT), "/predict"),
        ("Ray Serve", "ray", ("-m", "bench.peers.ray_app"), "/predict"),
        ("TorchServe, 10-line handler", None, ("-m", "bench.peers.torchserve_app"), "/predictions/segmenter"),
    ]
    found = [
        Server(name=name, engine=engine, command=command, path=path, environment=environment)
        for name, environment, command, path in lines
    ]
    found.append(
        Server(
            name="Triton",
            engine=engine,
            command=("-m", "bench.peers.triton_app"),
            path="/v2/models/segmenter/infer",
            environment="triton",
            headers={**RAW, "Inference-Header-Content-Length": "0"},
        )
    )
    if engine == "torch":
        found.append(
            Server(
                name="TorchServe, image_segmenter",
                engine=engine,
                command=("-m", "bench.peers.torchserve_app", "stock"),
                path="/predictions/segmenter",
                environment="torchserve",
            )
        )
    variables = {model.SERVING: (serving or ServingSpec()).model_dump_json()}
    return [replace(peer, variables=variables) for peer in found]


_AT_PORT = ("--host", "127.0.0.1", "--port", "PORT")


def ours(artifact: Path, engine: model.EngineOfPeer, *, folder: Path) -> Server:
    """segserve with an artifact, packaged in `folder`."""
    store = folder / "store"
    if not (store / f"{NAME}.mar").is_file():
        package(artifact, name=NAME, store=store)
    ports = ("--inference-port=PORT", "--management-port=PORT_2", "--ops-port=PORT_3")
    return Server(
        name=_OURS,
        engine=engine,
        command=("-m", "cli", "serve", "--store", str(store), *ports),
        path=f"/predictions/{NAME}",
        headers={"Content-Type": "image/jpeg"},
        variables={"SEGSERVE_ENGINE": "torch"} if engine == "torch" else {},
    )


@contextlib.contextmanager
def running(server: Server, *, artifact: Path, image: bytes, log: Path) -> Iterator[Running]:
    """Start a server, wait for its first answer, and stop it and all its processes at the end."""
    port, *others = free_ports(3)
    target = Target(address=f"http://127.0.0.1:{port}{server.path}", body=image, headers=server.headers)
    command = [str(python_of(server.environment)), *(_with_ports(part, port, *others) for part in server.command)]
    variables = {
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": _library_path(),
        model.ARTIFACT: str(artifact.resolve()),
        model.ENGINE: server.engine,
        model.PORT: str(port),
    }
    with (
        log.open("ab") as file,
        tempfile.TemporaryDirectory(prefix="segserve-bench-", ignore_cleanup_errors=True) as folder,
    ):
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables, model.FOLDER: folder, **server.variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for_answer(process, target, log=log)
            yield Running(target=target, start_seconds=time.perf_counter() - begin, process=process)
        finally:
            _stop(process)


def _with_ports(part: str, first: int, second: int, third: int) -> str:
    return part.replace("PORT_2", str(second)).replace("PORT_3", str(third)).replace("PORT", str(first))


def _library_path() -> str:
    """pytriton's backend looks for this Python's library where the system keeps another one."""
    return os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))


def _wait_for_answer(process: subprocess.Popen[bytes], target: Target, *, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"expected {target.address} to answer, but its server ended: see {log}")
        try:
            closed_loop(target, clients=1, seconds=0.0)
            return
        except (OSError, HTTPException, RuntimeError):
            time.sleep(0.1)
    raise RuntimeError(f"expected {target.address} to answer within {START_SECONDS} s: see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; what it started and left is killed, and so is it, if it does not end."""
    everyone = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # those of a server that had ended before


def python_of(environment: str | None) -> Path:
    """The Python of an environment; made, with the project's packages behind its own, where it is missing."""
    if environment is None:
        return Path(sys.executable)
    folder = ENVIRONMENTS / environment
    if not (folder / "ready").is_file():
        _make_environment(folder, REQUIREMENTS / f"{environment}.txt")
    return folder.resolve() / "bin" / "python"


def _make_environment(folder: Path, requirements: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    variables = {**os.environ, "VIRTUAL_ENV": str(folder.resolve())}
    subprocess.run([uv, "pip", "install", "--quiet", "-r", str(requirements)], check=True, env=variables)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "ready").touch()
