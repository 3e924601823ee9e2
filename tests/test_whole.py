import os
import stat
from pathlib import Path

import pytest

from segserve.whole import check_place, replacing, write_whole


@pytest.mark.parametrize("content", ["größer\n", b"\x00\xff"])
def test_the_content_is_replaced_and_nothing_else_is_left(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OSError, match="disk"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_not_written_through(tmp_path: Path) -> None:
    matters = tmp_path / "matters"
    matters.write_text("matters")
    path = tmp_path / "file"
    (tmp_path / f".file.{os.getpid()}.tmp").hardlink_to(matters)
    write_whole(path, "after")
    assert (matters.read_text(), path.read_text()) == ("matters", "after")


def test_until_the_end_the_old_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"


def test_the_file_may_be_read_by_whom_any_new_file_may(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "whole", "")
    plain, whole = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole"))
    assert whole == plain


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    for name in ("there", "new"):
        (tmp_path / name).symlink_to(tmp_path / "shared" / name)
    (tmp_path / "shared/there").write_text("before")
    for name in ("there", "new"):
        write_whole(tmp_path / name, "after")
        assert (tmp_path / name).is_symlink() and (tmp_path / "shared" / name).read_text() == "after"


def test_the_longest_names_that_there_are(tmp_path: Path) -> None:
    names = ["画" * 83 + suffix for suffix in (".png", ".txt")]
    with replacing(tmp_path / names[0]) as first, replacing(tmp_path / names[1]) as second:
        first.write_text("1")
        second.write_text("2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {names[0]: "1", names[1]: "2"}


def test_a_place_where_no_file_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "new/folder/file.json")
    with pytest.raises(ValueError, match=r"expected a file to write to, but .* is a folder: name a file"):
        check_place(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no folder that can be written to: name another"):
        check_place(tmp_path / "file/page.html")


def test_an_error_has_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "folder", "x")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)
