"""Files that people write by hand are read with every byte order mark that an editor puts before them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic_settings import SettingsError

from rewardserve.model import export
from rewardserve.model.text.text_files import TextDecodeError
from rewardserve.model.traits import Lexicon, LexiconError
from rewardserve.service.auth.api_keys import ApiKeysError, ApiKeysFile
from rewardserve.service.auth.api_keys import read_api_keys as read_keys
from rewardserve.service.cli import keys, rules
from rewardserve.service.cli.options import from_command_line
from rewardserve.service.settings import ServeSettings
from rewardserve.service.tripwires.io.canaries import SHIPPED, CanariesError
from rewardserve.service.tripwires.io.canaries import read as read_canaries

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
KEY = "a-plain-key-from-before"


def settings(**flags):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return from_command_line(ServeSettings, "rewardserve serve", given)


def keys_of(path: Path):
    return [key.name for key in read_keys(path).keys]


def parse_wire_config(path: Path):
    return (
        from_command_line(ServeSettings, "rewardserve serve", [f"--tripwires.config-file={path}"])
        .wire_config()
        .votes_for_a_page
    )


def honeypots_of(path: Path):
    key = path.with_name("bait-key")
    key.write_bytes(b"0123456789abcdef")
    given = from_command_line(
        ServeSettings,
        "rewardserve serve",
        [f"--tripwires.honeypots-file={path}", f"--tripwires.honeypots-key-file={key}"],
    )
    return list(given.read_honeypots().by_prompt)


LEXICON = {
    "language": "xx",
    "version": "1",
    "refusal": ["né"],
    "flattery": ["b"],
    "judge_injection": ["c"],
    "empty_opener": ["d"],
}
PROBE = {"prompt": "a\u2028b", "response": "né"}
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
FILES = {
    "keys": (f"{KEY}\nb sha256:{hashlib.sha256(b'b').hexdigest()} score", keys_of),
    "tripwires": ("votes_for_a_page = 7\n# né\n", parse_wire_config),
    "baits": (json.dumps({"prompt": "0" * 32, "answers": ["1" * 32]}), honeypots_of),
    "webhook": (SECRET, lambda path: settings(webhook_url="http://a", webhook_secret_file=path).read_webhook_secrets()),
    "canaries": (SHIPPED.read_text(), lambda path: [each.prompt for each in read_canaries(path)]),
    "lexicon": (json.dumps(LEXICON, ensure_ascii=False), lambda path: Lexicon.read([path])),
    "probes": (json.dumps(PROBE, ensure_ascii=False), export.read_samples),
}  # fmt: skip
REFUSALS = (SettingsError, ApiKeysError, CanariesError, LexiconError, TextDecodeError)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_in_every_encoding_that_its_mark_tells(tmp_path, name, encoding):
    text, read = FILES[name]
    (tmp_path / "plain").write_text(text, encoding="utf-8")
    (tmp_path / "marked").write_bytes(text.encode(encoding))
    assert read(tmp_path / "marked") == read(tmp_path / "plain")
    assert read(tmp_path / "plain")


@pytest.mark.parametrize("name", FILES)
def test_what_is_in_no_such_encoding_is_refused_in_words(tmp_path, name):
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    with pytest.raises(REFUSALS) as refused:
        FILES[name][1](tmp_path / "latin")
    assert "it is not UTF-8 (at byte 0); save it as UTF-8" in str(refused.value)


def test_a_running_server_reads_a_marked_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEY)
    told = []
    file = ApiKeysFile(path, read_keys(path), SimpleNamespace(on_keys_read=lambda *news: told.append(news)))
    path.write_text(f"{KEY}\nanother-plain-key", encoding="utf-16")
    file.poll()
    file.poll()
    assert file.current().find(b"another-plain-key") is not None
    assert len(told) == 1


def test_a_key_is_added_to_a_marked_file(tmp_path, capsys):
    path = tmp_path / "keys"
    path.write_text(KEY, encoding="utf-8-sig")
    assert keys.main(["new", str(path)]) == 0
    assert read_keys(path).find(capsys.readouterr().out.strip().encode()).name == "new"
    assert read_keys(path).find(KEY.encode()) is not None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_no_line_is_added_to_a_file_in_another_encoding(tmp_path, capsys, encoding):
    path = tmp_path / "keys"
    path.write_text(KEY, encoding=encoding)
    before = path.read_bytes()
    assert keys.main(["new", str(path)]) == 2
    assert path.read_bytes() == before
    assert f"the file is {encoding.upper()}: save it as UTF-8 first" in capsys.readouterr().err


def test_a_text_in_utf_16_without_a_mark_makes_no_key(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(KEY.encode("utf-16-le"))
    with pytest.raises(ApiKeysError, match="line 1: a key must have printable characters only"):
        read_keys(path)


def test_rules_are_written_from_a_marked_plan(tmp_path, capsys):
    texts = []
    for encoding in ENCODINGS:
        (tmp_path / "plan").write_text("votes_for_a_page = 7\n", encoding=encoding)
        assert rules.main(["--config-file", str(tmp_path / "plan")]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert "vector(7)" in texts[0]
