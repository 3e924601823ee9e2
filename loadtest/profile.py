"""What a load test sends, and when: read from a TOML file in `loadtest/profiles`."""

import tomllib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from loadtest.simulation import poisson
from loadtest.uploads import Fault
from segserve.settings import Settings, explain
from segserve.spec import Plan, Positive, Task

PROFILES = Path(__file__).parent / "profiles"
SIZES = ((320, 240), (333, 251), (640, 480), (768, 1024))
"""Width and height in pixels; one is odd, one is upright."""


Side = Annotated[int, Field(ge=1)]


class Ask(Settings):
    """One kind of request."""

    weight: float = Field(default=1, gt=0)
    """How often, compared with the others."""
    task: Task = "segmentation"
    accept: Literal["image/png", "application/json"] = "image/png"
    tta: Plan = "none"
    sizes: tuple[tuple[Side, Side], ...] = Field(default=SIZES, min_length=1)
    """Width and height of its images, each as often as the others, half of them JPEG and half of them PNG."""
    fault: Fault | None = None
    """What is wrong with it; it is answered rightly if it is refused with the status that the contract says."""

    @model_validator(mode="after")
    def _labels_are_json(self) -> Self:
        if self.task == "classification" and self.accept == "image/png":
            raise ValueError("expected accept to be 'application/json' for labels, but got 'image/png': change it")
        return self

    @property
    def name(self) -> str:
        """Of its kind, for tables."""
        if self.fault is not None:
            return f"bad: {self.fault}"
        form = "png" if self.accept == "image/png" else "json"
        return f"{self.task} {form}" + ("" if self.tta == "none" else f" tta={self.tta}")


MIX = (
    Ask(weight=5),
    Ask(weight=1, tta="hflip"),
    Ask(weight=2, accept="application/json"),
    Ask(weight=3, task="classification", accept="application/json"),
    Ask(weight=1, task="classification", accept="application/json", tta="hflip"),
)
"""Both tasks; an image for an image is the most common call."""


class Step(Settings):
    """A load that stays the same for a while."""

    seconds: Positive
    load: Positive
    """Users in a closed loop, requests a second in an open one."""


class Profile(Settings):
    """A load test.

    In a closed loop, each user sends its next request when the last one is answered: what is slow is asked less. In an
    open loop, requests leave at times that were fixed before, as those of many independent clients do, whatever becomes
    of earlier ones; an answer's time counts from when its request was due.
    """

    about: str
    loop: Literal["closed", "open"] = "closed"
    steps: tuple[Step, ...] = Field(min_length=1)
    requests: tuple[Ask, ...] = Field(default=MIX, min_length=1)

    @model_validator(mode="after")
    def _users_are_whole(self) -> Self:
        for step in self.steps:
            if self.loop == "closed" and not step.load.is_integer():
                raise ValueError(f"expected a whole number of users, but got {step.load:g}: round it")
        return self

    @property
    def unit(self) -> str:
        """Of a step's load."""
        return "users" if self.loop == "closed" else "requests a second"

    @property
    def starts(self) -> tuple[float, ...]:
        """Of each step, and the end of the last one, in seconds."""
        return (0.0, *accumulate(step.seconds for step in self.steps))

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.starts[-1]

    def step_at(self, seconds: float) -> int | None:
        """The index of the step at a time; None: it is over."""
        return next((index for index, end in enumerate(self.starts[1:]) if seconds < end), None)

    def arrivals(self, *, seed: int) -> Iterator[float]:
        """Of an open loop: seconds at which requests are due, a Poisson process with the rate of each step."""
        rng = np.random.default_rng(seed)
        for start, step in zip(self.starts, self.steps, strict=False):
            yield from poisson(step.load, seconds=step.seconds, seed=rng, start=start)


def read_profile(name: str) -> Profile:
    """One of `PROFILES` by its name, or a file of one's own by its path.

    Raises:
        ValueError: there is none, it is not TOML, or has keys or values that are not known.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise ValueError(f"expected a profile, {known} or the path of a .toml file, but there is none named {name}")
    try:
        return Profile.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected {path} to be TOML, but it is not: {error}") from None
