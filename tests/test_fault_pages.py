"""docs/gateway.md, security.md and faults.md: what they say of settings, commands, words and tests is so."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import cli
from handlers import nginx
from handlers.settings import GatewaySettings

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("gateway", "security", "faults")}
TESTS = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
}
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGES["gateway"], re.DOTALL) for line in block.splitlines()
]
SOURCES = "".join(file.read_text() for room in ("handlers", "segserve") for file in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("page", ["security", "faults"])
def test_every_row_names_a_test_that_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGES[page]))
    assert len(named) > 10
    assert named - TESTS == set()
    assert [row for row in rows_of(page) if "`test_" not in row[-1]] == []


def rows_of(page: str) -> list[list[str]]:
    """Of the page's last table, without its head."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("|")]
    last = max(number for number, line in enumerate(lines) if line.startswith("|---"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[last + 1 :]]


def test_the_log_lines_of_the_page_are_those_of_the_code() -> None:
    said = [text for row in rows_of("faults") for text in re.findall(r"`([^`]+)`", row[4])]
    assert len(said) > 8
    for text in said:
        for part in re.split(r" \.\.\. |\b\d+\b| -\d|127\.0\.0\.1", text):
            assert part.strip() in re.sub(r"\{[^}]+\}", "", SOURCES) + "No space left on device", text


def test_the_settings_of_the_page_are_all_there_are_and_the_defaults() -> None:
    [block] = re.findall(r"```toml\n(.*?)```", PAGES["gateway"], re.DOTALL)
    given = tomllib.loads(block)
    assert list(given) == list(GatewaySettings.model_fields)
    defaults = GatewaySettings().model_dump()
    without = {"tokens", "certificate", "key", "brownout_ms", "trusted_proxies"}
    assert {name: given[name] for name in given.keys() - without} == {
        name: defaults[name] for name in defaults.keys() - without
    }
    GatewaySettings.model_validate(given)


def test_the_command_for_a_token_makes_one(tmp_path: Path) -> None:
    [command] = [command for command in COMMANDS if command.startswith("echo")]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    [(name, token)] = nginx.read_tokens(tmp_path / "tokens").items()
    assert name == "alice"
    assert len(token) == len("alice.") + 32


def test_the_commands_that_serve_can_be_given() -> None:
    served = [command.split()[1:] for command in COMMANDS if "segserve serve" in command]
    assert [cli._parser().parse_args(arguments).gateway for arguments in served] == ["", "gateway.toml"]
