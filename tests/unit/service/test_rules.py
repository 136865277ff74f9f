"""`rewardserve rules`: which spans of time and how many samples it takes."""

from __future__ import annotations

import pytest
import yaml

from rewardserve.service.cli.rules import main


@pytest.mark.parametrize(
    ("arguments", "says"),
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
def test_spans_and_samples_that_make_no_rules_are_refused_in_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err.splitlines()[0]


def test_rules_are_written_for_the_spans_that_are_named(capsys):
    assert main(["--windows", "90s", "10m", "--samples", "256"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["groups"]
    assert "[90s]" in text
    assert ">= 256" in text
    assert "[2m]" not in text
