"""How nginx is launched as the gateway: its configuration, written from the template that explains it."""

import base64
import hashlib
import json
import os
import re
import resource
import secrets
import shutil
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from handlers import refusals
from handlers.management import VersionState
from handlers.refusals import Refusal
from handlers.settings import GatewaySettings, ServeSettings
from handlers.store import ServedModel
from handlers.torchserve import ServeError
from segserve.spans import is_on
from segserve.spec import Task
from segserve.text import read_text

_TEMPLATE = Path(__file__).parent / "config" / "nginx.conf"
_TOKEN_NAME = r"[A-Za-z0-9_-]+"
_TOKEN_SECRET = r"[A-Za-z0-9_~+/=-]{22,}"
"""22 characters of 64 are 128 bits."""
_TOKEN = re.compile(rf"({_TOKEN_NAME})\.{_TOKEN_SECRET}")
_MOST_FILES = 16384
MARGIN_SECONDS = 10
"""TorchServe ends a stuck worker and answers; only if it does not does the gateway."""
PATHS: dict[Task, str] = {"segmentation": "/v1/segment", "classification": "/v1/classify"}
ROUTES = (
    "POST /v1/segment, /v1/classify, /predictions/{model} or /v2/models/{model}/infer, GET /v1/models, /ready or /live"
)


class _Template(string.Template):
    """`@{name}`: a dollar sign begins nginx's own variables."""

    pattern = r"@\{(?:(?P<braced>\w+)|(?P<named>(?!))|(?P<escaped>(?!))|(?P<invalid>))\}"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the gateway knows of a model's name: all its versions wait in it."""

    name: str
    task: Task | None
    version: str
    limit: int
    """Requests it may hold, those that wait included."""
    answer_seconds: int


def places(models: Iterable[ServedModel], *, waiting_batches: int) -> tuple[Place, ...]:
    """One a name. Where several versions are served, requests go to the first, TorchServe's default."""
    first = {model.name: model for model in reversed(tuple(models))}
    return tuple(
        Place(
            name=model.name,
            task=model.task,
            version=model.version,
            limit=model.places * (1 + waiting_batches),
            answer_seconds=model.answer_seconds + MARGIN_SECONDS,
        )
        for model in reversed(first.values())
    )


def taken_over(place: Place, state: VersionState, *, waiting_batches: int) -> Place:
    """The place of a version that answers now, as TorchServe has it."""
    return replace(
        place,
        version=state.version,
        limit=state.places * (1 + waiting_batches),
        answer_seconds=state.answer_seconds + MARGIN_SECONDS,
    )


def find_nginx() -> str:
    """The program's path.

    Raises:
        ServeError: it is not installed.
    """
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ServeError(
            "expected nginx for --gateway, but there is none on the PATH: install it (Debian: apt-get install "
            "nginx-light), or serve without --gateway"
        )
    return found


def read_tokens(path: Path) -> dict[str, str]:
    """Each client's name and its whole token. Lines that begin with # are skipped.

    Raises:
        ValueError: a line is something else, or the file names nobody, or somebody twice. It never quotes a line.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _TOKEN.fullmatch(line)
        if found is None:
            raise ValueError(
                f"expected line {number} of {path} to be NAME.SECRET, the secret of at least 22 letters, digits or "
                "_ ~ + / = -, but it is not: make one with `openssl rand -hex 16`"
            )
        if found[1] in tokens:
            raise ValueError(f"expected each client once in {path}, but {found[1]} is there twice: remove one")
        tokens[found[1]] = line
    if not tokens:
        raise ValueError(f"expected a line NAME.SECRET for each client in {path}, but there is none")
    return tokens


def configuration(
    settings: ServeSettings, gateway: GatewaySettings, models: Sequence[Place], *, folder: Path, torchserve_port: int
) -> str:
    """nginx.conf; `folder` is where nginx keeps what it writes."""
    salt = secrets.token_hex(16)
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _MOST_FILES)
    longest = max(place.answer_seconds for place in models)
    problems = refusals.of_gateway(
        max_body_bytes=gateway.max_body_bytes, routes=ROUTES, models=", ".join(_address(place) for place in models)
    )
    return _Template(_TEMPLATE.read_text()).substitute(
        user=_user(),
        files=files,
        connections=files // 2,
        folder=folder,
        token_name=_TOKEN_NAME,
        token_secret=_TOKEN_SECRET,
        asks_for_tokens="yes" if gateway.tokens else "no",
        token_digests=_lines(_token_digests(gateway, salt=salt), indent=8),
        salt=salt,
        requests_per_second=gateway.requests_per_second,
        burst=gateway.burst,
        connections_of_a_client=gateway.connections,
        places=_lines(_place_lines(models), indent=8),
        models=_lines((f"{n} {_quoted(quote(place.name, safe=''))};" for n, place in enumerate(models)), indent=8),
        listen=f"{settings.host}:{settings.inference_port}" + (" ssl" if gateway.certificate else ""),
        tls=_lines(_tls(gateway), indent=8),
        trusted_proxies=_lines(_trusted_proxies(gateway), indent=8),
        max_body_bytes=gateway.max_body_bytes,
        longest_seconds=longest + MARGIN_SECONDS,
        answer_seconds=longest,
        # Read by workers; without it a client's own header would pass, which means nothing to them then.
        stamp='proxy_set_header X-Request-Start "t=$msec";' if gateway.brownout_ms or is_on(os.environ) else "",
        error_pages=_lines(_error_pages(problems), indent=8),
        problems=_lines(_problem_locations(problems), indent=8),
        mute=_inside(problems[503].body("$http_x_request_id")),
        ops=f"{settings.reachable_host}:{settings.ops_port}",
        upstreams=_lines(_upstreams(models, port=torchserve_port), indent=4),
    )


def _user() -> str:
    """As root, nginx would have its workers become nobody, who cannot reach the run folder."""
    return "user root;" if os.geteuid() == 0 else ""


def _token_digests(gateway: GatewaySettings, *, salt: str) -> Iterator[str]:
    """As nginx's secure_link_md5 computes them. MD5 serves as a one-way function here: collisions are no use."""
    for name, token in (read_tokens(gateway.tokens) if gateway.tokens else {}).items():
        digest = hashlib.md5(f"{salt}{token}".encode(), usedforsecurity=False).digest()
        yield f"~^{name}$ {base64.urlsafe_b64encode(digest).decode().rstrip('=')};"


