"""JSON of files: errors have the position and the numbers, and give no advice on Python."""

from __future__ import annotations

import json

import pytest

from rewardserve.model.calibration import Calibration, CalibrationError
from rewardserve.model.checkpoint.files import _IncompleteFile, _parsed
from rewardserve.model.contract import ContractUnreadable, ScoringContract
from rewardserve.model.text.text_files import JsonDecodeError, parse_json
from rewardserve.training.dataset.sources import read
from rewardserve.training.settings.data_config import SourceConfig

DIGITS = "9" * 6000
NUMBER = f'{{"a": {DIGITS}}}'


def said(call, *arguments, kind=Exception):
    with pytest.raises(kind) as error:
        call(*arguments)
    words = str(error.value)
    assert "set_int_max_str_digits" not in words
    assert DIGITS not in words
    return words


def test_a_number_of_thousands_of_digits_is_named_by_its_length():
    assert said(parse_json, NUMBER, kind=JsonDecodeError) == "it has a number of 6000 digits; the limit is 4300"


@pytest.mark.parametrize("text", ["", "{", '{"a": 1,}', "[1 2]", "[" * 200_000])
def test_what_is_no_json_is_said_with_its_place(text):
    said(parse_json, text, kind=JsonDecodeError)


def test_what_is_json_is_read_as_python_reads_it():
    for text in ('{"a": [1, 2.5, null]}', "[]", '"x"', "1e400", "NaN"):
        assert repr(parse_json(text)) == repr(json.loads(text))


def test_a_hook_raises_its_own_error():
    def refuse(_pairs):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        parse_json(NUMBER.replace(DIGITS, "1"), refuse)


def test_files_of_a_checkpoint_say_so(tmp_path):
    for name, load, kind in (
        ("scoring_contract.json", ScoringContract.load, ContractUnreadable),
        ("calibration.json", Calibration.load, CalibrationError),
    ):
        (tmp_path / name).write_text(NUMBER)
        assert "6000 digits" in said(load, tmp_path, kind=kind)
    assert "6000 digits" in said(_parsed, NUMBER.encode(), kind=_IncompleteFile)


def test_rows_of_training_data_say_so(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n' + NUMBER + "\n")
    rows = list(read(SourceConfig(path=str(tmp_path / "data.jsonl"))))
    assert "6000 digits" in str(rows[1])
    assert "set_int_max_str_digits" not in str(rows[1])
