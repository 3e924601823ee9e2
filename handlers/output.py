"""What processes of the service write, passed on to whoever reads the service's own log."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO

_MOST_LINES = 10_000
_DROPPED = "{} lines of the log were dropped, because nobody read them in time"


def say(line: str) -> None:
    """A line of the service's own. Where it cannot be written, on a full disk or because whoever read it has ended, it
    is lost, and nothing else is."""
    with contextlib.suppress(OSError):
        print(f"segserve: {line}\n", end="", flush=True)


def lines_of(output: IO[bytes]) -> Iterator[str]:
    """What a process writes, until it has ended."""
    with output:
        for raw in output:
            yield raw.decode(errors="replace").rstrip()


def pass_on(lines: Iterable[str], write: Callable[[str], None], *, name: str) -> threading.Thread:
    """Write each line, in threads of their own, until there are no more.

    nginx and Java wait for whoever reads what they write, and every client with them. So lines are read at once,
    whatever becomes of them: where `write` is too slow, they are dropped, and their number is written.

    Args:
        lines: as a process writes them.
        write: may wait, or raise OSError.
        name: of the threads.

    Returns:
        the thread that ends when all is written.
    """
    waiting: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
    threading.Thread(target=_read, args=[lines, waiting], name=name, daemon=True).start()
    writer = threading.Thread(target=_write, args=[waiting, write], name=f"{name}-out", daemon=True)
    writer.start()
    return writer


def _read(lines: Iterable[str], waiting: "queue.Queue[str | None]") -> None:
    dropped = 0
    for line in lines:
        try:
            if dropped:
                waiting.put_nowait(_DROPPED.format(dropped))
                dropped = 0
            waiting.put_nowait(line)
        except queue.Full:
            dropped += 1
    if dropped:
        waiting.put(_DROPPED.format(dropped))
    waiting.put(None)


def _write(waiting: "queue.Queue[str | None]", write: Callable[[str], None]) -> None:
    while (line := waiting.get()) is not None:
        with contextlib.suppress(OSError):
            write(line)
