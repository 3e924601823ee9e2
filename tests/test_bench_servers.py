import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench import servers
from bench.peers import model, torchserve_app
from bench.peers.model import EngineOfPeer, batches_of_environment
from bench.servers import REQUIREMENTS, Server, peers, running
from segserve.spec import ServingSpec

SCRIPT = """
import http.server, os, subprocess, sys, time

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

class Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if time.time() > begin + 0.3 else 503)
        self.end_headers()
        print("ports", *sys.argv[1:], os.environ["PEER_PORT"], flush=True)
        print(os.environ["PEER_ENGINE"], os.environ["PEER_FOLDER"], self.headers["Content-Type"], self.path, flush=True)

begin = time.time()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


def _server(tmp_path: Path, script: str = SCRIPT) -> Server:
    (tmp_path / "server.py").write_text(script)
    return Server(
        name="a", engine="ours", command=(str(tmp_path / "server.py"), "PORT", "PORT_2", "PORT_3"), path="/ask"
    )


def test_a_server_is_asked_until_it_answers_and_ends_with_all_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(_server(tmp_path), artifact=tmp_path, image=b"image", log=log) as found:
        process = psutil.Process(found.process.pid)
        (child,) = process.children()
        assert 0.3 < found.start_seconds < 30
        assert 5 < found.megabytes < 500
    assert not process.is_running()
    assert not child.is_running()
    ports = re.search(r"^ports (\d+) (\d+) (\d+) (\d+)$", log.read_text(), flags=re.MULTILINE)
    assert ports is not None and ports[1] == ports[4] and len(set(ports.groups())) == 3
    asked = re.search(r"^ours (\S+) application/octet-stream /ask$", log.read_text(), flags=re.MULTILINE)
    assert asked is not None
    assert Path(asked[1]).name.startswith("segserve-bench-") and not Path(asked[1]).exists()


def test_a_server_that_ends_is_said_with_its_log(tmp_path: Path) -> None:
    server = _server(tmp_path, "raise SystemExit('no model')")
    with (
        pytest.raises(RuntimeError, match=r"to answer, but its server ended: see .*log"),
        running(server, artifact=tmp_path, image=b"image", log=tmp_path / "log"),
    ):
        pass
    assert "no model" in (tmp_path / "log").read_text()


def test_what_a_server_that_ended_has_left_behind_is_ended(tmp_path: Path) -> None:
    script = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
raise SystemExit("no model")
"""
    with (
        pytest.raises(RuntimeError, match="its server ended"),
        running(_server(tmp_path, script), artifact=tmp_path, image=b"image", log=tmp_path / "log"),
    ):
        pass
    child = int((tmp_path / "log").read_text().split()[0])
    deadline = time.monotonic() + 10
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    """Whoever adopts orphans may be slow to bury them."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 1)
    server = _server(tmp_path, "import time; time.sleep(600)")
    with (
        pytest.raises(RuntimeError, match="to answer within 1 s: see"),
        running(server, artifact=tmp_path, image=b"image", log=tmp_path / "log"),
    ):
        pass


def test_every_peer_is_there_and_has_its_packages() -> None:
    for engine in ("torch", "ours"):
        for peer in peers(engine):
            module = next(part for part in peer.command if part.startswith("bench.peers."))
            assert (servers.ROOT / module.partition(":")[0].replace(".", "/")).with_suffix(".py").is_file()
            assert peer.environment is None or (REQUIREMENTS / f"{peer.environment}.txt").read_text()
    assert len(peers("torch")) == len(peers("ours")) + 1


def test_peers_make_batches_as_the_artifact_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for serving, told in ((ServingSpec(batch_size=16, max_batch_delay_ms=20), (16, 0.02)), (None, (8, 0.005))):
        for peer in peers("torch", serving):
            for name, value in peer.variables.items():
                monkeypatch.setenv(name, value)
            assert batches_of_environment() == told


def test_torchserve_writes_where_it_is_deleted_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "LOG_LOCATION", "METRICS_LOCATION", "TEMP"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv(model.FOLDER, str(tmp_path))
    monkeypatch.setenv(model.PORT, "8080")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["torchserve_app"])
    monkeypatch.setattr(os, "execv", lambda *_: None)
    torchserve_app.main()
    assert {os.environ[name] for name in ("LOG_LOCATION", "METRICS_LOCATION", "TEMP")} == {str(tmp_path)}
    assert {path.name for path in tmp_path.iterdir()} == {"segmenter.mar", "config.properties"}


def test_titles_say_what_runs() -> None:
    engines: tuple[EngineOfPeer, ...] = ("torch", "ours")
    titles = [
        Server(name=name, engine=engine, command=(), path="/").title
        for name in ("segserve", "LitServe")
        for engine in engines
    ]
    assert titles == [
        "segserve, our torch engine",
        "segserve, our engine",
        "LitServe, torch fp32",
        "LitServe, our engine",
    ]
