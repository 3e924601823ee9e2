"""Images that ended a worker are refused: what is being decoded is on disk beforehand, for whoever comes after a crash.

Each worker has a file in a folder that all workers of a service share, and holds a lock on it as long as it lives. The
file holds the SHA-256 of each image that is being decoded, and the thread that does it; when a fatal signal comes, such
as a segmentation fault or an abort, Python's faulthandler appends the threads' stacks, and which of them it was. A file
that nobody locks is a dead worker's. The next one to start reads it: after a fatal signal it is kept, as a crash with
the image of that thread, or all of them where the signal met none, and removed otherwise. So neighbours in the batch
are not suspected, and a worker that was killed from outside leaves no suspects. What was in two crashes is refused.
"""

import contextlib
import faulthandler
import fcntl
import hashlib
import logging
import os
import re
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

from segserve import metrics
from segserve.problem import Problem

logger = logging.getLogger(__name__)

CRASHES = 2
"""After so many an image is refused."""
MOST_CRASHES = 256
"""Remembered, the latest ones; each takes some kilobytes on disk."""
SLOTS = 16
"""Most images that a worker decodes at the same time; more wait."""
_NOTE = struct.Struct("32sQ")
"""A SHA-256, and the thread."""
_EMPTY = bytes(_NOTE.size)
_NOTES_BYTES = SLOTS * _NOTE.size
_CULPRIT = re.compile(rb"Current thread 0x([0-9a-f]+)")
_MOST_STACKS = 4000
"""Characters of the stacks that are logged."""


class Quarantine:
    """One worker's notes, and what all workers know. From now on faulthandler writes to the notes.

    Args:
        folder: shared by the workers; it is there.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read_at = 0
        self._refused: frozenset[bytes] = frozenset()
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(SLOTS):
            self._slots.put(slot)
        self._find_crashes()
        self._begin_notes()

    @contextlib.contextmanager
    def decoding(self, data: bytes) -> Iterator[None]:
        """Inside, `data` is known to be decoded.

        Raises:
            Problem: `quarantined`.
        """
        digest = hashlib.sha256(data).digest()
        if digest in self._known():
            raise Problem(
                "quarantined",
                f"expected an image that can be decoded, but this one (SHA-256 {digest.hex()}) ended a worker "
                f"{CRASHES} times: save it anew with another program, and send that",
            )
        slot = self._slots.get()
        os.pwrite(self._notes, _NOTE.pack(digest, threading.get_ident()), slot * _NOTE.size)
        try:
            yield
        finally:
            os.pwrite(self._notes, _EMPTY, slot * _NOTE.size)
            self._slots.put(slot)

    def _begin_notes(self) -> None:
        """Under a name that counts only when they are locked; with room on disk for all that is to come but stacks."""
        name = f"worker-{time.time_ns()}-{os.getpid()}"
        hidden = self.folder / f".{name}"
        self._notes = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._notes, fcntl.LOCK_EX)
        os.posix_fallocate(self._notes, 0, _NOTES_BYTES)
        self._stacks = os.open(hidden, os.O_WRONLY | os.O_APPEND)
        faulthandler.enable(self._stacks)
        hidden.rename(self.folder / name)

    def _find_crashes(self) -> None:
        for path in self.folder.glob("worker-*"):
            # Another worker that starts at this moment may have been quicker.
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._bury(path, file.read())
        for path in sorted(self.folder.glob("crash-*"))[:-MOST_CRASHES]:
            path.unlink(missing_ok=True)

    def _bury(self, path: Path, content: bytes) -> None:
        stacks = content[_NOTES_BYTES:]
        suspects = _suspects(content)
        if not (suspects and stacks):
            path.unlink()
            return
        path.rename(self.folder / path.name.replace("worker", "crash"))
        metrics.DECODER_CRASHES.inc()
        fields = {
            "suspects": sorted(digest.hex() for digest in suspects),
            "stacks": stacks[:_MOST_STACKS].decode(errors="replace"),
        }
        logger.error("a worker ended while it decoded images", extra={"fields": fields})

    def _known(self) -> frozenset[bytes]:
        """The digests that are refused; read again when a worker has found a crash, which changes the folder."""
        try:
            changed_at = os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:  # whoever clears up temporary files took it; what is known stays known
            return self._refused
        if changed_at != self._read_at:
            crashes = [path.read_bytes() for path in self.folder.glob("crash-*")]
            counts = Counter(digest for content in crashes for digest in _suspects(content))
            self._refused = frozenset(digest for digest, count in counts.items() if count >= CRASHES)
            self._read_at = changed_at
        return self._refused


def _suspects(content: bytes) -> set[bytes]:
    """Digests; an image that was sent twice at the same time counts once."""
    decoding = {thread: digest for digest, thread in _NOTE.iter_unpack(content[:_NOTES_BYTES]) if thread}
    culprit = _CULPRIT.search(content[_NOTES_BYTES:])
    if culprit and int(culprit[1], 16) in decoding:
        return {decoding[int(culprit[1], 16)]}
    return set(decoding.values())
