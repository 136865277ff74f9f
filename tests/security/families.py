"""Six model families: tokenizers of their kind with their own control tokens, and templates of their structure.

Vocabularies are trained here on a few sentences; what matters is which tokens are added, with which flags, and what the
parts of the tokenizer do. `controls` is written by hand: what code finds out is held to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is two plus two? Four, of course. The quick brown fox jumps over the lazy dog.",
    "user assistant system model tool hello world, a reward model scores a response to a prompt\n\n",
    "<|im_end|> <|eot_id|> [INST] </s> <end_of_turn> Ünïcödé 你好 🙂 < | > [ ] / _ tabs and   spaces",
] * 3

_WORDS = Regex(r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Family:
    """`opens`: what begins an assistant's turn. `ends`: what ends one. `takes_space`: tokens swallow the space behind."""

    name: str
    make: Callable[[], Tokenizer]
    template: str
    controls: tuple[str, ...]
    opens: str
    ends: str
    bos: str | None = None
    plain: tuple[str, ...] = ()
    takes_space: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        fast = self.make()
        fast.add_special_tokens(
            [AddedToken(t, special=True, normalized=False, rstrip=self.takes_space) for t in self.controls]
        )
        fast.add_tokens([AddedToken(t, special=False, normalized=False) for t in self.plain])
        made = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=self.ends, bos_token=self.bos)
        made.chat_template = self.template
        return made


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(*, prepends: bool) -> Tokenizer:
    """Byte fallback and no pre-tokenizer, as converted from sentencepiece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marks = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], max_token_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    marks_back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(marks_back + [decoders.Strip(" ", 1, 0)] * prepends)
    # The bytes are words of the vocabulary, as they are in the originals, and no added tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] == 0]
    return Tokenizer.from_str(json.dumps(state))


RESERVED = tuple(f"<|reserved_special_token_{i}|>" for i in range(60))

QWEN = Family(
    "qwen",
    byte_level,
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in c %}{% set thought = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>assistant\n{% if loop.last and thought %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n{% elif m['role'] == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ c }}\n</tool_response><|im_end|>\n{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    controls=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>"),
    plain=("<think>", "</think>", "<tool_response>", "</tool_response>"),
    opens="<|im_start|>assistant\n",
    ends="<|im_end|>",
)
LLAMA3 = Family(
    "llama 3",
    byte_level,
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] if m['role'] != 'tool' else 'ipython' }}"
    "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    controls=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        *RESERVED,
    ),
    bos="<|begin_of_text|>",
    opens="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ends="<|eot_id|>",
)
GEMMA = Family(
    "gemma",
    lambda: sentencepiece(prepends=False),
    "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.first = m['content'] + '\\n\\n' %}{% else %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ ns.first }}{{ m['content'] | trim }}<end_of_turn>\n{% set ns.first = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    controls=("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
    plain=("\n", "\n\n", "\n\n\n", "▁▁", "<h1>", "</h1>"),
    bos="<bos>",
    opens="<start_of_turn>model\n",
    ends="<end_of_turn>",
)
PHI = Family(
    "phi",
    lambda: sentencepiece(prepends=True),
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    controls=("<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"),
    opens="<|assistant|>\n",
    ends="<|end|>",
    takes_space=True,
)
MISTRAL = Family(
    "mistral v3",
    lambda: sentencepiece(prepends=True),
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'tool' %}"
    "[TOOL_RESULTS] {{ m['content'] }}[/TOOL_RESULTS]{% elif m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}",
    controls=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    bos="<s>",
    opens="[/INST]",
    ends="</s>",
)
DEEPSEEK = Family(
    "deepseek",
    byte_level,
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'assistant' %}"
    "<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜end▁of▁sentence｜>{% else %}<｜User｜>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
    controls=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    plain=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    bos="<｜begin▁of▁sentence｜>",
    opens="<｜Assistant｜>",
    ends="<｜end▁of▁sentence｜>",
)
FAMILIES = {family.name: family for family in (QWEN, LLAMA3, GEMMA, PHI, MISTRAL, DEEPSEEK)}


def turn_tokens(family: Family) -> tuple[str, ...]:
    """What nobody but the template may write: special tokens, and DeepSeek's two that are not called so."""
    return (*family.controls, *(token for token in family.plain if token.startswith("<｜")))
