"""`rewardserve rules`: its arguments, and the rules that it writes."""

from __future__ import annotations

import pytest
import yaml

from rewardserve.service.cli.rules import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "foo"], "'foo' is not a window length: write a whole number and s, m or h"),
        (["--windows", "1d"], "'1d' is not a window length"),
        (["--windows", "0m"], "'0m' is not a window length"),
        (["--windows", "m"], "'m' is not a window length"),
        (["--windows", "1h", "5m"], "--windows are 1h 5m: each must be longer than the one before"),
        (["--windows", "60s", "1m"], "each must be longer"),
        (["--samples", "0"], "not a whole number above zero"),
        (["--samples", "-5"], "not a whole number above zero"),
        (["--samples", "many"], "not a whole number above zero"),
    ],
)
def test_spans_and_samples_that_make_no_rules_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert message in written.err.splitlines()[0]


def test_a_configuration_that_cannot_be_read_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "unknown.toml").write_text("[wires.flatery]")
    for path, reason in [
        ("/dev/null", "no regular file"),  # such as a FIFO, which has no end
        (str(tmp_path / "missing.toml"), "No such file or directory"),
        (str(tmp_path / "unknown.toml"), "unknown: wires: flatery; did you mean flattery? Known here: "),
    ]:
        assert main(["--config-file", path]) == 2
        assert capsys.readouterr().err.startswith(f"rewardserve rules: {path}: {reason}")


def test_rules_are_written_for_the_spans_that_are_named(capsys):
    assert main(["--windows", "90s", "10m", "--samples", "256"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["groups"]
    assert "[90s]" in text
    assert ">= 256" in text
    assert "[2m]" not in text
