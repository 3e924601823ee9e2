"""The ops port: /metrics for Prometheus, /ready for load balancers, /live for whoever restarts the service."""

import json
import re
import socketserver
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, cast, get_args
from urllib.parse import parse_qs, urlsplit

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from handlers import refusals
from handlers.health import Health
from handlers.refusals import Why
from handlers.throughput import Throughput

_LARGEST_IGNORED_BODY = 65536
_LENGTH = re.compile(r"[0-9]{1,18}")


class OpsServer(ThreadingHTTPServer):
    """Listens from the moment it is made; answers between `start` and `close`."""

    daemon_threads = True

    def __init__(
        self, host: str, port: int, *, health: Health, metrics: Collector, throughput: Throughput | None = None
    ) -> None:
        super().__init__((host, port), _OpsHandler)
        self.health = health
        self.metrics = metrics
        self.throughput = throughput
        """With a gateway only, which asks what to tell clients."""

    def server_bind(self) -> None:
        """As the base class, without its reverse look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="ops", daemon=True).start()

    def close(self) -> None:
        """Stop answering and listening."""
        self.shutdown()
        self.server_close()


class _OpsHandler(BaseHTTPRequestHandler):
    server: OpsServer
    protocol_version = "HTTP/1.1"
    server_version = "segserve"
    sys_version = ""
    timeout = 30
    """Seconds after which an idle connection is closed."""
    wbufsize = -1
    disable_nagle_algorithm = True
    pages: ClassVar = {"/metrics": "_metrics", "/ready": "_ready", "/live": "_live"}

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        page = "_refusal" if path == "/refusal" and self.server.throughput else self.pages.get(path)
        if page:
            getattr(self, page)()
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"detail": f"expected one of {', '.join(self.pages)}"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.close_connection = True
        length = self.headers.get("Content-Length", "0").strip()
        if not _LENGTH.fullmatch(length):
            detail = f"expected Content-Length to be a number of bytes, but got {length[:100]!r}: send GET or HEAD"
            self._send_json(HTTPStatus.BAD_REQUEST, {"detail": detail}, headers={"Connection": "close"})
            return
        self.rfile.read(min(int(length), _LARGEST_IGNORED_BODY))
        allowed = {"Allow": "GET, HEAD", "Connection": "close"}
        self._send_json(HTTPStatus.METHOD_NOT_ALLOWED, {"detail": "expected GET or HEAD"}, headers=allowed)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_POST

    def _metrics(self) -> None:
        self._send(HTTPStatus.OK, generate_latest(self.server.metrics), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _ready(self) -> None:
        health = self.server.health
        reasons = health.reasons()
        models: dict[str, Any] = {name: {} for name in health.names}
        for version in health.versions:
            models[version.name][version.version] = version.workers
        if reasons:
            status = "draining" if health.draining else "unready"
            self._send_unavailable({"status": status, "reasons": reasons, "models": models})
        else:
            self._send_json(HTTPStatus.OK, {"status": "ready", "models": models})

    def _live(self) -> None:
        if self.server.health.is_alive():
            self._send_json(HTTPStatus.OK, {"status": "live"})
        else:
            self._send_unavailable({"status": "dead", "reasons": ["TorchServe is not running or does not answer"]})

    def _refusal(self) -> None:
        """For the gateway: `?model=NUMBER&why=...`."""
        throughput, health = self.server.throughput, self.server.health
        query = parse_qs(urlsplit(self.path).query)
        why, number = query.get("why", [""])[0], query.get("model", [""])[0]
        if throughput is None or why not in get_args(Why) or number not in map(str, range(len(throughput.places))):
            return self._send_json(HTTPStatus.BAD_REQUEST, {"detail": "expected the number of a model, and why"})
        name = tuple(throughput.places)[int(number)]
        refusal = refusals.of_model(cast(Why, why), name, health=health, throughput=throughput)
        body = refusal.body().encode()
        return self._send(
            HTTPStatus(refusal.status), body, content_type="application/problem+json", headers=refusal.headers
        )

    def _send_unavailable(self, content: dict[str, Any]) -> None:
        headers = {"Retry-After": str(refusals.SHORT_SECONDS)}
        self._send_json(HTTPStatus.SERVICE_UNAVAILABLE, content, headers=headers)

    def _send_json(self, status: HTTPStatus, content: dict[str, Any], *, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode() + b"\n", content_type="application/json", headers=headers)

    def _send(
        self, status: HTTPStatus, body: bytes, *, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Cache-Control": "no-store", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; they are not worth a line."""
