"""Which room may know which: training -> segserve <- handlers, and cli -> all three; nothing runs back up."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("segserve", "handlers", "training")
MODULES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))

FORBIDDEN_ROOMS = {
    "segserve": {"training", "handlers", "cli"},
    "handlers": {"training", "cli"},
    "training": {"handlers", "cli"},
}
ALLOWED_IN_SEGSERVE = {
    "spec": {"settings"},
    "settings": set(),
    "problem": set(),
    "clock": set(),
    "memory": set(),
    "cores": set(),
    "device": {"memory"},
    "quarantine": {"metrics", "problem"},
    "metrics": set(),
    "png_chunks": set(),
    "codec": {"png_chunks", "problem", "spec"},
    "networks": {"spec"},
    "preprocess": {"spec"},
    "tta": {"preprocess", "spec"},
    "tiling": {"preprocess", "spec"},
    "prediction": {"spec"},
    "drift": {"metrics", "prediction", "spec"},
    "canvas": {"prediction", "spec", "tiling", "tta"},
    "predictor": {"canvas", "clock", "device", "memory", "prediction", "preprocess", "spec", "tiling", "tta"},
    "png": {"spec"},
    "watershed": {"png", "problem"},
    "regions": {"png", "problem", "spec", "watershed"},
    "polygons": {"problem", "regions"},
    "rle": {"regions"},
    "engines": set(),
}
"""What the lower modules of segserve may know of it; the others join them."""


def imports(file: Path) -> set[str]:
    """Every module a file imports, at any depth, by its dotted name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import, which this test cannot judge"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def module_of(file: Path) -> str:
    """Its dotted name, a package's for its `__init__.py`."""
    return name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_there_is_something_to_judge() -> None:
    names = {name_of(file) for file in MODULES}
    assert {"segserve/codec.py", "segserve/engines/torch_engine.py", "handlers/adapter.py"} <= names
    assert "torch" in rooms(ROOT / "segserve/predictor.py")


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_no_arrow_runs_back_up(file: Path) -> None:
    assert rooms(file) & FORBIDDEN_ROOMS[file.relative_to(ROOT).parts[0]] == set()


@pytest.mark.parametrize("file", sorted((ROOT / "loadtest").rglob("*.py")), ids=name_of)
def test_the_load_test_does_not_know_the_benchmarks_that_use_it(file: Path) -> None:
    assert rooms(file) & {"bench", "cli", "demo"} == set()


def test_no_arrows_make_a_circle() -> None:
    modules = {module_of(file): file for file in MODULES}
    arrows = {module: (imports(file) & modules.keys()) - {module} for module, file in modules.items()}
    TopologicalSorter(arrows).prepare()  # a CycleError names the circle


@pytest.mark.parametrize("file", [*MODULES, ROOT / "cli.py"], ids=name_of)
def test_torchserve_is_imported_in_the_adapter_at_most(file: Path) -> None:
    assert "ts" not in rooms(file) or name_of(file) == "handlers/adapter.py"


@pytest.mark.parametrize("name", ALLOWED_IN_SEGSERVE)
def test_the_lower_modules_do_not_know_their_callers(name: str) -> None:
    inside = ROOT / "segserve" / name
    for file in inside.rglob("*.py") if inside.is_dir() else [inside.with_suffix(".py")]:
        known = {imported.split(".")[1] for imported in imports(file) if imported.startswith("segserve.")}
        assert known - {name} <= ALLOWED_IN_SEGSERVE[name], name_of(file)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_names_say_what_is_inside(file: Path) -> None:
    assert file.stem not in {"utils", "helpers", "common", "core", "base", "manager"}


def test_system_tests_lie_where_make_looks_for_them() -> None:
    collected = re.search(r"-m system (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert collected is not None
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.system" in file.read_text()]
    others = [name_of(file) for file in marked if not name_of(file).startswith(tuple(collected[1].split()))]
    assert others == [name_of(Path(__file__))]  # this one speaks of them
