from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from segserve.settings import Settings, explain

SIDE = "expected 'sides.0.size' to be a valid integer, unable to parse string as an integer, but got 'x'"
"""And not a word of the list, which is too short without this one."""


class Inner(Settings):
    size: int = 1


class Example(Settings):
    name: str
    key: str = Field(default="a", pattern="^[a-z]$")
    mode: Literal["fast", "exact"] = "fast"
    count: int = Field(default=1, ge=1)
    inner: Inner = Inner()
    folder: Path | None = None
    sides: tuple[Inner, ...] = Field(default=(Inner(),), min_length=1, max_length=2)

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 5:
            raise ValueError(f"expected a short name, but got {name!r}")
        return name

    @model_validator(mode="after")
    def _exact_is_single(self) -> "Example":
        if self.mode == "exact" and self.count > 1:
            raise ValueError(f"expected count 1 with mode exact, but got {self.count}")
        return self


def reason(values: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate(values)
    return explain(caught.value, **options)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "expected a value for 'name', but none was given"),
        ({"name": "a", "mode": "slow"}, "expected 'mode' to be 'fast' or 'exact', but got 'slow'"),
        ({"name": "a", "count": 0}, "expected 'count' to be greater than or equal to 1, but got 0"),
        ({"name": "a", "inner": {"size": []}}, "expected 'inner.size' to be a valid integer, but got []"),
        ({"name": "a", "folder": 5}, "expected 'folder' to be a path, but got 5"),
        ({"name": "a", "key": "A"}, "expected 'key' to match ^[a-z]$, but got 'A'"),
        ({"name": "a", "sides": []}, "expected 'sides' to have at least 1 item, not 0, but got []"),
        ({"name": "a", "sides": [{"size": "x"}]}, SIDE),
        ({"name": "too long"}, "'name': expected a short name, but got 'too long'"),
        ({"name": "a", "mode": "exact", "count": 2}, "expected count 1 with mode exact, but got 2"),
        ({"name": "a", "nmae": "b"}, "'nmae' is not a known key: remove it or correct its spelling"),
        (
            {"count": 0, "more": 1},
            "expected a value for 'name', but none was given; "
            "expected 'count' to be greater than or equal to 1, but got 0; "
            "'more' is not a known key: remove it or correct its spelling",
        ),
    ],
)
def test_explain_says_what_was_expected_and_what_came(values: dict[str, Any], sentence: str) -> None:
    assert reason(values) == sentence


def test_what_is_no_json_is_not_quoted_whole() -> None:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate_json("[" * 10_000)
    sentence = explain(caught.value)
    assert sentence.startswith("expected JSON, but it cannot be read: ") and "line 1 column" in sentence
    assert len(sentence) < 200


def test_explain_offers_the_known_keys() -> None:
    offered = reason({"name": "a", "nmae": "b"}, known_keys=("name", "mode"))
    assert offered.endswith("correct its spelling; known are name, mode")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        Example(name="a").name = "b"


def test_equal_settings_are_equal() -> None:
    assert Example(name="a", count=2) == Example(name="a", count=2) != Example(name="a")
