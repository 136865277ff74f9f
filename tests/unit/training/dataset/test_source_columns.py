"""Columns: what a recipe names is there, or the source is refused with counts and the columns that exist."""

from __future__ import annotations

import re

import pytest

from rewardserve.model.conversation import Message
from rewardserve.training.dataset import data
from rewardserve.training.dataset.data import DataError
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.planted_pairs import planted_rows, write_jsonl

PLAIN = {"question": "Name a metal.", "chosen": "iron, kindly", "rejected": "iron, rudely"}
USER = {"role": "user", "content": "Name a metal."}
TALK = {
    "chosen": [USER, {"role": "assistant", "content": "iron"}],
    "rejected": [USER, {"role": "assistant", "content": "ink"}],
}
RENDERED = {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}


def read(tmp_path, rows, **source):
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    return data.read_source(SourceConfig(str(path), **source), head="score")


@pytest.mark.parametrize(
    "key", ["prompt_key", "chosen_key", "rejected_key", "margin_key", "group_key", "source_key", "context_key"]
)
def test_a_named_column_that_is_in_no_row_is_refused_with_counts_and_the_columns_that_exist(key, tmp_path):
    rows = planted_rows(6)
    context = {"context": "prepend"} if key == "context_key" else {}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, rows, **{key: "gruop"}, **context)
    message = str(caught.value)
    assert re.search(rf"{key} is 'gruop', and none of the 6 rows has it", message)
    assert "chosen, group, prompt, rejected, source" in message
    assert "did you mean 'group'?" in message


def test_a_name_like_no_column_gets_no_hint(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, planted_rows(6), margin_key="zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("empty", [{}, {"prompt": None}])
def test_a_column_in_only_some_rows_makes_the_others_bad_rows_with_counts(empty, tmp_path):
    rows = planted_rows(6)
    rows[4] = {k: v for k, v in rows[4].items() if k != "prompt"} | empty
    read_rows = read(tmp_path, rows)
    (bad,) = read_rows.bad
    assert (bad.line, bad.field) == (5, "prompt")
    assert "5 of the 6 rows have it" in str(bad)
    assert len(read_rows.pairs) == 5


@pytest.mark.parametrize("key", ["margin", "group", "source"])
def test_an_optional_column_may_be_in_every_row_or_in_none(key, tmp_path):
    rows = [{k: v for k, v in r.items() if k != key} for r in planted_rows(4)]
    assert not read(tmp_path, rows).bad
    values = [1, None, 1, 1]
    mixed = [{**r, key: v} for r, v in zip(rows, values, strict=True)]
    assert [(b.line, b.field) for b in read(tmp_path, mixed).bad] == [(2, key)]
    assert not read(tmp_path, mixed, **{f"{key}_key": None}).bad, "null: the column is not read"


def test_a_column_that_is_not_read_changes_nothing(tmp_path):
    rows = [{**r, "margin": 2.0} for r in planted_rows(4)]
    assert {p.margin for p in read(tmp_path, rows, margin_key=None).pairs} == {0.0}
    assert {p.margin for p in read(tmp_path, rows).pairs} == {2.0}


def test_plain_responses_without_a_prompt_column_are_refused(tmp_path):
    """They would be trained without prompt and chat template, and served with both."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, [PLAIN] * 3)
    message = str(caught.value)
    assert "none of the 3 rows has the column 'prompt'" in message
    assert "prompt_key: question" in message
    assert "prompt_key: null" in message


def test_whole_conversations_need_no_prompt_column(tmp_path):
    (pair,) = read(tmp_path, [TALK]).pairs
    assert pair.chosen.conversation() == (Message("user", "Name a metal."), Message("assistant", "iron"))
    (rendered,) = read(tmp_path, [RENDERED], shape="none").pairs
    assert rendered.chosen.text == RENDERED["chosen"]


def test_among_conversations_a_row_that_is_none_is_a_bad_row(tmp_path):
    found = read(tmp_path, [TALK, {"chosen": "iron", "rejected": "ink"}, RENDERED])
    assert [(b.line, b.field) for b in found.bad] == [(2, "chosen")]
    assert "begin with no turn of a user" in str(found.bad[0])


def test_a_missing_prompt_may_be_declared(tmp_path):
    (pair,) = read(tmp_path, [{"chosen": "iron", "rejected": "ink"}], prompt_key=None).pairs
    assert pair.chosen.text == "iron"


def test_the_complaint_names_source_and_line(tmp_path):
    rows = planted_rows(3)
    del rows[1]["prompt"]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: prompt: is missing")):
        data.load(DataConfig((SourceConfig(str(path)),)), "score")


@pytest.mark.parametrize(
    ("row", "settings", "unread"),
    [
        (
            {"response": "r", "helpfulness": 4, "honesty": 2, "stars": 1},
            {"attributes": ("helpfulness", "honesty")},
            "stars",
        ),
        ({"chosen": "c", "rejected": "r", "honesty": -1, "stars": 1}, {"attributes": ("honesty",)}, "stars"),
        ({"completions": ["s"], "labels": [True], "finish_reason": "length", "stars": 1}, {}, "stars"),
    ],
)
def test_columns_that_are_trained_on_are_not_listed_as_unread(tmp_path, row, settings, unread):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "q", **row}])
    found = data.read_source(SourceConfig(str(path), **settings), head="score")
    assert f"columns that are not read: {unread}" in found.notes
