"""Which request comes next, and what its answer is worth."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from loadtest.answers import REFUSALS, WrongAnswer, check_json, check_png, problem_of
from loadtest.profile import Ask, Profile
from loadtest.record import Outcome
from loadtest.uploads import KINDS, STATUS, Upload, make_faulty, make_upload
from segserve.spec import Plan, Task

VIEWS: Mapping[Plan, int] = {"none": 1, "hflip": 2, "flips": 4, "d4": 8, "multiscale": 3, "multiscale-hflip": 6}
"""Of each plan in `segserve.tta`, which would bring torch along."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request that is ready to be sent."""

    ask: Ask
    path: str
    upload: Upload
    headers: Mapping[str, str]

    @property
    def views(self) -> int:
        """The network sees the image so many times."""
        return VIEWS[self.ask.tta]

    def judge(self, *, status: int, content_type: str, body: bytes) -> tuple[str, Outcome]:
        """What became of it: `Sent.kind` and `Sent.outcome`.

        Raises:
            WrongAnswer: the answer is not what the contract promises.
        """
        expected = 200 if self.ask.fault is None else STATUS[self.ask.fault]
        if status != expected and status in REFUSALS:
            return f"{status} {problem_of(body)}", "refused"
        if status != expected:
            raise WrongAnswer(f"expected status {expected}, but got {status}: {body[:200].decode(errors='replace')}")
        accept = self.ask.accept if self.ask.fault is None else "application/problem+json"
        if content_type.partition(";")[0].strip() != accept:
            raise WrongAnswer(f"expected {accept}, but got {content_type or 'no Content-Type'}")
        self._check(body)
        return "ok", "ok"

    def _check(self, body: bytes) -> None:
        if self.ask.fault is not None:
            problem_of(body)
        elif self.ask.accept == "image/png":
            check_png(body, self.upload)
        else:
            check_json(body, self.upload, task=self.ask.task)


def traffic(profile: Profile, models: Mapping[Task, str], *, seed: int) -> Iterator[Message]:
    """Messages without end, drawn by the profile's weights; the same ones for the same seed.

    All images are made at once, before the first message: that takes time.
    """
    choices = [_messages(ask, models) for ask in profile.requests]
    return _drawn(choices, [ask.weight for ask in profile.requests], random.Random(seed))


def _drawn(choices: Sequence[Sequence[Message]], weights: Sequence[float], rng: random.Random) -> Iterator[Message]:
    while True:
        [messages] = rng.choices(choices, weights)
        yield rng.choice(messages)


def _messages(ask: Ask, models: Mapping[Task, str]) -> list[Message]:
    if ask.fault is not None:
        faulty, more = make_faulty(ask.fault)
        return [_message(ask, models, faulty, more)]
    return [
        _message(ask, models, make_upload(width, height, kind), {})
        for (width, height), kind in product(ask.sizes, KINDS)
    ]


def _message(ask: Ask, models: Mapping[Task, str], upload: Upload, more: Mapping[str, str]) -> Message:
    headers = {"Content-Type": upload.content_type, "Accept": ask.accept, "X-Segserve-Tta": ask.tta, **more}
    return Message(ask=ask, path=f"/predictions/{models[ask.task]}", upload=upload, headers=headers)
