"""Load on the service, judged and drawn: `python -m loadtest [PROFILE]`.

    python -m loadtest                        the demo's models, served for it; profile `steady`
    python -m loadtest knee --store model_store --segmentation NAME --classification NAME
    python -m loadtest spike --url http://HOST:8080 --ops http://HOST:8082

Writes OUT/PROFILE.html and OUT/PROFILE.json. Exit code 0: the objectives are met; 1: they are not; 2: it could not run.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from handlers.local_service import local_service
from loadtest.page import page
from loadtest.profile import read_profile
from loadtest.record import Record, Run, read_record
from loadtest.slo import find_faults, read_slo
from segserve.whole import check_place, write_whole

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
CONNECT_SECONDS = 10
SLO = Path(__file__).with_name("slo.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    given = _parser().parse_args(arguments)
    name = Path(given.profile).stem
    try:
        run = Run(
            profile=read_profile(given.profile),
            models={"segmentation": given.segmentation, "classification": given.classification},
            record=(given.out / f"{name}.json").resolve(),
        )
        slo = read_slo(given.slo, profile=name)
        report = given.out / f"{name}.html"
        check_place(report)
        with _target(given) as (url, ops):
            record = send(run.model_copy(update={"ops": ops}), url=url)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    faults = list(find_faults(record, slo))
    write_whole(report, page(record, faults, title=f"Load test: {name}", machine=f"{os.cpu_count()} cores here"))
    for sentence in [*faults, *record.complaints[:10]]:
        print(f"loadtest: {sentence}")
    print(f"loadtest: {len(record.sent)} requests, {'objectives missed' if faults else 'objectives met'}: {report}")
    return 1 if faults else 0


def send(run: Run, *, url: str) -> Record:
    """Send a profile's requests.

    Raises:
        RuntimeError: the load test itself broke.
    """
    run.record.parent.mkdir(parents=True, exist_ok=True)
    run.record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "-H", url]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    environment = {**kept, "SEGSERVE_LOADTEST": run.model_dump_json()}
    code = subprocess.run(command, check=False, env=environment, cwd=ROOT).returncode
    if code or not run.record.is_file():
        raise RuntimeError(f"expected locust to send the requests, but it ended with code {code}: see above")
    return read_record(run.record)


@contextlib.contextmanager
def _target(given: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Addresses of the inference and the ops port: of a service that runs already, or one that is started."""
    if given.url is not None:
        for option, url in (("--url", given.url), ("--ops", given.ops)):
            if url is not None:
                _check_listens(option, url)
        yield given.url.rstrip("/"), given.ops and given.ops.rstrip("/")
        return
    if not given.store.is_dir():
        raise ValueError(f"expected archives in {given.store}, but there is no such folder: run `make demo` first")
    with local_service(given.store) as service:
        yield service.inference, service.ops


def _check_listens(option: str, url: str) -> None:
    """A ValueError where nobody listens."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected {option} to be like http://HOST:8080, but got {url}: correct it")
    try:
        port = parts.port or socket.getservbyname(parts.scheme)
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # a port may be none
        raise ValueError(
            f"expected a service at {url}, but nobody listens ({error}): start it, or correct {option}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", nargs="?", default="steady", help="one of loadtest/profiles, or a .toml file")
    parser.add_argument("--store", type=Path, default=Path("runs/demo/model_store"), help="archives to serve")
    parser.add_argument("--url", help="of a service that runs already, instead of --store")
    parser.add_argument("--ops", help="its ops port's address; without it, the page has the client's view alone")
    parser.add_argument("--segmentation", default="demo-segmentation", metavar="NAME", help="model for masks")
    parser.add_argument("--classification", default="demo-classification", metavar="NAME", help="model for labels")
    parser.add_argument("--slo", type=Path, default=SLO, help="objectives")
    parser.add_argument("--out", type=Path, default=Path("runs/loadtest"), metavar="FOLDER")
    return parser


if __name__ == "__main__":
    sys.exit(main())
