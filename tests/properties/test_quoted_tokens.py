"""A sample that quotes a control token has the ids of one that quotes nothing, except for the quoted token itself.

The reference is the same sample with an ordinary word in its place, which takes no special path: what two such words have
in common, before and after, is what the quoting sample must have as well. Over kinds of tokenizers, kinds of added tokens,
templates, and places.
"""

from __future__ import annotations

from functools import cache
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy

CONTROLS = ("<s>", "</s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>")
CORPUS = [
    "user assistant system tool what is two plus two? four of course. the quick brown fox jumps over the lazy dog",
    "it ends with a word, always; and goes on (in brackets) \n new line :: user: assistant: [INST] </s> <|user|>",
] * 4
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} </s>{% else %}"
    "[INST] {{ m['role'] }} {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ 'system' if m['role'] == 'tool' else m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS_BETWEEN = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}{{ m['content'] }}</s>{{ m['role'] }} ends\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
"""Plain words of the template directly beside contents and control tokens."""
TEMPLATES = {"llama 2": LLAMA2, "zephyr": ZEPHYR, "words": WORDS_BETWEEN}

FLAGS = {
    "plain": {},
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "both": {"lstrip": True, "rstrip": True},
    "normalized": {"normalized": True},
    "single_word": {"single_word": True},
}


def _bpe(**parts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    alphabet = list(map(chr, range(32, 127)))
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=["<unk>"], show_progress=False, initial_alphabet=alphabet
    )
    return _trained(tokenizer, trainer, **parts)


def _trained(tokenizer, trainer, *, normalizer=None, pre_tokenizer=None):
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _metaspace(scheme, split):
    return lambda: _bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split))


def _legacy():
    return _bpe(normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def _byte_level(add_prefix_space):
    def make():
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
        tokenizer.decoder = decoders.ByteLevel()
        return _trained(tokenizer, trainer, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space))

    return make


def _word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    return _trained(
        tokenizer, trainer, normalizer=normalizers.BertNormalizer(), pre_tokenizer=pre_tokenizers.BertPreTokenizer()
    )


def _unigram(**parts):
    def make():
        trainer = trainers.UnigramTrainer(
            vocab_size=160,
            special_tokens=["<unk>"],
            unk_token="<unk>",
            show_progress=False,
            initial_alphabet=list(map(chr, range(33, 127))),
        )
        return _trained(Tokenizer(models.Unigram()), trainer, **parts)

    return make


KINDS = {
    **{
        f"metaspace {scheme}{', no split' * (not split)}": _metaspace(scheme, split)
        for scheme in ("first", "always", "never")
        for split in (True, False)
    },
    "legacy sentencepiece": _legacy,
    "byte level": _byte_level(False),
    "byte level, prefix space": _byte_level(True),
    "word piece": _word_piece,
    "unigram": _unigram(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "unigram first, NFKC": _unigram(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"), normalizer=normalizers.NFKC()
    ),
}
WORLDS = [(kind, flags) for kind in KINDS for flags in FLAGS]
PLACES = ("system", "user", "earlier answer", "later user", "response")


@cache
def tokenizer_of(kind: str, flags: str) -> PreTrainedTokenizerFast:
    tokenizer = KINDS[kind]()
    settings = {"normalized": False, **FLAGS[flags]}
    tokenizer.add_special_tokens([AddedToken(token, special=True, **settings) for token in CONTROLS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def encoder(kind: str, flags: str, template: str) -> Encoder:
    tokenizer = tokenizer_of(kind, flags)
    tokenizer.chat_template = TEMPLATES[template]
    policy = infer_policy(tokenizer, max_tokens=10_000, vocab_size=len(tokenizer), rule=LAYOUT_RULES["language_model"])
    return Encoder(tokenizer, policy)


def conversation(place: str, content: str) -> tuple[Message, ...]:
    said = dict.fromkeys(PLACES, "what is it") | {place: content}
    roles = {"earlier answer": "assistant", "later user": "user", "response": "assistant"}
    return tuple(Message(roles.get(each, each), said[each]) for each in PLACES)


def common(a, b) -> int:
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))])


def check(encode: Encoder, sample_with, token: str) -> None:
    """`sample_with(word)` makes the sample."""
    one, other = (encode(sample_with(word)).ids for word in ("quick", "lazy"))
    before, after = common(one, other), common(one[::-1], other[::-1])
    quoting = encode(sample_with(token)).ids
    assert before + after < len(one)
    assert quoting[:before] == one[:before]
    assert quoting[len(quoting) - after :] == one[len(one) - after :]
    controls = {encode._fast.token_to_id(each) for each in CONTROLS}
    assert not controls.intersection(quoting[before : len(quoting) - after]), "a quoted token is text"


@pytest.mark.sweep(40)
@pytest.mark.parametrize(("kind", "flags"), WORLDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_in_a_message(kind, flags, template):
    encode = encoder(kind, flags, template)
    for place in PLACES:
        for token in CONTROLS:
            check(encode, lambda word, at=place: Sample(messages=conversation(at, f"it ends {word} always")), token)


@pytest.mark.parametrize(("kind", "flags"), WORLDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_in_the_response_to_a_rendered_prompt(kind, flags, template):
    encode = encoder(kind, flags, template)
    prompt = encode._render((Message("user", "what is it"),), add_generation_prompt=True)
    for token in CONTROLS:
        check(
            encode,
            lambda word: Sample(text=f"{prompt} it ends {word} always", n_prompt_chars=len(prompt)),
            token,
        )


@pytest.mark.parametrize(("kind", "flags"), WORLDS)
def test_text_that_quotes_nothing_has_the_same_ids_on_the_path_of_quoting_text(kind, flags):
    """Every text of a template, encoded as if something in it was quoted."""
    for template in TEMPLATES:
        encode = encoder(kind, flags, template)
        for place in PLACES:
            text = encode._render(conversation(place, "it ends with a word"), add_generation_prompt=False)
            plain = encode._fast.encode(text, add_special_tokens=False)
            ids, ends = encode._controls.encode(text, encode._controls.hide([""]))
            assert ids == plain.ids
            assert ends == [end for _, end in plain.offsets]


PIECES = st.sampled_from(
    [*CONTROLS, "</", "s>", "[", "INST]", "<|", "|>", "user", " ", "\n", "a", "é", "▁", "word", ":"]
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    flags=st.sampled_from(sorted(FLAGS)),
    template=st.sampled_from(sorted(TEMPLATES)),
    place=st.sampled_from(PLACES),
    left=st.lists(PIECES, max_size=4).map("".join),
    right=st.lists(PIECES, max_size=4).map("".join),
    token=st.sampled_from(CONTROLS),
)
def test_whatever_stands_beside_it(kind, flags, template, place, left, right, token):
    """The other sample quotes something else at the same place; what surrounds the contents is that of an innocent sample."""
    encode = encoder(kind, flags, template)
    content = f"it is {left} {token} {right} it is"
    quoting = encode(Sample(messages=conversation(place, content))).ids
    one, other = (encode(Sample(messages=conversation(place, f"it is {word} it is"))).ids for word in ("quick", "lazy"))
    before, after = common(one, other), common(one[::-1], other[::-1])
    assert quoting[:before] == one[:before]
    assert quoting[len(quoting) - after :] == one[len(one) - after :]
    controls = {encode._fast.token_to_id(each) for each in CONTROLS}
    assert not controls.intersection(quoting[before : len(quoting) - after])
