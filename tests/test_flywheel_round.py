import os
from pathlib import Path

import pytest

from tests.rounds import made_round
from training.flywheel.round import MANIFEST, Entry, Round, link, write_whole


def test_a_folder_without_an_order_is_no_round(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a round, but .* has no round.json: make one with `segserve pseudo"):
        _ = Round(tmp_path).order
    (tmp_path / "round.json").write_text('{"number": 1}')
    with pytest.raises(ValueError, match=r"round.json: expected a value for 'artifact', but none was given"):
        _ = Round(tmp_path).order


def test_half_a_line_does_not_count_and_is_written_over(tmp_path: Path) -> None:
    found, _ = made_round(tmp_path / "round", count=8, side=32)
    before = found.entries()
    with (found.path / MANIFEST).open("a") as file:
        file.write('{"name": "half')
    assert found.entries() == before
    another = Entry(name="x", file="x.png", artifact="a", round=1, verdict="relabel", fault="x.png: broken")
    found.append([another])
    assert found.entries() == {**before, "x": another}


def test_files_follow_the_verdict_there_and_back(tmp_path: Path) -> None:
    found, _ = made_round(tmp_path / "round", count=8, side=32)
    entry = next(iter(found.entries().values()))
    masks = []
    for verdict in ("accept", "review", "accept", "relabel"):
        changed = entry.model_copy(update={"verdict": verdict})
        for _ in range(2):
            found.place(changed)
        assert found.image(changed).is_file()
        places = [found.path / "waiting" / entry.file, found.path / "images/train" / entry.file]
        assert [path.is_file() for path in places] == [verdict != "accept", verdict == "accept"]
        assert found.mask(entry.name).is_file() == (verdict == "accept")
        masks += [found.mask(entry.name).read_bytes()] if verdict == "accept" else []
    assert masks[0] == masks[1]


def test_a_link_replaces_and_survives_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "folder/b"
    source.write_text("new")
    write_whole(target, b"old")
    for _ in range(2):
        link(source, target)
        assert target.samefile(source)
    target.unlink()

    def fails(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fails)
    link(source, target)
    assert target.read_text() == "new" and not target.samefile(source)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]
