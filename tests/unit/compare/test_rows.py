"""Which responses a file holds, and which of them belong together."""

from __future__ import annotations

import gzip
import json

import pytest

from rewardserve.compare.rows import read_rows
from rewardserve.model.conversation import Message, Sample
from rewardserve.service.review.records import SampleRecord, Turn, to_line
from rewardserve.training.settings.validation import ConfigError


def file_of(folder, *rows, name="rows.jsonl"):
    path = folder / name
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_pairs_share_their_prompt_and_a_response_that_comes_again_is_one(tmp_path):
    rows = read_rows(
        file_of(
            tmp_path,
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "chosen": "a", "rejected": "c"},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            name="rows.jsonl.gz",
        )
    )
    assert rows.pairs == ((0, 1, 0), (0, 2, 0), (3, 4, 1))
    assert rows.prompts == (0, 0, 0, 1, 1)
    assert rows.samples[0] == Sample(prompt=(Message("user", "p"),), response="a")
    assert (rows.n_rows, dict(rows.bad)) == (3, {})


def test_responses_are_read_as_the_server_reads_them(tmp_path):
    rows = read_rows(
        file_of(
            tmp_path,
            {"prompt": "p", "response": "a"},
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}]},
            {"prompt": "p", "response": "a"},
            {"text": "whole"},
            {"input_ids": [1, 2]},
        )
    )
    assert rows.pairs == ()
    assert rows.prompts == (0, 0, 1, 2), "one prompt in two forms, and two rows that do not say where theirs ends"
    assert len(rows.samples) == 4


def test_captured_samples_are_read_as_they_were_scored(tmp_path):
    """Lines of `rewardserve review export`; a response that was cut off has no end again."""
    known = {"run": "a", "at": 1.0, "score": 0.5, "reason": "share", "model": "m", "model_version": 1, "prompt_key": "k",
             "n_tokens": 7, "task": "math", "flags": ["emoji"], "step": 3}  # fmt: skip
    turns = [Turn("system", "s"), Turn("user", "p")]
    records = [
        SampleRecord(prompt=turns, response="a", evidence="1", **known),
        SampleRecord(prompt=turns, response="b", evidence="2", missing_end=True, **known),
        SampleRecord(prompt="<user> p <assistant>", response="c", evidence="3", **known),
    ]
    rows = read_rows(file_of(tmp_path, *(to_line(each).decode() for each in records)))
    prompt = (Message("system", "s"), Message("user", "p"))
    assert rows.samples == (
        Sample(prompt=prompt, response="a"),
        Sample(prompt=prompt, response="b", finish_reason="length"),
    )
    assert rows.prompts == (0, 0)
    assert dict(rows.bad) == {"invalid_messages": 1}
    assert "text that the client rendered" in rows.first_bad


def test_a_table_is_read_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\np,a\np,b\n")
    assert read_rows(path).prompts == (0, 0)


def test_a_table_without_the_columns_is_told_which_it_needs(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\np,a\np,b\n")
    with pytest.raises(ConfigError) as refused:
        read_rows(path)
    assert "a sample has no such field; it has prompt and response" in str(refused.value)
    assert "server" not in str(refused.value)


def test_a_row_that_cannot_be_scored_is_counted_and_the_first_is_shown(tmp_path):
    path = file_of(
        tmp_path,
        {"prompt": "p", "response": "a"},
        {"prompt": "p", "response": "b"},
        "nonsense",
        {"prompt": "p", "response": " "},
        {"prompt": 5},
    )
    rows = read_rows(path)
    assert dict(rows.bad) == {"invalid_json": 1, "empty_response": 1, "invalid_request": 1}
    assert rows.first_bad.startswith(f"{path}:3: ")
    assert (len(rows.samples), rows.n_rows) == (2, 5)


def test_a_pair_of_equal_responses_is_none(tmp_path):
    path = file_of(
        tmp_path, {"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": "b"}
    )
    rows = read_rows(path)
    assert dict(rows.bad) == {"no pair: rejected": 1}
    assert rows.first_bad.startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "It is empty"),
        ([{"prompt": "p", "chosen": "a"}], "its rows have chosen without rejected[.]"),
        ([{"prompt": "p", "rejectd": "b", "chosen": "a"}], "chosen without rejected; did you mean rejectd"),
        ([{"score": 1}], "none of the 1 row can be scored"),
        (["[1]"], "a row must be an object"),
    ],
)
def test_a_file_without_a_response_is_refused(tmp_path, rows, words):
    with pytest.raises(ConfigError, match=words):
        read_rows(file_of(tmp_path, *rows))


def test_a_file_with_one_response_has_nothing_to_compare(tmp_path):
    path = file_of(tmp_path, {"prompt": "p", "response": "a"}, {"prompt": "p", "response": "a"}, "nonsense")
    with pytest.raises(ConfigError, match=r"no pair to compare: its 3 rows gave one response.*rows.jsonl:3: "):
        read_rows(path)


def test_a_file_that_is_not_there_is_not_looked_for_on_a_hub(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        read_rows(tmp_path / "none")
