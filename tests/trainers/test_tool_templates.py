"""Tools and calls in the chat templates of TRL's package, which are those of public models: the ids of `apply_chat_template`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs TRL: run `make test-trainers`")

import trl

from tests.support.tool_templates import ToolFamily
from tests.unit.model.test_tool_calls import TALKS, TOOLS, encoder_of, rendered, sample

_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
PUBLIC = {
    "qwen2_5": _CHATML,
    "qwen3": _CHATML,
    "qwen3_instruct_2507": _CHATML,
    "qwen3_vl": _CHATML,
    "llama3_1": _LLAMA,
    "glm4moe": ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
    "lfm2_v2": ("<|tool_call_start|>", "<|tool_call_end|>", *_CHATML),
    "nemotron_3_nano": _CHATML,
    "gemma4_v2": ("<|turn>", "<turn|>"),
}
"""Templates with their control tokens, of which the last ends a turn."""
FOLDER = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize("talk", ["ends with a call", "ends with an answer"])
@pytest.mark.parametrize("name", PUBLIC)
def test_the_ids_are_those_of_apply_chat_template(name, talk):
    family = ToolFamily((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), PUBLIC[name])
    tokenizer = family.tokenizer()
    tokenizer.bos_token = "<s>"
    assert encoder_of(tokenizer)(sample(TALKS[talk])).ids == rendered(tokenizer, TALKS[talk], TOOLS)
