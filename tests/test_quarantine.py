"""Workers are processes of their own here, which really die; tests/system/test_bad_day.py does it under TorchServe."""

import faulthandler
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from segserve import quarantine as module
from segserve.log import start_log
from segserve.problem import Problem
from segserve.quarantine import Quarantine

REFUSED = 3


def worker(folder: Path, end: int, *images: str) -> int:
    """A process that decodes all images at once, each in a thread; the one that decodes `poison`, or the first thread
    if there is none, dies by the signal `end`; its exit code, 0 where `end` is.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    quarantine = Quarantine(folder)
    all_begun = threading.Barrier(len(images) + 1)
    threads = [
        threading.Thread(target=decode, args=[quarantine, image, all_begun, end], daemon=True) for image in images
    ]
    for thread in threads:
        thread.start()
    all_begun.wait()
    if end and "poison" not in images:
        os.kill(os.getpid(), end)
    if end:
        time.sleep(10)
    for thread in threads:
        thread.join()
    os._exit(0)


def decode(quarantine: Quarantine, image: str, all_begun: threading.Barrier, end: int) -> None:
    try:
        with quarantine.decoding(image.encode()):
            all_begun.wait()
            if end and image == "poison":
                signal.pthread_kill(threading.get_ident(), end)
            elif end:
                time.sleep(10)
    except Problem:
        os._exit(REFUSED)


def is_refused(folder: Path, image: str) -> bool:
    code = worker(folder, 0, image)
    assert code in (0, REFUSED)
    return code == REFUSED


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Quarantine]:
    """A worker's in this process; pytest itself has faulthandler write elsewhere."""
    yield Quarantine(tmp_path)
    assert sys.__stderr__ is not None
    faulthandler.enable(sys.__stderr__)


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGABRT])
def test_what_crashed_twice_is_refused_and_the_same_neighbours_both_times_are_not(
    tmp_path: Path, end: signal.Signals
) -> None:
    assert worker(tmp_path, end, "a", "poison", "b", "poison") == -end
    assert not is_refused(tmp_path, "poison"), "once may be chance"
    assert worker(tmp_path, end, "a", "poison", "b") == -end
    assert [image for image in ("poison", "a", "b") if is_refused(tmp_path, image)] == ["poison"]


def test_where_no_thread_that_decodes_met_the_signal_all_images_are_suspects(tmp_path: Path) -> None:
    assert worker(tmp_path, signal.SIGSEGV, "a", "b") == -signal.SIGSEGV
    assert worker(tmp_path, signal.SIGSEGV, "b", "c") == -signal.SIGSEGV
    assert [image for image in ("a", "b", "c") if is_refused(tmp_path, image)] == ["b"]


def test_the_next_worker_says_what_happened(tmp_path: Path, here: Quarantine) -> None:
    worker(tmp_path, signal.SIGSEGV, "poison")
    log = io.StringIO()
    start_log(log)
    before = REGISTRY.get_sample_value("segserve_decoder_crashes_total") or 0.0
    here._find_crashes()
    entry = json.loads(log.getvalue())
    assert (entry["level"], entry["message"]) == ("ERROR", "a worker ended while it decoded images")
    assert entry["suspects"] == [hashlib.sha256(b"poison").hexdigest()]
    assert "Segmentation fault" in entry["stacks"]
    assert REGISTRY.get_sample_value("segserve_decoder_crashes_total") == before + 1


def test_a_worker_that_was_killed_from_outside_leaves_no_suspects(tmp_path: Path) -> None:
    for _ in range(2):
        assert worker(tmp_path, signal.SIGKILL, "innocent") == -signal.SIGKILL
    assert not is_refused(tmp_path, "innocent")
    assert not list(tmp_path.glob("crash-*"))


def test_a_crash_while_nothing_is_decoded_leaves_no_suspects(tmp_path: Path, here: Quarantine) -> None:
    assert worker(tmp_path, signal.SIGABRT) == -signal.SIGABRT
    here._find_crashes()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_that_runs_hears_of_the_others_crashes(tmp_path: Path, here: Quarantine) -> None:
    with here.decoding(b"poison"):
        pass
    worker(tmp_path, signal.SIGSEGV, "poison")
    worker(tmp_path, signal.SIGSEGV, "poison")
    worker(tmp_path, 0)
    with pytest.raises(Problem, match=r"\(SHA-256 5743abdd.*\) ended a worker 2 times: save it anew") as caught:
        here.decoding(b"poison").__enter__()
    assert caught.value.kind == "quarantined"
    with here.decoding(b"innocent"):
        pass


def test_a_folder_that_was_cleared_away_costs_no_answer(tmp_path: Path, here: Quarantine) -> None:
    for _ in range(2):
        worker(tmp_path, signal.SIGSEGV, "poison")
    Quarantine(tmp_path)
    with pytest.raises(Problem), here.decoding(b"poison"):
        pass
    shutil.rmtree(tmp_path)
    with here.decoding(b"image"):
        pass
    with pytest.raises(Problem), here.decoding(b"poison"):
        pass


def test_a_living_worker_is_left_alone(tmp_path: Path, here: Quarantine) -> None:
    own = list(tmp_path.iterdir())
    with here.decoding(b"slow"):
        assert worker(tmp_path, 0) == 0
    assert set(own) < set(tmp_path.iterdir()), "the other one's are for the next"


def test_the_notes_end_with_the_decoding_and_take_no_time(tmp_path: Path, here: Quarantine) -> None:
    [notes] = tmp_path.glob("worker-*")
    image = bytes(100_000)
    seconds = []
    for _ in range(200):
        began = time.perf_counter()
        with here.decoding(image):
            inside = notes.read_bytes() if not seconds else b""
        seconds.append(time.perf_counter() - began)
        assert not inside or module._suspects(inside)
    assert set(notes.read_bytes()) == {0}
    print(f"\n{sorted(seconds)[100] * 1e6:.0f} us for an image of 100 kB")
    assert sorted(seconds)[100] < 1e-3


def test_only_the_latest_crashes_are_kept(tmp_path: Path, here: Quarantine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CRASHES", 3)
    for number in range(5):
        (tmp_path / f"crash-{number}").write_bytes(bytes(40))
    here._find_crashes()
    assert sorted(path.name for path in tmp_path.glob("crash-*")) == ["crash-2", "crash-3", "crash-4"]
