import base64
import json
import re
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from segserve.api import Options, Request, parse_request
from segserve.problem import Problem

IMAGE = b"\x89PNG the bytes of an image \xff\x00"
CARRIERS = ("query", "form", "json", "headers")
DEFAULTS = {
    "format": (),
    "render": ("index",),
    "masks": "rle",
    "tta": "none",
    "aggregate": "mean",
    "measure": "entropy",
    "classes": (),
    "objects": False,
    "split": "none",
    "min_area": 0,
    "simplify": 0.0,
    "precision": "uint8",
    "name": "image",
    "top_k": 5,
    "deadline_ms": None,
}
FORMS = ("png", "json", "coco", "cvat", "labelstudio", "hf", "npz")


def request(carrier: str, options: Mapping[str, Any], *, accept: str | None = None) -> Request:
    """The same request in each of the contract's ways to send it."""
    headers: dict[str, str] = {} if accept is None else {"accept": accept}
    as_fields = {name: str(value).encode() for name, value in options.items()}
    match carrier:
        case "query":
            return Request(headers={**headers, "content-type": "image/png"}, fields={"body": IMAGE, **as_fields})
        case "form":
            headers["content-type"] = "multipart/form-data; boundary=x"
            return Request(headers=headers, fields={"image": IMAGE, **as_fields})
        case "json":
            document = {"image": base64.b64encode(IMAGE).decode(), **options}
            headers["content-type"] = "application/json; charset=utf-8"
            return Request(headers=headers, fields={"body": json.dumps(document).encode()})
        case "headers":
            named = {f"x-segserve-{name.replace('_', '-')}": str(value) for name, value in options.items()}
            return Request(headers={**headers, **named}, fields={"body": IMAGE})
    raise AssertionError(carrier)


def json_request(body: bytes) -> Request:
    return Request(headers={"content-type": "application/json"}, fields={"body": body})


def refused(asked: Request) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_request(asked)
    return caught.value


@pytest.mark.parametrize("carrier", CARRIERS)
def test_without_options_all_are_at_their_defaults(carrier: str) -> None:
    image, options = parse_request(request(carrier, {}))
    assert image == IMAGE
    assert options.model_dump() == DEFAULTS


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        *[("format", value, (value,)) for value in FORMS],
        ("format", "json, png,json", ("json", "png")),
        *[("render", value, (value,)) for value in ("index", "overlay", "confidence", "uncertainty")],
        ("render", "overlay,index", ("overlay", "index")),
        *[("masks", value, value) for value in ("rle", "polygons", "png", "none")],
        *[("measure", value, value) for value in ("entropy", "mutual-information", "disagreement")],
        ("objects", "true", True),
        ("objects", "false", False),
        ("split", "watershed", "watershed"),
        ("min_area", 20, 20),
        ("simplify", 1.5, 1.5),
        ("precision", "float16", "float16"),
        ("name", "field 7.jpg", "field 7.jpg"),
        *[("tta", value, value) for value in ("none", "hflip", "flips", "d4", "multiscale", "multiscale-hflip")],
        *[("aggregate", value, value) for value in ("mean", "logits", "max", "vote")],
        ("classes", "sky, car", ("sky", "car")),
        ("classes", "sky", ("sky",)),
        ("top_k", 3, 3),
        ("deadline_ms", 250, 250),
    ],
)
def test_every_option_in_every_carrier(carrier: str, name: str, sent: Any, expected: Any) -> None:
    image, options = parse_request(request(carrier, {name: sent}))
    assert image == IMAGE
    assert options.model_dump() == {**DEFAULTS, name: expected}


@pytest.mark.parametrize("carrier", ["json", "form"])
def test_the_contract_s_words_for_the_defaults_are_values(carrier: str) -> None:
    options = parse_request(request(carrier, {"classes": "all", "deadline_ms": "none"}))[1]
    assert (options.classes, options.deadline_ms) == ((), None)


def test_a_form_may_come_unparsed() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--x\r\nContent-Disposition: form-data; '
    body += b'name="image"; filename="a"\r\n\r\n' + IMAGE + b"\r\n--x--\r\n"
    given = Request(headers={"content-type": "multipart/form-data; boundary=x"}, fields={"body": body, "tta": b"d4"})
    image, options = parse_request(given)
    assert (image, options.top_k, options.tta) == (IMAGE, 3, "d4")


def test_base64_may_have_line_breaks() -> None:
    body = json.dumps({"image": base64.encodebytes(IMAGE * 40).decode()}).encode()
    given = Request(headers={"content-type": "application/json"}, fields={"body": body})
    assert parse_request(given)[0] == IMAGE * 40


def test_classes_may_be_a_json_list() -> None:
    assert parse_request(request("json", {"classes": ["sky", "a, b"]}))[1].classes == ("sky", "a, b")


