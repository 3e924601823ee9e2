"""The gateway's configuration: what nginx makes of it is in test_gateway.py and tests/system/test_gateway.py."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from cli import main
from handlers import nginx
from handlers.nginx import Place
from handlers.settings import GatewaySettings, ServeSettings, read_gateway
from handlers.store import ServedModel
from handlers.torchserve import ServeError

SECRET = "s3cret" * 5
CELLS = Place(name="cells", task="segmentation", version="1.0", limit=32, answer_seconds=100)
LABELS = Place(name="my labels$", task="classification", version="2.0", limit=8, answer_seconds=130)


def text(tmp_path: Path, *models: Place, **gateway: object) -> str:
    settings = GatewaySettings.model_validate(gateway)
    return nginx.configuration(
        ServeSettings(), settings, models or (CELLS, LABELS), folder=tmp_path, torchserve_port=7070
    )


def test_each_model_has_so_many_places(tmp_path: Path) -> None:
    found = re.findall(r"upstream torchserve_(\d) \{\s+zone \S+ 64k;\s+server (\S+) max_conns=(\d+);", text(tmp_path))
    assert found == [("0", "127.0.0.1:7070", "32"), ("1", "127.0.0.1:7070", "8")]


def test_places_are_for_what_is_computed_and_for_what_waits() -> None:
    models = (
        ServedModel("a.mar", "seg", "1.0", "segmentation", 8, 90),
        ServedModel("b.mar", "seg", "1.1", "segmentation", 4, 60),
        ServedModel("c.mar", "labels", "1.0", "classification", 2, 30),
    )
    first, second = nginx.places(models, waiting_batches=3)
    assert first == Place(name="seg", task="segmentation", version="1.0", limit=32, answer_seconds=100)
    assert (second.name, second.limit) == ("labels", 8)


def test_requests_are_stamped_only_for_a_brownout(tmp_path: Path) -> None:
    assert "X-Request-Start" not in text(tmp_path)
    assert text(tmp_path, brownout_ms=500).count('proxy_set_header X-Request-Start "t=$msec";') == 1


def test_the_gateway_waits_longer_than_torchserve_does(tmp_path: Path) -> None:
    inner, outer = (int(s) for s in re.findall(r"proxy_read_timeout (\d{3})s", text(tmp_path))[::-1])
    assert 120 < inner < outer


def test_a_token_is_not_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# ours\nalice.{SECRET}\n\nbob.{SECRET}\n")
    one, other = (text(tmp_path, tokens=tmp_path / "tokens") for _ in range(2))
    assert SECRET not in one
    digests = [re.findall(r"~\^(\w+)\$ (\S{22});", found) for found in (one, other)]
    assert [[name for name, _ in found] for found in digests] == [["alice", "bob"]] * 2
    assert len({digest for found in digests for _, digest in found}) == 4, "salted anew, and with the whole token"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "expected a line NAME.SECRET for each client"),
        ("alice.short", "expected line 1 of .*tokens to be NAME.SECRET, the secret of at least 22"),
        (f"# us\n{SECRET}", "expected line 2"),
        (f"alice.{SECRET} bob", "expected line 1"),
        (f"alice.{SECRET}\nalice.{SECRET}x", "alice is there twice"),
    ],
)
def test_a_file_of_tokens_that_is_wrong_is_not_quoted(tmp_path: Path, lines: str, sentence: str) -> None:
    (tmp_path / "tokens").write_text(lines)
    with pytest.raises(ValueError, match=sentence) as caught:
        nginx.read_tokens(tmp_path / "tokens")
    assert "s3cret" not in str(caught.value) and "short" not in str(caught.value)


def test_json_survives_nginx_s_quotes() -> None:
    document = json.dumps({"detail": 'it\'s "5$" \\ done', "id": "$id"})
    unquoted = re.sub(r"\\([\\'])", r"\1", nginx._inside(document))
    assert json.loads(unquoted) == json.loads(document)
    assert re.findall(r"\$\w*", unquoted) == ["$id"]


def test_without_nginx_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ServeError, match="apt-get install nginx-light\\), or serve without --gateway"):
        nginx.find_nginx()


def test_settings_are_read_from_a_file_with_paths_beside_it(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text('tokens = "tokens"\nburst = 5\ntrusted_proxies = ["10.0.0.0/8"]\n')
    settings = read_gateway(str(tmp_path / "gateway.toml"))
    assert (settings.tokens, settings.burst) == (tmp_path / "tokens", 5)
    assert read_gateway("") == GatewaySettings()


@pytest.mark.parametrize(
    ("toml", "error", "sentence"),
    [
        ("burst 5", ValueError, "to be TOML, but it is not"),
        ("bursts = 5", ValidationError, "bursts"),
        ("burst = 0", ValidationError, "greater than or equal to 1"),
        ('certificate = "a.pem"', ValidationError, "expected certificate and key, or neither"),
        ('trusted_proxies = ["everyone"]', ValidationError, "does not appear to be an IPv4 or IPv6 network"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, toml: str, error: type[Exception], sentence: str) -> None:
    (tmp_path / "gateway.toml").write_text(toml)
    with pytest.raises(error, match=sentence):
        read_gateway(str(tmp_path / "gateway.toml"))


def test_a_number_where_a_path_belongs_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gateway.toml").write_text("tokens = 5\n")
    assert main(["serve", "--gateway", str(tmp_path / "gateway.toml")]) == 2
    assert capsys.readouterr().err == "segserve: expected 'tokens' to be a path, but got 5\n"


def test_proxies_that_are_trusted_name_the_client(tmp_path: Path) -> None:
    found = text(tmp_path, trusted_proxies=["10.0.0.0/8", "fd00::/8"])
    assert re.findall(r"set_real_ip_from (\S+);", found) == ["10.0.0.0/8", "fd00::/8"]
    assert "real_ip_header" not in text(tmp_path)
