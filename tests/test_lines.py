from pathlib import Path

import pytest

from training.lines import append_lines, read_lines


def test_there_are_no_lines_without_a_file(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", [b"c", b"d\xc3\xa4"]),
        (b"a\n", [b"a", b"c", b"d\xc3\xa4"]),
        (b"a\nb", [b"a", b"c", b"d\xc3\xa4"]),
        (b"half", [b"c", b"d\xc3\xa4"]),
        (b"a\n\n", [b"a", b"", b"c", b"d\xc3\xa4"]),
    ],
)
def test_lines_come_after_the_whole_ones(before: bytes, after: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(before)
    append_lines(path, ["c", "dä"])
    assert read_lines(path) == after


def test_no_lines_take_half_a_one_away(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb")
    assert read_lines(path) == [b"a"]
    append_lines(path, iter(()))
    assert path.read_bytes() == b"a\n"
