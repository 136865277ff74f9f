"""Ids of a conversation in LLaMA-Factory, and the chat template that it writes, from the slots of its templates.

Written out from what its `Template`, `Llama2Template` and pairwise processor do, without their code and without ours. A slot is a
text with one `{}` for the content at most, or BOS or EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOS, EOS = object(), object()
Slot = Any
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Recipe:
    """A template of LLaMA-Factory. `appends_eos`: its `efficient_eos`. `fuses`: the system message goes into the first turn."""

    user: tuple[Slot, ...] = ("{}",)
    assistant: tuple[Slot, ...] = ("{}", EOS)
    system: tuple[Slot, ...] = ("{}",)
    prefix: tuple[Slot, ...] = ()
    default_system: str = ""
    appends_eos: bool = False
    fuses: bool = False


RECIPES = {
    "vicuna": Recipe(("USER: {} ASSISTANT:",), default_system="A chat between a user and an assistant. "),
    "alpaca": Recipe(
        ("### Instruction:\n{}\n\n### Response:\n",), ("{}", EOS, "\n\n"), default_system="Below is an instruction.\n\n"
    ),
    "default": Recipe(("Human: {}", EOS, "\nAssistant:"), ("{}", EOS, "\n"), ("System: {}", EOS, "\n")),
    "chatml": Recipe(
        ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",), ("{}<|im_end|>\n",),
        ("<|im_start|>system\n{}<|im_end|>\n",),
    ),
    "empty": Recipe(assistant=("{}",)),
    "fewshot": Recipe(assistant=("{}\n\n",), appends_eos=True),
    "llama2": Recipe((BOS, "[INST] {} [/INST]"), system=("<<SYS>>\n{}\n<</SYS>>\n\n",), fuses=True),
    "mistral": Recipe(("[INST] {}[/INST]",), (" {}", EOS), ("{}\n\n",), (BOS,), fuses=True),
    "deepseek": Recipe(("User: {}\n\nAssistant:",), system=("{}\n\n",), prefix=(BOS,)),
    "deepseekcoder": Recipe(
        ("### Instruction:\n{}\n### Response:",), ("\n{}\n<|EOT|>\n",), prefix=(BOS,), default_system="You are an assistant\n"
    ),
    "glm4": Recipe(("<|user|>\n{}<|assistant|>",), ("\n{}",), ("<|system|>\n{}",), ("[gMASK]<sop>",), appends_eos=True),
    "seed_coder": Recipe(
        (BOS, "user\n{}", EOS, BOS, "assistant\n"), system=(BOS, "system\n{}", EOS), default_system="You are 'an' assistant.\n\n"
    ),
    "zephyr": Recipe(("<|user|>\n{}", EOS, "<|assistant|>\n"), system=("<|system|>\n{}", EOS), default_system="You are Zephyr"),
    "openchat": Recipe(("GPT4 Correct User: {}", EOS, "GPT4 Correct Assistant:"), prefix=(BOS,)),
    "hunyuan": Recipe(("{}<|extra_0|>",), ("{}<|eos|>",), ("{}<|extra_4|>",), ("<|startoftext|>",)),
    "bailing_v2": Recipe(
        ("<|user|>{}<|im_end|><|assistant|>",), ("{}<|im_end|>",), ("<role>SYSTEM</role>{}<|im_end|>",), appends_eos=True
    ),
    "solar": Recipe(("### User:\n{}\n\n### Assistant:\n",), ("{}",), ("### System:\n{}\n\n",), appends_eos=True),
}  # fmt: skip


def ids_of(tokenizer: Any, recipe: Recipe, turns: Turns) -> list[int]:
    """The row of a conversation that ends with the assistant, as in LLaMA-Factory's pairwise processor."""
    system = recipe.default_system
    if turns[0][0] == "system":
        system, turns = turns[0][1] or system, turns[1:]
    row: list[int] = []
    for i, (role, content) in enumerate(turns):
        slots: list[Slot] = []
        if i == 0:
            slots += recipe.prefix
            if system and not recipe.fuses:
                slots += _filled(recipe.system, system)
        is_fused = i == 0 and recipe.fuses and bool(system)
        before = recipe.system[0].replace("{}", system, 1) if is_fused else ""
        slots += _filled(recipe.user if role == "user" else recipe.assistant, before + content)
        for slot in slots:
            if slot is BOS:
                row += [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            elif slot is EOS:
                row.append(tokenizer.eos_token_id)
            elif slot:
                row += tokenizer.encode(slot, add_special_tokens=False)
    return [*row, tokenizer.eos_token_id] if recipe.appends_eos else row


def _filled(slots: tuple[Slot, ...], content: str) -> list[Slot]:
    return [slot.replace("{}", content, 1) if isinstance(slot, str) else slot for slot in slots]


def jinja_of(tokenizer: Any, recipe: Recipe, *, loops: bool = True) -> str:
    """The chat template that LLaMA-Factory writes into a checkpoint. `loops` False: that of 2024, with one list of messages."""
    system = _sum(tokenizer, recipe.system, "system_message")
    text = f"{{{{ {_sum(tokenizer, recipe.prefix, 'content')} }}}}" if recipe.prefix else ""
    if recipe.default_system:
        text += "{% set system_message = " + _quoted(recipe.default_system) + " %}"
    text += "{% if messages[0]['role'] == 'system' %}"
    text += "{% set loop_messages = messages[1:] %}" if loops else ""
    text += "{% set system_message = messages[0]['content'] %}"
    text += "{% else %}{% set loop_messages = messages %}{% endif %}" if loops else "{% endif %}"
    if not recipe.fuses:
        text += "{% if system_message is defined %}{{ " + system + " }}{% endif %}"
    text += "{% for message in loop_messages %}" if loops else "{% for message in messages %}"
    text += "{% set content = message['content'] %}"
    if recipe.fuses:
        text += "{% if loop.index0 == 0 and system_message is defined %}{% set content = " + system
        text += " + message['content'] %}{% endif %}"
    return (
        text
        + "{% if message['role'] == 'user' %}{{ " + _sum(tokenizer, recipe.user, "content")
        + " }}{% elif message['role'] == 'assistant' %}{{ " + _sum(tokenizer, recipe.assistant, "content")
        + " }}{% endif %}{% endfor %}"
    )  # fmt: skip


def _sum(tokenizer: Any, slots: tuple[Slot, ...], name: str) -> str:
    items = []
    for slot in slots:
        if isinstance(slot, str):
            before, has_content, after = slot.partition("{}")
            items += [_quoted(before)] * bool(before) + [name] * bool(has_content) + [_quoted(after)] * bool(after)
        elif (token := tokenizer.bos_token if slot is BOS else tokenizer.eos_token) is not None:
            items.append(_quoted(token))
    return " + ".join(items)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
