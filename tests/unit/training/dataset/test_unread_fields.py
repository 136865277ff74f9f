"""No part of a conversation is dropped from training data in silence: a row that has one makes no pair, and says why."""

from __future__ import annotations

import json

import pytest

from rewardserve.training.dataset import data
from rewardserve.training.dataset.pairs import FieldError
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from tests.support.empty_values import EMPTY
from tests.unit.training.dataset.test_data import CHOSEN, REJECTED, SAME_PAIR, USER, pair

OF_A_MESSAGE = {
    "tool_call_id": "1",
    "name": "Ada",
    "reasoning_content": "hm",
    "thinking": "hm",
    "anything_new": 1,
}
COLUMNS = {
    "history": [["hi", "hello"]],
    "documents": [{"title": "t", "text": "x"}],
    "chat_template_kwargs": {"enable_thinking": False},
    "chat_template": "{{ messages }}",
    "images": ["AA"],
    "audio": {"bytes": "AA"},
}
NOTHING = [*EMPTY, {"enable_thinking": None}, [None]]
EXPLICIT = {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]}


@pytest.mark.parametrize("field", OF_A_MESSAGE)
@pytest.mark.parametrize("column", EXPLICIT)
@pytest.mark.parametrize("content", ["", None, "text"])
def test_a_field_of_a_message_that_is_not_read_is_named(field, column, content):
    message = {**EXPLICIT[column][0], "content": content, field: OF_A_MESSAGE[field]}
    with pytest.raises(FieldError, match=rf"message 0 has {field}, which is not read") as error:
        pair({**EXPLICIT, column: [message]})
    assert error.value.field == column


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", SAME_PAIR)
def test_a_column_that_belongs_to_the_prompt_is_named(column, form):
    with pytest.raises(FieldError, match=r"ignored_columns") as error:
        pair({**SAME_PAIR[form], column: COLUMNS[column]})
    assert error.value.field == column
    ignoring = pair({**SAME_PAIR[form], column: COLUMNS[column]}, ignored_columns=(column,))
    assert ignoring.chosen == pair(SAME_PAIR[form]).chosen


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_what_says_nothing_is_left_out(nothing):
    """Parquet fills up the fields that only some rows have."""
    extra = dict.fromkeys(OF_A_MESSAGE, nothing)
    values = {key: [message | extra for message in messages] for key, messages in EXPLICIT.items()}
    got = pair(values | dict.fromkeys(COLUMNS, nothing))
    assert (got.chosen, got.rejected) == (pair(EXPLICIT).chosen, pair(EXPLICIT).rejected)


@pytest.mark.parametrize("column", ["tools", "history"])
def test_a_column_that_the_recipe_reads_is_read(column):
    got = pair({column: "hi", "chosen": "yes", "rejected": "no"}, prompt_key=column)
    assert got.chosen == pair(SAME_PAIR["explicit strings"]).chosen


def test_other_columns_are_nobodys_business():
    extra = {"score_chosen": 7.5, "id": "x", "input": "more", "model": "m", "messages": [USER]}
    assert pair({**EXPLICIT, **extra}).chosen == pair(EXPLICIT).chosen


def test_a_file_with_such_rows_is_refused_at_start_with_their_lines(tmp_path):
    rows = [
        dict(EXPLICIT),
        {**EXPLICIT, "history": COLUMNS["history"]},
        {**EXPLICIT, "documents": COLUMNS["documents"]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(data.DataError) as error:
        data.load(DataConfig((SourceConfig(str(path)),), eval_fraction=0.0), "score")
    assert f"{path}:2: history: " in str(error.value)
    assert f"{path}:3: documents: " in str(error.value)


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize("form", SAME_PAIR)
def test_a_system_message_goes_before_the_prompt_in_every_form(column, form):
    """The same conversation as one whose messages begin with it, as the server gets it."""
    got = pair({**SAME_PAIR[form], column: "Be kind."})
    system = {"role": "system", "content": "Be kind."}
    own = pair({"prompt": [system, USER], "chosen": [CHOSEN], "rejected": [REJECTED]})
    assert got.chosen.conversation() == own.chosen.conversation()
    assert got.rejected.conversation() == own.rejected.conversation()
    assert got.group == own.group != pair(SAME_PAIR[form]).group
    assert got.chosen_text == "yes"


SYSTEM = {
    "two system messages": (
        {"prompt": [{"role": "system", "content": "Be brief."}, USER], "chosen": "yes", "rejected": "no"},
        {},
    ),
    "a list": ({**EXPLICIT, "system": ["Be kind."]}, {}),
    "no template": ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, {"strings": "raw"}),
    "rendered": (
        {"chosen": "Human: hi\n\nAssistant: yes", "rejected": "Human: hi\n\nAssistant: no"},
        {"prompt_key": None},
    ),
}


@pytest.mark.parametrize(("values", "source"), SYSTEM.values(), ids=SYSTEM)
def test_a_system_message_that_no_template_would_place_is_refused(values, source):
    with pytest.raises(FieldError) as error:
        pair({"system": "Be kind.", **values}, **source)
    assert error.value.field == "system"


def test_a_system_column_can_be_left_out():
    values = {**EXPLICIT, "system": "Be kind."}
    assert pair(values, ignored_columns=("system",)).chosen == pair(EXPLICIT).chosen
    with pytest.raises(FieldError, match="ignored_columns"):
        pair(values, system_key=None)
