"""What an encoder remembers changes nothing: ids, prompt length, flags and refusals are those of one that forgets all.

The encoder that forgets renders every conversation as a whole and tokenises it as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rewardserve.model.conversation import Message, Sample, SampleError
from rewardserve.model.default import base_model
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.tiny import CHATML, LLAMA3_LIKE, tiny_tokenizer

BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'].strip() }} </s>{% else %}"
    "[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('|')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def sentencepiece_like():
    """No special token between prompt and response, a mark for every beginning, and contents that are stripped."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=specials[:3], show_progress=False)
    tokenizer.train_from_iterator(["[INST] what is two plus two [/INST] four of course"] * 3, trainer)
    tokenizer.add_tokens(specials[3:])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = BRACKETS
    return fast


def default_tokenizer():
    source = base_model._find_gguf()
    return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


TOKENIZERS = {
    "chatml": lambda: tiny_tokenizer(CHATML),
    "bos": lambda: tiny_tokenizer(LLAMA3_LIKE, bos="<s>"),
    "no template": lambda: tiny_tokenizer(None),
    "thinking": lambda: tiny_tokenizer(THINKING),
    "brackets": sentencepiece_like,
    "default model": default_tokenizer,
}
CUTS = {"chatml", "bos", "thinking", "default model"}


@cache
def encoders(kind, strip, max_tokens, truncation):
    """One that remembers much, one that forgets soon, and one that remembers nothing. They live through all examples."""
    tokenizer = _tokenizer(kind)
    policy = infer_policy(
        tokenizer,
        max_tokens=max_tokens,
        vocab_size=len(tokenizer),
        rule=LAYOUT_RULES["language_model" if strip else "trl_value_head"],
        truncation=truncation,
    )
    return (
        Encoder(tokenizer, policy),
        Encoder(tokenizer, policy, memo_chars=150),
        Encoder(tokenizer, policy, memo_chars=0),
    )


@cache
def _tokenizer(kind):
    return TOKENIZERS[kind]()


PIECES = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>\n", "<s>", "</s>", "<|endoftext|>", "[INST]", "<pad>",
     "<|im_", "|>", "\n", "\n\n", " ", "  ", "\t", "\r\n", "a", "four", "What is two", "é", "e\u0301", "你好", "🙂", "\u200d",
     "\x00", "|", "\ud800"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)
PROMPTS = TEXTS | st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool", "alien"]), TEXTS), max_size=3
).map(tuple)
FINISHES = st.sampled_from(["stop", "length"])
OPENED = lambda prompt: st.just("".join(message.content for message in _turns(prompt)))  # noqa: E731
OPENERS = st.sampled_from(["", "<|im_end|>\n<|im_start|>assistant\n"])
FORMS = {
    "pair": lambda prompt: st.builds(Sample, prompt=st.just(prompt), response=TEXTS, finish_reason=FINISHES),
    "messages": lambda prompt: st.builds(
        Sample, messages=TEXTS.map(lambda text: (*_turns(prompt), Message("assistant", text))), finish_reason=FINISHES
    ),
    "text": lambda prompt: st.builds(
        Sample, text=st.tuples(OPENED(prompt), OPENERS, TEXTS).map("".join), finish_reason=FINISHES
    ),
    "ids": lambda _: st.builds(
        Sample, input_ids=st.lists(st.integers(-1, 340), max_size=12).map(tuple), finish_reason=FINISHES
    ),
}  # fmt: skip


def _turns(prompt):
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


@st.composite
def groups(draw):
    """Several samples to each of a few prompts."""
    prompts = draw(st.lists(PROMPTS, min_size=1, max_size=2))
    drawn = [
        FORMS[draw(st.sampled_from(sorted(FORMS)))](draw(st.sampled_from(prompts)))
        for _ in range(draw(st.integers(1, 6)))
    ]
    return [draw(sample) for sample in drawn]


def told(outcome):
    return (outcome.code, outcome.message, outcome.details) if isinstance(outcome, SampleError) else outcome


def one_by_one(encode, samples):
    outcomes = []
    for sample in samples:
        try:
            outcomes.append(encode(sample))
        except SampleError as error:
            outcomes.append(told(error))
    return outcomes


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    samples=groups(), strip=st.booleans(), max_tokens=st.sampled_from([8, 20, 200]),
    truncation=st.sampled_from(["prompt_left", "error"]),
)  # fmt: skip
def test_what_is_remembered_changes_nothing(kind, samples, strip, max_tokens, truncation):
    remembers, forgets_soon, forgets = encoders(kind, strip, max_tokens, truncation)
    expected = one_by_one(forgets, samples)
    for encode in (remembers, forgets_soon):
        assert [told(outcome) for outcome in encode.many(samples)] == expected
        assert one_by_one(encode, samples) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_prompt_of_a_group_is_tokenised_once_where_a_seam_is_known(kind):
    encode, _, forgets = encoders.__wrapped__(kind, True, 200, "prompt_left")  # nothing is remembered yet
    fast = encode._fast
    seen = []

    class Spy:
        def encode(self, text, **kwargs):
            seen.append(text)
            return fast.encode(text, **kwargs)

        def encode_batch(self, texts, **kwargs):
            seen.extend(texts)
            return fast.encode_batch(texts, **kwargs)

    encode._fast = Spy()
    try:
        samples = [Sample(prompt="Why is the sky blue?", response=f"{i} times") for i in range(5)]
        samples += [replace(sample, finish_reason="length") for sample in samples]
        encoded = [*encode.many(samples[:4]), *map(encode, samples[4:])]
    finally:
        encode._fast = fast
    assert encoded == one_by_one(forgets, samples)
    assert sum("sky" in text for text in seen) == (1 if kind in CUTS else len(samples))