@pytest.mark.parametrize("content_type", ["image/jpeg", "IMAGE/PNG", "application/octet-stream", "image/*", None])
def test_bytes_of_these_types_are_an_image(content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert parse_request(Request(headers=headers, fields={"body": IMAGE}))[0] == IMAGE


def test_the_body_wins_over_the_query_and_the_query_over_headers() -> None:
    body = json.dumps({"image": base64.b64encode(IMAGE).decode(), "tta": "d4"}).encode()
    headers = {"x-segserve-tta": "hflip", "x-segserve-top-k": "7", "x-segserve-render": "overlay"}
    asked = Request(
        headers={**headers, "content-type": "application/json"}, fields={"body": body, "tta": b"flips", "top_k": b"8"}
    )
    options = parse_request(asked)[1]
    assert (options.tta, options.top_k, options.render) == ("d4", 8, ("overlay",))


def test_the_request_id_is_no_option() -> None:
    asked = Request(headers={"x-segserve-request-id": "7", "x-request-id": "8"}, fields={"body": IMAGE})
    assert parse_request(asked)[1] == Options()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, ()),
        ("", ()),
        ("*/*", ()),
        ("image/png", ()),
        ("image/*", ()),
        ("text/html", ()),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", ()),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", ()),
        ("application/json", ("json",)),
        ("Application/JSON; charset=utf-8", ("json",)),
        ("application/*", ("json",)),
        ("application/json, text/plain, */*", ("json",)),
        ("image/png, application/json", ()),
        ("application/json, image/png", ()),
        ("application/json;q=0.5, image/png", ()),
        ("application/json, image/png;q=0.5", ("json",)),
        ("application/json ; q=0.3 , image/* ; q=0.2", ("json",)),
        ("application/json;q=0.2, image/*;q=0.3", ()),
        ("application/json;q=0", ()),
        ("image/png;q=0, */*", ("json",)),
        ("image/png;q=0.1, */*;q=0.2", ("json",)),
        ("application/*, application/json;q=0.1, image/png;q=0.5", ()),
        ("application/json;q=much", ("json",)),
        (";;,,;q=", ()),
        ("multipart/mixed", ("png", "json")),
        ("multipart/*, image/png;q=0.9", ("png", "json")),
        ("multipart/mixed, image/png", ()),
    ],
)
def test_accept_chooses_the_format(accept: str | None, expected: tuple[str, ...]) -> None:
    assert parse_request(request("query", {}, accept=accept))[1].format == expected


@pytest.mark.parametrize(("option", "accept"), [("png", "application/json"), ("json", "image/png")])
def test_the_option_wins_over_accept(option: str, accept: str) -> None:
    assert parse_request(request("query", {"format": option}, accept=accept))[1].format == (option,)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "format",
            "jpeg",
            "expected 'format' to be 'png', 'json', 'coco', 'cvat', 'labelstudio', 'hf' or 'npz', but got",
        ),
        ("format", "png,jpeg", "or 'npz', but got 'jpeg'"),
        ("render", "3d", "expected 'render' to be 'index', 'overlay', 'confidence' or 'uncertainty', but got '3d'"),
        ("tta", "D4", "'none', 'hflip', 'flips', 'd4', 'multiscale' or 'multiscale-hflip', but got 'D4'"),
        ("aggregate", "sum", "expected 'aggregate' to be 'mean', 'logits', 'max' or 'vote', but got 'sum'"),
        ("top_k", "many", "expected 'top_k' to be a valid integer"),
        ("top_k", 0, "expected 'top_k' to be greater than or equal to 1, but got"),
        ("top_k", 1.5, "expected 'top_k' to be a valid integer"),
        ("min_area", -1, "expected 'min_area' to be greater than or equal to 0, but got"),
        ("simplify", "nan", "expected 'simplify' to be"),
        ("simplify", "inf", "expected 'simplify' to be a finite number"),
        ("objects", "some", "expected 'objects' to be a valid boolean"),
        ("name", "", "expected 'name' to have at least 1 character, but got ''"),
        ("deadline_ms", -1, "expected 'deadline_ms' to be greater than or equal to 1, but got"),
        (
            "ttta",
            "d4",
            "'ttta' is not a known key: remove it or correct its spelling; known are format, render, masks,",
        ),
    ],
)
def test_a_wrong_option_is_answered_with_the_choices(carrier: str, name: str, value: Any, words: str) -> None:
    problem = refused(request(carrier, {name: value}))
    assert (problem.kind, problem.status) == ("bad-option", 400)
    assert words in problem.detail


def test_wrong_masks_are_answered_with_the_choices() -> None:
    detail = refused(request("query", {"masks": "contours"})).detail
    assert all(repr(choice) in detail for choice in ("rle", "polygons", "png", "none"))
    assert detail.endswith("but got 'contours'")


