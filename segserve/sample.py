"""Requests of clients, kept so that a new version can be compared on them: only while `segserve deploy` asks.

The folder holds a ticket for each request that is wanted. A worker that has answered an image takes one, by renaming
it, and leaves the image in its place. Where there is no folder, which is nearly always, nothing is kept.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from segserve.api import Request, Response, parse_request
from segserve.settings import Settings
from segserve.spec import Aggregate, Plan
from segserve.v2 import asks_v2

logger = logging.getLogger(__name__)

_WANTED, _TAKEN, _KEPT = ".wanted", ".taken", ".kept"


class Views(Settings):
    """How an image was looked at: what the network was asked."""

    tta: Plan = "none"
    aggregate: Aggregate = "mean"


def ask(folder: Path, *, count: int) -> None:
    """Let the workers keep the next `count` images that they answer."""
    folder.mkdir(mode=0o700)
    for number in range(count):
        (folder / f"{number}{_WANTED}").touch()


def keep(folder: Path, requests: Sequence[Request], responses: Sequence[Response]) -> None:
    """Keep what was answered well, as far as it is asked for. KServe's requests, which hold no files, are not.

    A disk that is full costs the sample a request, and nobody an answer.
    """
    for request, response in zip(requests, responses, strict=True):
        if response.status != 200 or asks_v2(request):
            continue
        ticket = _take(folder)
        if ticket is None:
            return
        try:
            _write(ticket, request)
        except FileNotFoundError:
            return  # the deployment has ended
        except OSError:
            logger.warning("a request could not be kept for comparison", exc_info=True)


def kept(folder: Path) -> Iterator[tuple[bytes, Views]]:
    """The images that are there, as their files were sent."""
    for path in sorted(folder.glob(f"*{_KEPT}")):
        head, _, image = path.read_bytes().partition(b"\n")
        yield image, Views.model_validate_json(head)


def count_kept(folder: Path) -> int:
    """How many images are there."""
    return len(list(folder.glob(f"*{_KEPT}")))


def _take(folder: Path) -> Path | None:
    """Of several workers one gets it."""
    for ticket in folder.glob(f"*{_WANTED}"):
        with contextlib.suppress(FileNotFoundError):
            return ticket.rename(ticket.with_suffix(_TAKEN))
    return None


def _write(ticket: Path, request: Request) -> None:
    image, options = parse_request(request)
    views = Views(tta=options.tta, aggregate=options.aggregate)
    ticket.write_bytes(views.model_dump_json().encode() + b"\n" + image)
    ticket.rename(ticket.with_suffix(_KEPT))
