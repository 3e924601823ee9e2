"""The demo is run once; what it made is what the other system tests serve."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from handlers.local_service import LocalService, local_service
from tests.system.toy_service import short_folder

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `make demo` left behind, and how long it took."""

    folder: Path
    report: dict[str, Any]
    seconds: float


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as chaos, unless it is asked for."""
    if "chaos" not in config.getoption("markexpr"):
        chaos = [item for item in items if item.get_closest_marker("chaos")]
        config.hook.pytest_deselected(items=chaos)
        items[:] = [item for item in items if item not in chaos]


@pytest.fixture(scope="session")
def demo() -> Demo:
    """Runs `make demo`; with SEGSERVE_REUSE_DEMO set, takes the last one's results while working on the tests."""
    folder = ROOT / "runs" / "demo"
    start = time.monotonic()
    if not (os.environ.get("SEGSERVE_REUSE_DEMO") and (folder / "report.json").is_file()):
        subprocess.run(["make", "demo"], cwd=ROOT, check=True, timeout=1200)
    report = json.loads((folder / "report.json").read_text())
    return Demo(folder=folder, report=report, seconds=time.monotonic() - start)


@pytest.fixture(scope="session")
def service(demo: Demo) -> Iterator[LocalService]:
    """The demo's two models, served."""
    with local_service(demo.folder / "model_store") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for one service's temporary files, empty at its end."""
    with short_folder() as path:
        yield path
