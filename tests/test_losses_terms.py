import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from segserve.settings import explain
from training.losses.terms import CrossEntropyTerm, DiceTerm, FocalTerm, LossSettings, LovaszTerm, RelaxationTerm, Term

PAGE = (Path(__file__).parents[1] / "docs/losses.md").read_text()
KINDS = {term.model_fields["kind"].default: term for term in get_args(get_args(Term)[0])}


def _sentence(**section: object) -> str:
    with pytest.raises(ValidationError) as raised:
        LossSettings.model_validate(section)
    return explain(raised.value)


def test_the_default_is_plain_cross_entropy() -> None:
    assert LossSettings() == LossSettings(class_weights="none", label_smoothing=0, terms=(CrossEntropyTerm(),))


def test_what_a_recipe_writes() -> None:
    section = {
        "class_weights": [1, 2.5],
        "terms": [{"kind": "cross-entropy"}, {"kind": "lovasz", "weight": 0.5, "begin": 0.75, "per": "image"}],
    }
    settings = LossSettings.model_validate(section)
    assert settings.class_weights == (1, 2.5)
    assert settings.terms == (CrossEntropyTerm(), LovaszTerm(weight=0.5, begin=0.75, per="image"))
    assert LossSettings.model_validate_json(settings.model_dump_json()) == settings


# --- the schedule ---


def test_a_term_without_times_counts_all_along() -> None:
    assert [DiceTerm(weight=2).weight_at(progress) for progress in (0, 0.5, 1)] == [2, 2, 2]


def test_a_term_counts_from_its_begin_to_before_its_end() -> None:
    term = DiceTerm(weight=2, begin=0.25, end=0.75)
    assert [term.weight_at(progress) for progress in (0, 0.24, 0.25, 0.74, 0.75, 1)] == [0, 0, 2, 2, 0, 0]


def test_the_last_quarter() -> None:
    assert [LovaszTerm(begin=0.75).weight_at(progress) for progress in (0.74, 0.75, 1)] == [0, 1, 1]


def test_a_ramp_grows_from_zero_to_its_weight() -> None:
    term = DiceTerm(weight=2, begin=0.5, ramp=True)
    assert [term.weight_at(progress) for progress in (0.4, 0.5, 0.75, 1)] == [0, 0, 1, 2]


# --- what is refused ---


def test_a_moment_without_any_term_is_refused() -> None:
    assert "active at every moment of the run, but none is at 0 of it" in _sentence(
        terms=[{"kind": "lovasz", "begin": 0.5}]
    )
    assert "but none is at 0.4 of it" in _sentence(
        terms=[{"kind": "dice", "end": 0.4}, {"kind": "lovasz", "begin": 0.5}]
    )
    LossSettings(terms=(DiceTerm(end=0.4), LovaszTerm(begin=0.4)))


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"terms": []}, "expected 'terms'.*at least 1 item"),
        ({"terms": [{"kind": "dice", "weight": 0}]}, "expected 'terms.0.dice.weight' to be greater than 0, but got 0"),
        ({"terms": [{"kind": "dice", "begin": 0.5, "end": 0.5}]}, r"begin to be less than end \(0.5\), but got 0.5"),
        ({"terms": [{"kind": "dice", "per": "pixel"}]}, "expected 'terms.0.dice.per' to be 'batch' or 'image'"),
        ({"terms": [{"kind": "focal", "per": "image"}]}, "'terms.0.focal.per' is not a known key"),
        ({"terms": [{"kind": "relaxation", "radius": 0}]}, "'terms.0.relaxation.radius' to be greater than or equal"),
        ({"class_weights": "median"}, "'class_weights': expected 'none', 'median-frequency', .*, but got 'median'"),
        ({"class_weights": [1, -1]}, r"none below 0 and not all 0, but got \[1, -1\]"),
        ({"class_weights": [0, 0]}, r"none below 0 and not all 0, but got \[0, 0\]"),
    ],
)
def test_a_wrong_value_is_named(section: dict[str, object], sentence: str) -> None:
    assert re.search(sentence, _sentence(**section))


def test_settings_that_no_term_heeds_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"heeds label_smoothing \(cross-entropy, border\), but got focal, dice"):
        LossSettings(label_smoothing=0.1, terms=(FocalTerm(), DiceTerm()))
    with pytest.raises(ValidationError, match=r"heeds class_weights \(cross-entropy, focal, .*\), but got dice"):
        LossSettings(class_weights="inverse-sqrt", terms=(DiceTerm(),))
    LossSettings(class_weights="inverse-sqrt", terms=(RelaxationTerm(),))


# --- docs/losses.md ---


def test_the_sections_on_the_page_are_sections() -> None:
    sections = [tomllib.loads(block)["loss"] for block in re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)]
    assert len(sections) == 3
    for section in sections:
        LossSettings.model_validate(section)


def test_the_page_lists_every_kind_with_its_own_keys_and_their_defaults() -> None:
    rows = {row[1]: row[4] for line in PAGE.splitlines() if len(row := [c.strip(" `") for c in line.split("|")]) == 7}
    assert [kind for kind in rows if kind in KINDS] == list(KINDS)
    everywhere = {"kind", *CrossEntropyTerm.model_fields}
    for kind, term in KINDS.items():
        keys = re.findall(r"(\w+)(?: = ([\d.]+))?`", rows[kind] + "`")
        own = {key: field.default for key, field in term.model_fields.items() if key not in everywhere}
        assert {key for key, _ in keys if key} == set(own), kind
        assert all(float(value) == own[key] for key, value in keys if value), kind
