"""Tools and tool calls in the columns of TRL, LLaMA-Factory and OpenAI become messages with calls, and are never left out."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewardserve.model.conversation import ToolCall
from rewardserve.model.tools import read_tools
from rewardserve.training.augmentation.augment import _is_editable
from rewardserve.training.dataset import data, leakage, sequences
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.transforms import with_response
from tests.support.planted_pairs import write_jsonl
from tests.support.tiny import tiny_tokenizer
from tests.support.tool_templates import FAMILIES
from tests.unit.model.test_tool_calls import encoder_of
from tests.unit.training.dataset.test_data import USER, pair

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
ONE, OTHER = (ToolCall("f", '{"x": 1}', ""), ToolCall("g", '{"x": 1}', ""))


def calling(name, **fields):
    function = {"name": name, "arguments": {"x": 1}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **fields}


ROW = {"prompt": [USER], "chosen": [calling("f")], "rejected": [calling("g")], "tools": TOOLS}
SAME = {
    "content of null": ROW | {"chosen": [calling("f", content=None)]},
    "tools as text": ROW | {"tools": json.dumps(TOOLS)},
    "bare functions": ROW | {"tools": [TOOLS[0]["function"]]},
    "arguments as text": ROW
    | {
        "chosen": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}],
    },
    "function_call": ROW
    | {"chosen": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}]},
    "content in parts": ROW | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "whole conversations": {"chosen": [USER, calling("f")], "rejected": [USER, calling("g")], "tools": TOOLS},
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_every_form_of_calls_gives_the_same_conversations(row):
    expected, got = pair(ROW), pair(row)
    assert expected.chosen.conversation()[-1].tool_calls == (ONE,)
    assert expected.rejected.conversation()[-1].tool_calls == (OTHER,)
    assert got.chosen.conversation() == expected.chosen.conversation()
    assert got.chosen.tools == expected.chosen.tools == read_tools(TOOLS)
    assert got.group == expected.group
    assert got.chosen_text == 'f({"x": 1})', "lengths count the calls"


def test_llama_factory_conversations_with_calls_are_read(tmp_path):
    """Roles function_call and observation, and tools as text."""
    asked = [
        {"from": "human", "value": "How warm?"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": '{"celsius": 3}'},
    ]
    row = {
        "conversations": asked,
        "tools": json.dumps([TOOLS[0]["function"]]),
        "chosen": {"from": "gpt", "value": "Three."},
        "rejected": {"from": "gpt", "value": "No idea."},
    }
    path = write_jsonl(tmp_path / "d.jsonl", [row])
    (got,) = data.read_source(SourceConfig(str(path)), head="score").pairs
    assert [m.role for m in got.chosen.conversation()] == ["user", "assistant", "tool", "assistant"]
    assert got.chosen.conversation()[1].tool_calls == (ONE,)
    assert got.chosen.tools == read_tools(TOOLS)


def test_fields_that_arrow_fills_up_are_no_arguments(tmp_path):
    """A column of two tools has the parameters of both in each: null where a tool has none."""
    other = {
        "type": "function",
        "function": {"name": "g", "parameters": {"type": "object", "properties": {"y": {"type": "string"}}}},
    }
    rows = [
        ROW | {"tools": TOOLS},
        ROW | {"tools": [other], "chosen": [calling("f")], "rejected": [USER | {"role": "assistant"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = data.read_source(SourceConfig(str(tmp_path / "d.parquet")), head="score")
    assert not found.bad
    assert json.loads(found.pairs[1].chosen.tools) == [other]
    assert found.pairs[0].chosen.conversation() == pair(ROW).chosen.conversation()


def test_other_tools_are_another_prompt():
    one, other = pair(ROW), pair(ROW | {"tools": [{"name": "other"}]})
    assert one.group != other.group
    assert leakage.prompt_key(one) != leakage.prompt_key(other)


def test_two_calls_in_the_prompt_that_differ_are_not_the_same_turn():
    sides = {side: [USER, calling("g"), {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    with pytest.raises(FieldError, match="separate conversation"):
        pair({"prompt": [USER, calling("f")], **sides})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tools": "no JSON"}, "tools"),
        ({"tools": [3]}, "tools"),
        ({"chosen": [calling("f", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])]}, "chosen"),
        ({"chosen": [calling("f", tool_calls=[{"function": {}}])]}, "chosen"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "image", "image": "A"}]}]}, "chosen"),
        ({"prompt": [USER | {"tool_calls": [calling("f")]}]}, "prompt"),
        ({"prompt": [USER | {"name": "Ada"}]}, "prompt"),
    ],
)
def test_bad_tools_and_calls_are_named(change, field):
    with pytest.raises(FieldError) as caught:
        pair(ROW | change)
    assert caught.value.field == field


def test_tools_that_no_template_would_place_are_refused():
    for row, source in (
        ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, {"strings": "raw"}),
        ({"chosen": "Human: hi\n\nAssistant: yes", "rejected": "Human: hi\n\nAssistant: no"}, {"prompt_key": None}),
    ):
        with pytest.raises(FieldError, match="no template would place it") as caught:
            pair(row | {"tools": TOOLS}, **source)
        assert caught.value.field == "tools"
        assert not pair(row | {"tools": TOOLS}, ignored_columns=("tools",), **source).chosen.tools
    with pytest.raises(FieldError, match="ignored_columns"):
        pair(ROW, tools_key=None)


def test_training_names_what_its_template_cannot_write():
    with pytest.raises(sequences.PairEncodingError, match=r"f:1: tools is not supported by the chat template"):
        sequences.encode([pair(ROW)], encoder_of(tiny_tokenizer()))
    table = sequences.encode([pair(ROW)], encoder_of(FAMILIES["qwen"].tokenizer()))
    assert len(table) == 1
    assert table.sequences[0].ids != table.sequences[1].ids


def test_responses_that_are_calls_are_not_edited():
    assert not _is_editable(pair(ROW))
    assert with_response(pair(ROW).chosen, lambda text: f"{text}!") is None
