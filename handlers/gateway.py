"""The gateway: nginx in front of TorchServe; started, watched, started again and stopped by the supervisor."""

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from handlers import nginx
from handlers.leash import leashed
from handlers.management import VersionState
from handlers.nginx import Place
from handlers.output import lines_of, pass_on, say
from handlers.settings import GatewaySettings, ServeSettings
from handlers.torchserve import ServeError
from segserve.whole import write_whole

SETTLED_SECONDS = 1.0
"""After its last change a file is taken for whole."""
CLOSING_SECONDS = 2.0
"""Before a reload, and after it until nginx has come to it: no connection is kept alive after its next answer, so that
only what is silent is cut."""
MOST_STARTS = 5
"""Of one life of the service: what ends so often will not be helped by another start."""
_QUERY = re.compile(r"\?[^ \"]*")
_ANSWER = re.compile(r'"model":"([^"]+)","status":(\d{3}),"bytes_received":\d+,"bytes_sent":[1-9]')
"""Of the access log, where nginx names a served model or none, and a status also where the client left before it."""
_FIRST_STATUSES = ("200", "429", "503", "504")
"""Counted from 0, so that what is computed of the first of them is right."""


class Gateway:
    """One nginx, in a session and process group of its own; what it logs is passed on.

    Args:
        settings: where clients reach it, and the ops port that it asks.
        gateway: whom it lets in.
        models: what it passes requests to.
        folder: for all that it writes; made here.
        torchserve_port: on loopback.

    Raises:
        ValueError: the file of tokens, or the certificate, is not as expected.
        ServeError: nginx is not installed, or refuses its configuration.
    """

    def __init__(
        self,
        settings: ServeSettings,
        gateway: GatewaySettings,
        models: Sequence[Place],
        *,
        folder: Path,
        torchserve_port: int,
    ) -> None:
        self.models = tuple(models)
        """As they are now: another version may answer after a while."""
        self.answers = Counter({(place.name, status): 0 for place in models for status in _FIRST_STATUSES})
        """To requests that name a model, by it and by status, whoever made them: a handler, TorchServe or nginx."""
        self.folder = folder
        self._waiting_batches = gateway.waiting_batches
        self._unready = folder / "unready"
        self._unready.mkdir(parents=True)
        self._list(self.models)
        self.admit({})
        self._text = partial(nginx.configuration, settings, gateway, folder=folder, torchserve_port=torchserve_port)
        self._files = [file for file in (gateway.tokens, gateway.certificate, gateway.key) if file]
        _check_certificate(gateway)
        self._taken = self._seen = _states(self._files)
        self._bounds = _bounds(self.models)
        self._seen_at = 0.0
        self._closing = folder / "closing"
        self._reload_at: float | None = None
        self._reloaded_at = 0.0
        self._starts = 0
        self._configure()

    def start(self) -> None:
        """Begin to answer. A socket file that was left behind would be in the way."""
        (self.folder / "inside").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            leashed(self._command(self._configuration)),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._starts += 1
        assert self._process.stdout is not None
        pass_on(self._counted(lines_of(self._process.stdout)), _print, name="nginx-log")

    def admit(self, versions: Mapping[str, VersionState]) -> None:
        """From now on pass requests on to these models, and refuse those to all others.

        Args:
            versions: of each model that is ready, by name, the one that answers.
        """
        for number, place in enumerate(self.models):
            flag = self._unready / str(number)
            if place.name in versions:
                flag.unlink(missing_ok=True)
            else:
                flag.touch()
        models = tuple(
            nginx.taken_over(place, versions[place.name], waiting_batches=self._waiting_batches)
            if place.name in versions
            else place
            for place in self.models
        )
        if models != self.models:
            self._list(models)
            self.models = models

    def watch(self) -> None:
        """Start nginx again if it has ended; have it take what has changed: tokens, certificates, places of a model.

        Raises:
            ServeError: it ends again and again.
        """
        if self._process.poll() is None:
            self._renew()
            return
        self._end_group()
        if self._starts >= MOST_STARTS:
            raise ServeError(f"nginx ended {self._starts} times, the last time with code {self._process.returncode}")
        say(f"nginx ended with code {self._process.returncode}; starting it again")
        self.start()

    def stop(self, *, seconds: float) -> None:
        """Let nginx finish what it has begun; after `seconds` end it."""
        self._process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        self._end_group()

    @property
    def _configuration(self) -> Path:
        return self.folder / "nginx.conf"

    def _counted(self, lines: Iterable[str]) -> Iterator[str]:
        """As they are read, so that those are counted, too, that are dropped later."""
        for line in lines:
            if found := _ANSWER.search(line):
                self.answers[unquote(found[1]), found[2]] += 1
            yield line

    def _list(self, models: Sequence[Place]) -> None:
        write_whole(self.folder / "models.json", nginx.model_list(models))

    def _command(self, configuration: Path) -> list[str]:
        return [nginx.find_nginx(), "-e", "stderr", "-p", f"{self.folder}/", "-c", str(configuration)]

    def _configure(self) -> None:
        """Write the configuration anew, if nginx takes it."""
        tried = self.folder / "nginx.conf.new"
        tried.unlink(missing_ok=True)
        tried.write_text(self._text(self.models))
        tried.chmod(0o400)
        said = subprocess.run([*self._command(tried), "-t", "-q"], capture_output=True, text=True, check=False)
        if said.returncode:
            first_line, _, _ = said.stderr.partition("\n")
            raise ServeError(f"expected nginx to take its configuration, but it says: {first_line}")
        tried.replace(self._configuration)

    def _renew(self) -> None:
        """nginx's workers finish what they have begun, and others begin with the new configuration."""
        now = time.monotonic()
        if self._reload_at is not None and now >= self._reload_at:
            self._reload_at, self._reloaded_at = None, now
            self._process.send_signal(signal.SIGHUP)
            say("the gateway has taken its tokens, certificate and places anew")
        if self._reload_at is None and now - self._reloaded_at >= CLOSING_SECONDS:
            self._closing.unlink(missing_ok=True)
        states = _states(self._files)
        if states != self._seen:
            self._seen, self._seen_at = states, now
        bounds = _bounds(self.models)
        if (states, bounds) == (self._taken, self._bounds) or now - self._seen_at < SETTLED_SECONDS:
            return
        self._taken, self._bounds = states, bounds
        try:
            self._configure()
        except (ValueError, OSError, ServeError) as error:
            say(f"the gateway keeps the tokens and the certificate it has: {error}")
            return
        self._closing.touch()
        self._reload_at = now + CLOSING_SECONDS

    def _end_group(self) -> None:
        """A killed nginx leaves its workers behind, and with them the port."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _bounds(models: Sequence[Place]) -> list[tuple[int, int]]:
    """What nginx must know of each."""
    return [(place.limit, place.answer_seconds) for place in models]


def _states(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What changes with a file, or with what its name points to."""
    return [_state(file) for file in files]


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _print(line: str) -> None:
    """The access log, one JSON object a line, on standard output; the rest on standard error, without queries.

    A line and its end in one piece, as other threads write, too.
    """
    if line.startswith("{"):
        print(f"{line}\n", end="", flush=True)
    else:
        print(f"nginx: {_QUERY.sub('?...', line)}\n", end="", file=sys.stderr, flush=True)


def _check_certificate(gateway: GatewaySettings) -> None:
    if gateway.certificate is None or gateway.key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(gateway.certificate, gateway.key, password="")
    except OSError as error:
        raise ValueError(
            f"expected {gateway.certificate} and {gateway.key} to be a certificate and its key, in PEM and without a "
            f"password, but they cannot be read ({error}): correct them, or the gateway's settings"
        ) from None