def test_all_wrong_options_are_named_at_once() -> None:
    detail = refused(request("query", {"tta": "x", "top_k": "y"})).detail
    assert "'tta'" in detail
    assert "'top_k'" in detail


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, 7, True])
def test_classes_of_another_kind_are_refused(value: Any) -> None:
    problem = refused(request("json", {"classes": value}))
    assert problem.status == 400
    assert "'classes" in problem.detail


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain; charset=utf-8", "video/mp4", "png"]
)
def test_other_content_types_are_answered_with_how_to_send(content_type: str) -> None:
    problem = refused(Request(headers={"content-type": content_type}, fields={"\x89PNG\r\n": b"garbage"}))
    assert (problem.kind, problem.status) == ("unsupported-type", 415)
    assert f"got Content-Type '{content_type.partition(';')[0]}'" in problem.detail
    assert "curl: --data-binary @FILE -H 'Content-Type: image/jpeg'" in problem.detail
    assert "curl: -F image=@FILE" in problem.detail


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expected a JSON object, but it cannot be parsed"),
        (b"{", "expected a JSON object, but it cannot be parsed"),
        (b"\xff\xfe{}", "expected a JSON object, but it cannot be parsed"),
        (b"[" * 9_000, "expected a JSON object, but it cannot be parsed"),
        (b"[1]", "expected a JSON object with the image as base64 text under 'image'"),
        (b"null", "expected a JSON object with the image as base64 text under 'image'"),
        (b'{"tta": "d4"}', "expected a JSON object with the image as base64 text under 'image'"),
        (b'{"image": 7}', "expected a JSON object with the image as base64 text under 'image'"),
        (b'{"image": null}', "expected a JSON object with the image as base64 text under 'image'"),
        (b'{"image": "not base64!"}', "expected base64 under 'image', but it cannot be decoded"),
        (b'{"image": "!AAAA"}', "expected base64 under 'image', but it cannot be decoded"),
        (b'{"image": "AAA"}', "expected base64 under 'image', but it cannot be decoded"),
        ('{"image": "äöü"}'.encode(), "expected base64 under 'image', but it cannot be decoded"),
    ],
)
def test_wrong_json_bodies(body: bytes, words: str) -> None:
    problem = refused(json_request(body))
    assert (problem.kind, problem.status) == ("bad-body", 400)
    assert words in problem.detail


@pytest.mark.parametrize(
    ("fields", "words"),
    [({}, "but got no field"), ({"picture": IMAGE, "tta": b"d4"}, "but got picture, tta")],
)
def test_a_form_needs_the_field_image(fields: dict[str, bytes], words: str) -> None:
    problem = refused(Request(headers={"content-type": "multipart/form-data; boundary=x"}, fields=fields))
    assert (problem.kind, problem.status) == ("bad-body", 400)
    assert "expected a file field 'image' in the form" in problem.detail
    assert words in problem.detail


@pytest.mark.parametrize("depth", [10, 300, 500, 700, 900, 990])
@pytest.mark.parametrize("name", ["tta", "classes", "top_k", "unknown"])
def test_nested_json_is_a_clients_fault_at_any_depth(name: str, depth: int) -> None:
    body = f'{{"image": "", "{name}": {"[" * depth}{"]" * depth}}}'.encode()
    assert refused(json_request(body)).status == 400


@pytest.mark.parametrize(
    "rest",
    [
        f'"classes": {[1] * 300_000}',
        ", ".join(f'"k{number}": 0' for number in range(300_000)),
        f'"classes": {"[" * 300_000}',
        f'"tta": [{"{}," * 300_000}{{}}]',
    ],
    ids=["entries", "keys", "lists", "objects"],
)
def test_wide_json_is_refused_before_it_is_read(rest: str) -> None:
    """pydantic's faults would take a kilobyte each."""
    body = f'{{"image": "", {rest}}}'.encode()
    tracemalloc.start()
    try:
        problem = refused(json_request(body))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert (problem.kind, problem.status) == ("bad-body", 400)
    assert re.match("expected at most 10000 keys and list entries in JSON, but got [36]0000[0-9]", problem.detail)


def test_of_a_list_the_first_fault_is_told() -> None:
    assert refused(request("json", {"classes": [1] * 5000})).detail.count("expected") == 1
    assert refused(request("form", {"render": ",".join(map(str, range(5000)))})).detail.count("expected") == 1


def test_a_list_as_text_is_bounded() -> None:
    assert "expected at most 65536 characters" in refused(request("form", {"classes": "a," * 40_000})).detail


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_is_named_twice_is_given_once(carrier: str) -> None:
    twice = {"format": ["png", "json", "png"], "render": ["overlay", "overlay"], "classes": ["a", "b", "a"]}
    raw = twice if carrier == "json" else {name: ",".join(values) for name, values in twice.items()}
    _, options = parse_request(request(carrier, raw))
    assert (options.format, options.render, options.classes) == (("png", "json"), ("overlay",), ("a", "b"))


def test_bytes_that_are_no_text_are_a_wrong_option() -> None:
    problem = refused(Request(headers={}, fields={"body": IMAGE, "tta": b"\xff\xfe"}))
    assert problem.status == 400
    assert "expected 'tta' to be 'none', 'hflip'" in problem.detail
