import base64
import io
import json
import logging
from typing import Any

import pytest
from PIL import Image

from segserve.api import Request
from segserve.artifact import Artifact
from segserve.log import LONGEST_ID, start_log
from segserve.predictor import build_predictor
from segserve.service import Service
from tests.conftest import ToyEngine, random_image
from tests.pictures import saved

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def written() -> io.StringIO:
    stream = io.StringIO()
    start_log(stream)
    return stream


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def service(artifact: Artifact, engine: ToyEngine | None = None) -> Service:
    return Service(artifact, build_predictor(artifact.spec, engine or ToyEngine()), name="logged", version="1.0")


def png() -> bytes:
    return saved(Image.fromarray(random_image(20, 30)))


def request(body: bytes, **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(headers={"content-type": "image/png", **named}, fields={"body": body})


def test_a_line_is_an_object_whatever_is_in_it(written: io.StringIO) -> None:
    logging.getLogger("segserve.some").warning("two\nlines, %s", '"quoted"', extra={"fields": {"number": 3}})
    [entry] = entries(written)
    assert entry["message"] == 'two\nlines, "quoted"' and entry["number"] == 3
    assert (entry["level"], entry["logger"]) == ("WARNING", "segserve.some")
    assert entry["time"].endswith("+00:00")
    assert written.getvalue().startswith('{"time": '), "handlers/config/log4j2.xml knows them by it"


def test_an_error_brings_its_traceback(written: io.StringIO) -> None:
    logging.getLogger("segserve").error("failed", exc_info=ZeroDivisionError("x"))
    assert entries(written)[0]["exception"] == "ZeroDivisionError: x"


def test_other_libraries_do_not_write_here(written: io.StringIO) -> None:
    logging.getLogger("PIL").error("not ours")
    assert written.getvalue() == ""


def test_each_request_has_a_line(written: io.StringIO, artifact: Artifact) -> None:
    good = request(png(), x_request_id="abc", traceparent=TRACEPARENT)
    service(artifact).handle([good, request(b"no image")])
    first, second = entries(written)
    assert (first["request_id"], first["trace_id"], first["parent_id"]) == ("abc", *TRACEPARENT.split("-")[1:3])
    assert (first["model"], first["version"], first["status"], first["problem"]) == ("logged", "1.0", 200, None)
    assert (first["images"], first["batch"]) == (["30x20"], 2)
    assert first["stages_ms"].keys() >= {"decode", "forward", "encode"} and first["seconds"] > 0
    assert (second["request_id"], second["status"], second["problem"]) == (None, 415, "unsupported-type")
    assert second["trace_id"] != first["trace_id"]


def test_an_internal_error_is_found_by_its_request(written: io.StringIO, artifact: Artifact) -> None:
    class Broken(ToyEngine):
        def __call__(self, images_BCHW: Any) -> Any:
            raise LookupError("broken")

    service(artifact, Broken()).handle([request(png(), x_request_id="abc", traceparent=TRACEPARENT)])
    failed = [entry for entry in entries(written) if entry["level"] == "ERROR"]
    assert failed[0]["request_id"] == "abc" and failed[0]["trace_id"] == TRACEPARENT.split("-")[1]
    assert "LookupError: broken" in failed[0]["exception"]


def test_nothing_of_an_image_is_written(written: io.StringIO, artifact: Artifact) -> None:
    body = png()
    document = json.dumps({"image": base64.b64encode(body).decode(), "render": "overlay"}).encode()
    answers = service(artifact).handle(
        [request(body), request(document, content_type="application/json"), request(body[:-40])]
    )
    lines = written.getvalue().splitlines()
    assert [answer.status for answer in answers] == [200, 200, 422] and len(lines) == 3
    assert max(map(len, lines)) < 700
    assert base64.b64encode(body).decode()[:24] not in written.getvalue()


def test_a_clients_id_is_cut(written: io.StringIO, artifact: Artifact) -> None:
    service(artifact).handle([request(png(), x_request_id="a" * 1000)])
    assert entries(written)[0]["request_id"] == "a" * LONGEST_ID
