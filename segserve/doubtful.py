"""The images a served model was least sure of, kept for a person to look at: off unless the operator names a folder.

A model's folder is laid out as a data set: `images/NAME.png` is the image as the network saw it, without whatever else
the client's file said (place, time, camera); `masks/NAME.png` the answer, of a classifier none; `scores/NAME.json`
how sure it was. NAME begins with the doubt, so that the files are in its order, and ends with what the image is known
by. Nothing says who sent it. What is old goes, and so does the least doubtful where there is no room.
"""

import contextlib
import itertools
import time
from pathlib import Path

from pydantic import Field

from segserve.settings import Settings

PARTS = ("masks", "scores", "images")
"""In the order in which an image's files come: what has an image is whole."""
NAMES = "[01].????-*"
"""Pattern of the files' names: other files in the folders are nobody's business here."""
_DAY_SECONDS = 86_400


class DoubtfulSettings(Settings):
    """Where doubtful images are kept, how many, and how long; docs/flywheel.md."""

    folder: Path
    """Those who can read it see what clients sent; it is made for this user alone."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Of the requests, drawn by chance, that are considered."""
    most_images: int = Field(default=1000, ge=1)
    """Of each model; the least doubtful ones make room."""
    most_megabytes: float = Field(default=1000, gt=0)
    """Likewise, on disk."""
    days: float = Field(default=30, gt=0)
    """After so many an image is deleted."""


def delete_old(settings: DoubtfulSettings) -> None:
    """Delete what has been there too long, of every model; for whoever runs the service to call now and then."""
    oldest = time.time() - settings.days * _DAY_SECONDS
    for part, names in itertools.product(reversed(PARTS), (NAMES, f".{NAMES}.tmp")):
        for path in settings.folder.glob(f"*/{part}/{names}"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
