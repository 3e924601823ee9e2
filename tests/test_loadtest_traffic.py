"""Profiles, what they send, and the judgement of answers."""

import io
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from loadtest.answers import WrongAnswer
from loadtest.profile import PROFILES, SIZES, Ask, Profile, Step, read_profile
from loadtest.traffic import VIEWS, Message, traffic
from loadtest.uploads import FAULTS, STATUS, Upload, make_faulty, make_upload
from segserve.api import Request
from segserve.artifact import Artifact
from segserve.choice import build_engine
from segserve.predictor import build_predictor
from segserve.service import Service
from segserve.spec import Task
from segserve.tta import PLANS

MODELS: dict[Task, str] = {"segmentation": "masks", "classification": "labels"}
PNG, JSON = "image/png", "application/json"


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.toml")))
def test_every_profile_can_be_read(name: str) -> None:
    profile = read_profile(name)
    assert profile.about.endswith((".", "?"))
    assert profile.step_at(0.0) == 0 and profile.step_at(profile.seconds) is None


def test_steps_follow_each_other() -> None:
    profile = Profile(about="", steps=(Step(seconds=2, load=1), Step(seconds=3, load=4)))
    assert profile.starts == (0, 2, 5)
    assert [profile.step_at(at) for at in (0, 1.9, 2, 4.9, 5)] == [0, 0, 1, 1, None]


def test_arrivals_are_a_poisson_process_with_the_rate_of_each_step() -> None:
    profile = Profile(about="", loop="open", steps=(Step(seconds=100, load=9), Step(seconds=50, load=100)))
    due = list(profile.arrivals(seed=3))
    assert due == sorted(due) == list(profile.arrivals(seed=3)) != list(profile.arrivals(seed=4))
    first = [at for at in due if at < 100]
    assert abs(len(first) - 900) < 3 * 900**0.5
    assert abs(len(due) - len(first) - 5000) < 3 * 5000**0.5
    gaps = torch.tensor(first).diff()
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.1)  # of the exponential distribution


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('about = ""\nsteps = []', "expected 'steps' to have at least 1 item"),
        ('about = ""\nstep = 1', "'step' is not a known key"),
        (
            'about = ""\nsteps = [{ seconds = 1, load = 1.5 }]',
            "expected a whole number of users, but got 1.5: round it",
        ),
        (
            'about = ""\nsteps = [{ seconds = 1, load = 1 }]\n[[requests]]\ntask = "classification"',
            "expected accept to be 'application/json' for labels, but got 'image/png': change it",
        ),
        (
            'about = ""\nsteps = [{ seconds = 1, load = 1 }]\n[[requests]]\nsizes = [[0, 9]]',
            "greater than or equal to 1",
        ),
        ("about", "to be TOML, but it is not"),
    ],
)
def test_a_wrong_profile_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.toml") as caught:
        read_profile(str(path))
    assert sentence in str(caught.value)


def test_views_are_those_of_the_plans() -> None:
    assert {plan: len(views) for plan, views in PLANS.items()} == VIEWS