def _place_lines(models: Sequence[Place]) -> Iterator[str]:
    """Every path under which a model is reached; `?` stands before the query's `model`."""
    for number, place in enumerate(models):
        name = re.escape(quote(place.name, safe=""))
        plain = re.escape(place.name)
        if place.task is not None:
            peers = [other for other in models if other.task == place.task]
            optional = f"({name})?" if len(peers) == 1 else name
            yield f"{_quoted(f'~^{PATHS[place.task]}[?]{optional}$')} {number};"
        yield f"{_quoted(f'~^/predictions/{plain}[?]')} {number};"
        yield f"{_quoted(f'~^/v2/models/{plain}/infer[?]')} {number};"


def _address(place: Place) -> str:
    return place.name if place.task is None else f"{place.name} ({PATHS[place.task]})"


def model_list(models: Sequence[Place]) -> str:
    """The answer to GET /v1/models."""
    return json.dumps(
        {"models": [{"name": place.name, "version": place.version, "task": place.task} for place in models]}
    )


def _tls(gateway: GatewaySettings) -> Iterator[str]:
    if gateway.certificate and gateway.key:
        yield f"ssl_certificate {_quoted(str(gateway.certificate.resolve()))};"
        yield f"ssl_certificate_key {_quoted(str(gateway.key.resolve()))};"
        yield "ssl_protocols TLSv1.2 TLSv1.3;"
        yield "ssl_session_cache shared:tls:5m;"


def _trusted_proxies(gateway: GatewaySettings) -> Iterator[str]:
    yield from (f"set_real_ip_from {network};" for network in gateway.trusted_proxies)
    if gateway.trusted_proxies:
        yield "real_ip_header X-Forwarded-For;"
        yield "real_ip_recursive on;"


def _error_pages(problems: Mapping[int, Refusal]) -> Iterator[str]:
    for found, problem in problems.items():
        yield f"error_page {found} ={problem.status} /-/{found};"


def _problem_locations(problems: Mapping[int, Refusal]) -> Iterator[str]:
    for found, problem in problems.items():
        yield f"location = /-/{found} {{"
        yield "    internal;"
        yield "    default_type application/problem+json;"
        for name, value in {"X-Request-ID": "$id", "X-Content-Type-Options": "nosniff", **problem.headers}.items():
            yield f"    add_header {name} {_quoted(value)} always;"
        yield f"    return {problem.status} '{_inside(problem.body('$id'))}';"
        yield "}"


def _upstreams(models: Sequence[Place], *, port: int) -> Iterator[str]:
    for number, place in enumerate(models):
        yield f"upstream torchserve_{number} {{"
        yield f"    zone torchserve_{number} 64k;"
        yield f"    server 127.0.0.1:{port} max_conns={place.limit};"
        yield "    keepalive 32;"
        yield "}"


def _inside(document: str) -> str:
    """JSON for between single quotes; a dollar sign is nginx's, except where a variable is meant."""
    text = re.sub(r"\$(?!id\b|http_x_request_id\b)", r"\\u0024", document)
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(lines: Iterable[str], *, indent: int) -> str:
    return "\n".join(" " * indent + line for line in lines)
