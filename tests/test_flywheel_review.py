"""The review page in a real browser: open, judge, undo, save; and what the round makes of it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from tests.browser import BROWSER, PATIENCE, browser
from tests.rounds import files_of, made_round
from training.data import IGNORE
from training.flywheel.review import PAGE, review_page, write_review
from training.flywheel.round import Entry

NO_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")


def saved(path: Path) -> dict[str, object]:
    """The file, once the browser has written all of it."""
    deadline = time.monotonic() + PATIENCE
    while not path.is_file():
        assert time.monotonic() < deadline, f"{path} was not saved"
        time.sleep(0.05)
    table: dict[str, object] = json.loads(path.read_text())
    return table


@NO_BROWSER
def test_open_judge_three_save_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = made_round(tmp_path / "round", count=12)
    write_review(found)
    ranked = sorted(found.entries().values(), key=lambda entry: entry.scores["expected_iou"])
    with browser(tmp_path) as tab:
        tab.open((found.path / PAGE).as_uri())
        assert tab.value("document.images.length") == 2 * 12 + 4
        assert tab.value("[...document.images].every(image => image.complete && image.naturalWidth >= 64)")
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        assert [tab.value("at('name').textContent"), tab.value("at('count-left').textContent")] == [
            ranked[0].name,
            "12",
        ]
        tab.press("a", "r", "u", "w", "ArrowLeft", "ArrowRight", "r")
        counted = {name: tab.value(f"at('count-{name}').textContent") for name in ("accept", "work", "reject", "left")}
        assert counted == {"accept": "1", "work": "1", "reject": "1", "left": "9"}
        tab.press(" ")
        assert tab.value("getComputedStyle(at('large-mask')).opacity") == "0"
        tab.value("at('reviewer').value = 'Ada'")
        tab.press("s")
        table = saved(tmp_path / "decisions.json")
        assert tab.faults == []
    wanted = {ranked[0].name: "accept", ranked[1].name: "work", ranked[2].name: "reject"}
    before = found.entries()
    looked_at = {name: found.looked_at(before[name]) for name in wanted}
    assert table == {
        "round": 1,
        "artifact": "a" * 64,
        "reviewer": "Ada",
        "decisions": wanted,
        "looked_at": looked_at,
    }
    for _ in range(2):
        assert main(["apply-review", str(found.path), str(tmp_path / "decisions.json")]) == 0
        assert "1 accepted, 1 needs work, 1 rejected" in capsys.readouterr().out
        after = found.entries()
        assert [after[each.name].verdict for each in ranked[:3]] == ["accept", "review", "relabel"]
        assert {after[each.name].decided_by for each in ranked[:3]} == {"Ada"}
        assert [after[each.name] for each in ranked[3:]] == [before[each.name] for each in ranked[3:]]
        for entry in after.values():
            _check_places(found.path, entry)


def _check_places(root: Path, entry: Entry) -> None:
    accepted = entry.verdict == "accept"
    assert (root / "images/train" / entry.file).is_file() == accepted
    assert (root / "masks/train" / f"{entry.name}.png").is_file() == accepted
    assert (root / "waiting" / entry.file).is_file() == (not accepted)


@NO_BROWSER
def test_decisions_survive_a_closed_page_and_a_narrow_one_works(tmp_path: Path) -> None:
    found, _ = made_round(tmp_path / "round", count=8)
    write_review(found)
    with browser(tmp_path, width=600) as tab:
        tab.open((found.path / PAGE).as_uri())
        tab.press("a")
        tab.value("isSaved = true")
        tab.reload()
        assert tab.value("at('count-accept').textContent") == "1"
        assert tab.value("document.documentElement.scrollWidth <= innerWidth")
        tab.value("at('filter').value = 'relabel'; filter()")
        expected = sum(entry.verdict == "relabel" for entry in found.entries().values())
        assert tab.value("shown().length") == expected
        assert tab.faults == []


@NO_BROWSER
def test_decisions_on_one_round_are_none_on_another(tmp_path: Path) -> None:
    """Both are the first of one model, and have images of the same names; a browser keeps of both in one place."""
    (tmp_path / "other").mkdir()
    found, other = (made_round(tmp_path / name, count=8, seed=len(name))[0] for name in ("round", "other/round"))
    for each in (found, other):
        write_review(each)
    with browser(tmp_path) as tab:
        tab.open((found.path / PAGE).as_uri())
        tab.press("a", "w")
        tab.value("isSaved = true")
        tab.open((other.path / PAGE).as_uri())
        tab.press("r")
        assert tab.value("Object.values(decisions)") == ["reject"]
        tab.value("isSaved = true")
        tab.open((found.path / PAGE).as_uri())
        assert tab.value("Object.values(decisions)") == ["accept", "work"]
        tab.press("u")
        assert tab.faults == []


def test_decisions_are_not_applied_to_other_images_of_the_same_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two first rounds of one model: slices have the same names in every patient's folder."""
    (tmp_path / "other").mkdir()
    found, other = (made_round(tmp_path / name, count=8, seed=len(name))[0] for name in ("round", "other/round"))
    entry = found.entries()["drawing-003"]
    table = {"round": 1, "artifact": "a" * 64, "decisions": {entry.name: "accept"}}
    table["looked_at"] = {entry.name: found.looked_at(entry)}
    (tmp_path / "decisions.json").write_text(json.dumps(table))
    before = files_of(other.path)
    assert main(["apply-review", str(other.path), str(tmp_path / "decisions.json")]) == 2
    told = "is on others of the same names, such as drawing-003: apply it to the round whose page saved it"
    assert told in capsys.readouterr().err
    assert files_of(other.path) == before
    assert main(["apply-review", str(found.path), str(tmp_path / "decisions.json")]) == 0


def test_the_page_is_light_and_stands_alone(tmp_path: Path) -> None:
    """200 images of a photograph's size stay within some ten megabytes."""
    found, _ = made_round(tmp_path / "round", count=8, side=192)
    text = review_page(found)
    assert len(text) / 8 < 30_000
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    found, _ = made_round(tmp_path / "round", count=8)
    entries = list(found.entries().values())
    strange = entries[0].model_copy(update={"decided_by": "</script><b>"})
    found.rewrite([strange, *entries[1:]])
    assert "</script><b>" not in review_page(found)


def test_what_is_not_trained_on_is_void_in_the_mask(tmp_path: Path) -> None:
    found, truths = made_round(tmp_path / "round", count=8)
    accepted = [entry for entry in found.entries().values() if entry.verdict == "accept"]
    assert accepted
    for entry in accepted:
        mask_HW = np.asarray(Image.open(found.mask(entry.name)))
        counts_HW = mask_HW != IGNORE
        right = (mask_HW == truths[entry.name])[counts_HW].mean()
        assert 0 < counts_HW.mean() < 1 and right > 0.97


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"round": 2}, "expected decisions on round 1 of artifact aaaaaaaaaaaa, but .* is on round 2"),
        ({"decisions": {"nobody": "accept"}}, "names nobody"),
        ({"decisions": {"drawing-000": "yes"}}, "'accept', 'work' or 'reject'"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = made_round(tmp_path / "round", count=8)
    table = {"round": 1, "artifact": "a" * 64, "reviewer": "", "decisions": {}, **change}
    (tmp_path / "d.json").write_text(json.dumps(table))
    assert main(["apply-review", str(found.path), str(tmp_path / "d.json")]) == 2
    assert re.search(sentence, capsys.readouterr().err)
