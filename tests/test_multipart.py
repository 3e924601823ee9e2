"""Multipart bodies, made by an independent client (httpx) and broken by hand."""

import base64

import httpx
import pytest

from segserve.multipart import MAX_PARTS, read_form
from segserve.problem import Problem

IMAGE = bytes(range(256)) * 8192


def form(image: bytes) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://here", files={"image": ("a.png", image)}, data={"tta": "flips"})
    return request.headers["content-type"], request.read()


def test_files_and_fields_come_out_as_they_went_in() -> None:
    assert read_form(*form(IMAGE)) == {"image": IMAGE, "tta": b"flips"}


@pytest.mark.parametrize("image", [b"", b"\r\n", b"\r\n--", b"--\r\n"])
def test_line_breaks_and_dashes_are_no_boundaries(image: bytes) -> None:
    assert read_form(*form(image))["image"] == image


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x"]
)
def test_without_a_boundary_it_is_refused(content_type: str) -> None:
    with pytest.raises(Problem, match="expected multipart/form-data, but it cannot be parsed") as caught:
        read_form(content_type, form(IMAGE)[1])
    assert caught.value.status == 400


def test_a_part_in_base64_is_told_to_come_as_it_is() -> None:
    """The parser counts the line breaks among the groups of four."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Transfer-Encoding: base64\r\n'
    body = head + b"\r\n" + base64.encodebytes(bytes(100)) + b"\r\n--x--\r\n"
    with pytest.raises(Problem, match="and send each part as it is, without Content-Transfer-Encoding"):
        read_form("multipart/form-data; boundary=x", body)


@pytest.mark.parametrize("body", [b"", b"garbage", b"--", b"\xff" * 100])
def test_garbage_has_no_image_or_is_refused(body: bytes) -> None:
    content_type, _ = form(IMAGE)
    try:
        assert "image" not in read_form(content_type, body)
    except Problem as problem:
        assert problem.status == 400


def test_a_form_of_too_many_fields_is_refused_at_once() -> None:
    fields = {f"field-{number}": "" for number in range(MAX_PARTS)}
    request = httpx.Request("POST", "http://here", files={"image": ("a.png", IMAGE)}, data=fields)
    with pytest.raises(Problem, match="expected at most 256 fields in the form, but got more: send fewer") as caught:
        read_form(request.headers["content-type"], request.read())
    assert caught.value.kind == "bad-body"
    fields.popitem()
    request = httpx.Request("POST", "http://here", files={"image": ("a.png", IMAGE)}, data=fields)
    assert len(read_form(request.headers["content-type"], request.read())) == MAX_PARTS


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_form_cut_short_has_no_image_or_is_refused(share: float) -> None:
    content_type, body = form(IMAGE)
    try:
        assert "image" not in read_form(content_type, body[: int(len(body) * share)])
    except Problem as problem:
        assert problem.status == 400