def test_messages_are_drawn_by_weight_and_are_the_same_for_a_seed() -> None:
    asks = (Ask(weight=3, sizes=((8, 6), (9, 7))), Ask(task="classification", accept=JSON, sizes=((8, 6),)))
    profile = Profile(about="", steps=(Step(seconds=1, load=1),), requests=asks)
    messages = list(islice(traffic(profile, MODELS, seed=1), 2000))
    assert messages == list(islice(traffic(profile, MODELS, seed=1), 2000))
    assert sum(message.ask == asks[0] for message in messages) / 2000 == pytest.approx(0.75, abs=0.03)
    assert {(m.path, m.upload.width, m.upload.content_type) for m in messages} == {
        *(("/predictions/masks", width, kind) for width in (8, 9) for kind in ("image/png", "image/jpeg")),
        *(("/predictions/labels", 8, kind) for kind in ("image/png", "image/jpeg")),
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_the_smallest_images_can_be_sent(size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(make_upload(*size, "JPEG").body)) as image:
        assert image.size == size


@pytest.mark.parametrize("size", SIZES)
def test_images_are_what_they_say(size: tuple[int, int]) -> None:
    upload = make_upload(*size, "PNG")
    with Image.open(io.BytesIO(upload.body)) as image:
        assert (image.size, image.mode, image.format) == (size, "RGB", "PNG")
        assert len(image.getcolors(1 << 20) or ()) > 1000
    assert upload.body != make_upload(*size, "PNG", seed=1).body


def test_the_service_refuses_each_fault_as_expected(artifact: Artifact) -> None:
    engine = build_engine(artifact, device=torch.device("cpu"), choice=None)
    service = Service(artifact, build_predictor(artifact.spec, engine), name="masks", version="1", pool_size=1)
    for fault in FAULTS:
        upload, more = make_faulty(fault)
        message = Message(ask=Ask(fault=fault), path="", upload=upload, headers=more)
        headers = {"content-type": upload.content_type, **{name.lower(): text for name, text in more.items()}}
        [answer] = service.handle([Request(headers=headers, fields={"body": upload.body})])
        assert answer.status == STATUS[fault], fault
        assert message.judge(status=answer.status, content_type=answer.content_type, body=answer.body) == ("ok", "ok")


COMMON = {"model": {}, "uncertainty": {}, "tta": {}, "timings_ms": {}, "image": {"width": 4, "height": 3}}
LABELS = [{"probability": 0.9}, {"probability": 0.1}]
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0%c\0\0\0%c"
MASK, OUTLINES, TAGS = Ask(), Ask(accept=JSON), Ask(task="classification", accept=JSON)
CASES: list[tuple[Ask, object, str | None]] = [
    (MASK, PNG_HEAD % (4, 3), None),
    (MASK, PNG_HEAD % (3, 4), "expected the upload's size 4x3, but got 3x4"),
    (MASK, PNG_HEAD[:16], "expected a PNG"),
    (MASK, b"\xff\xd8\xff\xe0" + bytes(30), "expected a PNG"),
    (OUTLINES, {**COMMON, "classes": [{"pixels": 5}, {"pixels": 7}]}, None),
    (OUTLINES, {**COMMON, "classes": [{"pixels": 5}]}, "share out 12 pixels, but got 5"),
    (OUTLINES, {**COMMON, "classes": [{}]}, "expected the contract's fields, but got KeyError: 'pixels'"),
    (OUTLINES, COMMON, "expected the keys"),
    (OUTLINES, b"<html>", "expected JSON"),
    (TAGS, {**COMMON, "labels": LABELS}, None),
    (TAGS, {**COMMON, "labels": LABELS[::-1]}, "the largest first"),
    (TAGS, {**COMMON, "labels": []}, "the largest first"),
    (TAGS, {**COMMON, "image": {"width": 1, "height": 1}, "labels": []}, "but got 1x1"),
    (TAGS, [], "expected the keys"),
]


@pytest.mark.parametrize(("ask", "answer", "complaint"), CASES)
def test_answers_are_checked(ask: Ask, answer: object, complaint: str | None) -> None:
    message = Message(ask=ask, path="", upload=UPLOAD, headers={})
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    if complaint is None:
        assert message.judge(status=200, content_type=f"{ask.accept}; charset=x", body=body) == ("ok", "ok")
        return
    with pytest.raises(WrongAnswer) as caught:
        message.judge(status=200, content_type=ask.accept, body=body)
    assert complaint in str(caught.value)


UPLOAD = Upload(width=4, height=3, content_type=PNG, body=b"")
PROBLEM = b'{"type": "urn:segserve:problem:overloaded"}'


def test_a_refusal_is_told_from_a_fault() -> None:
    message = Message(ask=MASK, path="", upload=UPLOAD, headers={})
    refused = message.judge(status=429, content_type="application/problem+json", body=PROBLEM)
    assert refused == ("429 overloaded", "refused")
    for status, content_type, body, complaint in [
        (429, "text/html", b"<html>", "expected a problem document, but got b'<html>'"),
        (500, "application/problem+json", PROBLEM, "expected status 200, but got 500"),
        (200, "text/html", PNG_HEAD % (4, 3), "expected image/png, but got text/html"),
        (200, "", PNG_HEAD % (4, 3), "expected image/png, but got no Content-Type"),
    ]:
        with pytest.raises(WrongAnswer, match=complaint):
            message.judge(status=status, content_type=content_type, body=body)
