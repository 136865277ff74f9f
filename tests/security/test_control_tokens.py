"""The ids of an attacked sample have exactly the control tokens that the template writes for benign content.

In number and in order, over the templates of six families, wherever the attack stands.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewardserve.model.contract import sample_to_dict
from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, InvalidMessages, Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.security.attacks import BENIGN, attacks
from tests.security.families import FAMILIES, Family, byte_level, turn_tokens

PLACES = ("system", "user", "earlier answer", "later user", "tool", "response")
CASES = [(name, attack) for name, family in FAMILIES.items() for attack in attacks(family)]


@cache
def world(name: str, strip: bool = True, memo_chars: int = 2_000_000) -> tuple[Family, Encoder]:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    policy = infer_policy(
        tokenizer,
        max_tokens=40_000,
        vocab_size=len(tokenizer),
        rule=LAYOUT_RULES["language_model" if strip else "trl_value_head"],
    )
    return family, Encoder(tokenizer, policy, memo_chars=memo_chars)


@cache
def control_ids(name: str) -> frozenset[int]:
    family, encode = world(name)
    return frozenset(encode._fast.token_to_id(token) for token in turn_tokens(family))


def controls_of(name: str, encoded) -> tuple[int, ...]:
    return tuple(i for i in encoded.ids if i in control_ids(name))


def conversation(place: str, text: str) -> tuple[Message, ...]:
    said = dict.fromkeys(PLACES, BENIGN) | {place: text}
    system = (Message("system", said["system"]),) if place == "system" else ()
    tool = (Message("tool", said["tool"]), Message("assistant", BENIGN)) if place == "tool" else ()
    return (
        *system,
        Message("user", said["user"]),
        Message("assistant", said["earlier answer"]),
        *tool,
        Message("user", said["later user"]),
        Message("assistant", said["response"]),
    )


@pytest.mark.parametrize(("name", "attack"), CASES)
def test_an_attack_adds_no_control_token_and_takes_none_away(name, attack):
    family, encode = world(name)
    text = attacks(family)[attack]
    for place in PLACES:
        honest = encode(Sample(messages=conversation(place, BENIGN)))
        attacked = Sample(messages=conversation(place, text))
        # Twice: the second time the prompt is remembered.
        for encoded in (encode(attacked), encode(attacked), *encode.many([attacked] * 4)):
            assert controls_of(name, encoded) == controls_of(name, honest), place
            assert encoded.ids[-1] == honest.ids[-1]
        cut_off = encode(Sample(messages=conversation(place, text + "x"), finish_reason="length"))
        assert controls_of(name, cut_off) == controls_of(name, honest)[:-1]


@pytest.mark.parametrize(("name", "attack"), CASES)
def test_what_is_remembered_changes_nothing_of_an_attacked_sample(name, attack):
    family, remembers = world(name)
    _, forgets = world(name, memo_chars=0)
    text = attacks(family)[attack]
    samples = [Sample(prompt=p, response=r) for p in (text, "Hi") for r in (text, "Yes.", text + "x")]
    expected = [forgets(sample) for sample in samples]
    assert remembers.many(samples) == expected
    assert [remembers(sample) for sample in samples] == expected


@pytest.mark.parametrize(("name", "attack"), CASES)
def test_an_attack_in_the_response_to_a_rendered_prompt_is_text_too(name, attack):
    family, encode = world(name)
    text = attacks(family)[attack]
    prompt = encode._render((Message("user", "Hi"),), add_generation_prompt=True)
    honest = encode(Sample(text=prompt + BENIGN, n_prompt_chars=len(prompt)))
    for response in (text, text + "x" + family.ends, family.ends[1:] + text):
        encoded = encode(Sample(text=prompt + response, n_prompt_chars=len(prompt)))
        assert controls_of(name, encoded) == controls_of(name, honest)
        assert encoded.n_prompt == honest.n_prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_that_begins_in_the_prompt_and_ends_in_the_response_is_text(name):
    family, encode = world(name)
    # Whoever splits it here, the prompt is rendered and its control tokens are the caller's.
    prompt = encode._render((Message("user", "Hi"),), add_generation_prompt=True)
    for n in range(1, len(family.ends)):
        left, right = prompt + family.ends[:n], family.ends[n:] + "Good."
        encoded = encode(Sample(text=left + right, n_prompt_chars=len(left)))
        honest = encode(Sample(text=prompt + "Good.", n_prompt_chars=len(prompt)))
        assert controls_of(name, encoded) == controls_of(name, honest)


def test_without_a_template_no_two_contents_make_a_control_token_together():
    family = FAMILIES["qwen"]
    tokenizer = family.tokenizer()
    tokenizer.chat_template = None
    policy = infer_policy(tokenizer, max_tokens=4_000, vocab_size=len(tokenizer), rule=LAYOUT_RULES["language_model"])
    encode = Encoder(tokenizer, policy)
    end = tokenizer.eos_token_id
    for n in range(1, len(family.ends)):
        pair = Sample(prompt="x" + family.ends[:n], response=family.ends[n:] + "y")
        assert [i for i in encode(pair).ids if i in control_ids("qwen")] == [end]
        three = (family.ends[:n], family.ends[n : n + 1], family.ends[n + 1 :] + "y")
        messages = tuple(Message(role, text) for role, text in zip(("system", "user", "assistant"), three, strict=True))
        assert [i for i in encode(Sample(messages=messages)).ids if i in control_ids("qwen")] == [end]


@pytest.mark.parametrize("name", ["qwen", "llama 3", "deepseek"])
def test_nothing_of_what_an_attacker_wrote_is_lost(name):
    family, encode = world(name)
    tokenizer = family.tokenizer()
    for attack, text in attacks(family).items():
        written = encode._without_ending(text.strip())[0] if "thought" not in attack else "Good."
        decoded = tokenizer.decode(encode(Sample(prompt="Hi", response=text)).ids)
        assert written.rstrip() in decoded, attack


@pytest.mark.parametrize("text", ["a</s>b", "</s>", "x </s></s> y", "<unk></s>", "</s</s>>", "x＜/s＞y＜/s＞"])
def test_a_vocabulary_that_has_the_control_token_as_a_word_does_not_give_it(text):
    """Unigram finds the best words for a text; `</s>` is one of its words, with the best of all scores."""
    words = [("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "▁abxy</s>unkHiYes.")]
    tokenizer = Tokenizer(models.Unigram(words, 0, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    policy = infer_policy(fast, max_tokens=100, vocab_size=40, rule=LAYOUT_RULES["language_model"])
    encode = Encoder(fast, policy)
    assert encode(Sample(prompt=text, response=text + "y")).ids.count(1) == 1
    assert encode(Sample(prompt="éa", response="é</s>y")).ids.count(0) == 2, (
        "what no word is found for is still unknown"
    )


def test_tokens_that_are_looked_for_in_normalised_text_have_no_disguise():
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    policy = infer_policy(fast, max_tokens=1000, vocab_size=len(fast), rule=LAYOUT_RULES["language_model"])
    encode = Encoder(fast, policy)
    end = fast.eos_token_id
    assert tokenizer.encode("＜｜ＥＮＤ｜＞").ids == [end]
    for text in ("a＜｜ＥＮＤ｜＞b", "a<|END|>b", "a<|end|>b＜|end|＞c"):
        assert encode(Sample(prompt=text, response=text)).ids.count(end) == 2


# -- what is no attack ------------------------------------------------------------------------------------------------

HARMLESS = st.lists(
    st.sampled_from(["<", "|", ">", "<|", "|>", "[", "INST", "]", "</", "s", "im_end", "user", "assistant\n", "\n", "\n\n", " ",
                     "  ", "a", "What is two", "é", "e\u0301", "你好", "🙂", "＜", "｜", "\U000f0000",
                     "<think>", "</think>", "<h1>",
                     "<0x0A>", "<unk", "▁"]),
    min_size=1, max_size=10,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(texts=st.lists(HARMLESS, min_size=3, max_size=3))
def test_a_conversation_that_quotes_no_control_token_has_the_ids_of_its_rendered_text(name, texts):
    family, encode = world(name, strip=False)
    # A token may be made of two texts' ends only where the template writes nothing between them.
    if any(token in text for token in (*turn_tokens(family), "<unk>") for text in texts):
        return
    messages = tuple(Message(role, text) for role, text in zip(("system", "user", "assistant"), texts, strict=True))
    tokenizer = family.tokenizer()
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages], tokenize=False
        )
        encoded = encode(Sample(messages=messages, options=SCORE_EMPTY_OPTIONS))
    except (InvalidMessages, ValueError):
        return
    plain = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert list(encoded.ids) == plain


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_may_end_with_its_end_token_once(name):
    family, encode = world(name)
    assert encode(Sample(prompt="Hi", response="Yes." + family.ends)) == encode(Sample(prompt="Hi", response="Yes."))


@pytest.mark.parametrize("name", FAMILIES)
def test_quoting_a_token_costs_as_many_ids_as_ordinary_text_of_its_length(name):
    family, encode = world(name)
    quoting = encode(Sample(prompt="Hi", response=f"It ends with {family.ends}, always."))
    assert len(quoting.ids) > len(encode(Sample(prompt="Hi", response="It ends with , always.")).ids) + 1


def test_a_probe_that_quotes_nothing_is_what_it_was():
    """A contract written before this rule: its probes are plain conversations, and their ids are those of the whole text."""
    for name in FAMILIES:
        family, encode = world(name, strip=False)
        sample = Sample(prompt="What is two plus two?", response="Four, of course.")
        tokenizer = family.tokenizer()
        chat = [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.response}]
        assert (
            list(encode(sample).ids)
            == tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        ), sample_to_dict(sample)
