from pathlib import Path

import pytest

from handlers.nginx import read_tokens
from handlers.settings import read_gateway
from segserve.text import read_text
from tests.test_config import MINIMAL
from training.config import load_recipe
from training.convert import color_table
from training.layouts import open_dataset

CLASSES = '{"classes": [{"id": 0, "name": "ok"}, {"id": 1, "name": "größe"}]}'
LABELS = "split,stem,label\r\ntrain,x,ok\r\ntrain,y,größe\r\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig"])
def test_the_mark_of_windows_is_no_text(file: Path, coding: str) -> None:
    file.write_bytes("größe\r\n".encode(coding))
    assert read_text(file) == "größe\r\n"


@pytest.mark.parametrize("coding", ["latin-1", "utf-16"])
def test_another_coding_is_said_with_the_file_and_the_line(file: Path, coding: str) -> None:
    file.write_bytes("#\ngröße\n".encode(coding))
    line = 2 if coding == "latin-1" else 1
    with pytest.raises(ValueError, match=f"expected .*file to be UTF-8, but line {line} is not: save it as UTF-8"):
        read_text(file)


def test_what_a_person_writes_on_windows_is_read(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        return tmp_path / name

    assert load_recipe(write("small.toml", MINIMAL)).name == "small"
    assert read_gateway(str(write("gateway.toml", "burst = 5"))).burst == 5
    assert list(read_tokens(write("tokens", f"alice.{'a' * 32}"))) == ["alice"]
    assert color_table(write("colors.txt", "0 0 0 ok"), {"ok": 0}) == {0: 0}
    write("classes.json", CLASSES)
    assert [entry.name for entry in open_dataset(tmp_path, "segmentation").classes] == ["ok", "größe"]
    write("labels.csv", LABELS)
    assert [entry.name for entry in open_dataset(tmp_path, "classification").classes] == ["größe", "ok"]


def test_in_another_coding_it_is_named(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        return tmp_path / name

    with pytest.raises(ValueError, match=r"small\.toml to be UTF-8, but line 1 is not"):
        load_recipe(write("small.toml", f"# größe\n{MINIMAL}"))
    with pytest.raises(ValueError, match=r"gateway\.toml to be UTF-8, but line 1 is not"):
        read_gateway(str(write("gateway.toml", "# größe")))
    with pytest.raises(ValueError, match=r"colors\.txt to be UTF-8, but line 1 is not"):
        color_table(write("colors.txt", "0 0 0 größe"), {"größe": 0})
    write("classes.json", CLASSES)
    with pytest.raises(ValueError, match=r"classes\.json to be UTF-8, but line 1 is not"):
        open_dataset(tmp_path, "segmentation")
    write("labels.csv", LABELS)
    with pytest.raises(ValueError, match=r"labels\.csv to be UTF-8, but line 3 is not"):
        open_dataset(tmp_path, "classification")
