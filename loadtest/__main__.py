"""`make loadtest`: starts the demo's models and sends both tasks with locust for a short while."""

import os
import subprocess
import sys
from pathlib import Path

from handlers.local_service import local_service

STORE = Path("runs/demo/model_store")
REPORT = Path("runs/loadtest")
CLIENTS, SECONDS = "16", "20s"


def main() -> int:
    """Run it; returns locust's exit code, 1 where a request failed."""
    if not STORE.is_dir():
        print(
            f"loadtest: expected the demo's archives in {STORE}, but there are none: run `make demo` first",
            file=sys.stderr,
        )
        return 2
    REPORT.mkdir(parents=True, exist_ok=True)
    with local_service(STORE) as service:
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
        load = ["-u", CLIENTS, "-r", CLIENTS, "-t", SECONDS, "-H", service.inference]
        report = ["--html", str(REPORT / "report.html"), "--csv", str(REPORT / "report")]
        return subprocess.run([*command, *load, *report], check=False, env=os.environ).returncode


if __name__ == "__main__":
    sys.exit(main())
