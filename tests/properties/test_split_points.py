"""A text that is cut at a seam has the ids of the whole, whatever tokenizer, whatever text.

The tokenizers here are of every kind that the library has, with added tokens that overlap, take whitespace with them,
or look at their neighbours. Seams are found from a tokenizer's description; what they promise is checked on texts
made of pieces of those tokens.
"""

from __future__ import annotations

from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from rewardserve.model.tokenization.split_points import last_split_point, split_tokens

CORPUS = ["the quick brown fox jumps over the lazy dog. user assistant system", "Ünïcödé 你好 \n\t <|a|> | < > s"] * 3
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
WORDS = pre_tokenizers.Split(Regex(r"\s+(?!\S)|\s+|\w+|[^\w\s]+"), "isolated")
QWEN = pre_tokenizers.Sequence([WORDS, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
KINDS = {
    "byte-level": (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level with a space in front": (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "split, then byte-level, composed": (models.BPE(), normalizers.NFC(), QWEN),
    "metaspace, first": (models.Unigram(), None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace, always": (models.Unigram(), None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace, never, unsplit": (models.BPE(), None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    "no pre-tokenizer, a mark in front": (models.BPE(), LLAMA2, None),
    "words, lower case": (models.WordPiece(unk_token="[UNK]"), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "stripped": (models.BPE(), normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]), pre_tokenizers.Whitespace()),
}  # fmt: skip
TRAINERS = {"BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer, "WordPiece": trainers.WordPieceTrainer}

CONTENTS = ["<|a|>", "<|a|>x", "<|", "|>", "|><|", "<s>", "s><", "ss", "s", " <b>", "<b> ", "A", "\n", "é", "<<"]
ADDED = st.lists(
    st.builds(
        AddedToken, st.sampled_from(CONTENTS),
        single_word=st.sampled_from([False] * 9 + [True]), lstrip=st.booleans(), rstrip=st.booleans(), normalized=st.booleans(),
        special=st.booleans(),
    ),
    min_size=1, max_size=4, unique_by=lambda token: token.content,
).map(lambda tokens: [token for token in tokens if token.content.strip() or not token.normalized])  # fmt: skip
"""Without those that a normaliser may make empty: the library looks for them without end."""
TEXTS = st.lists(
    st.sampled_from([*CONTENTS, *CONTENTS, " ", "  ", "\t", "the quick", "fox", "Ü", "你", "|", "<", ">", "a", "X"]),
    max_size=12,
).map("".join)


@cache
def plain_tokenizer(kind):
    model, normalizer, pre_tokenizer = KINDS[kind]
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    options = (
        {"unk_token": "[UNK]"} if kind != "byte-level" else {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    )
    if type(model).__name__ != "Unigram":
        options.pop("unk_token", None)
    trainer = TRAINERS[type(model).__name__](vocab_size=300, special_tokens=["[UNK]"], show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tokenizer_of(kind, added, trims_offsets):
    tokenizer = Tokenizer.from_str(plain_tokenizer(kind))
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.add_special_tokens([token for token in added if token.special])
    if trims_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def ids_and_ends(tokenizer, text, offset=0):
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [(token, end + offset) for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True)]


@settings(max_examples=500, deadline=None)
@example(
    kind="byte-level", trims_offsets=False, texts=["<b> <|a|>"],
    added=[AddedToken("<|a|>", lstrip=True, special=True), AddedToken("<|", special=True, normalized=False)],
)  # fmt: skip
@given(
    kind=st.sampled_from(sorted(KINDS)),
    added=ADDED,
    trims_offsets=st.booleans(),
    texts=st.lists(TEXTS, min_size=1, max_size=5),
)
def test_a_text_cut_at_any_seam_has_the_ids_of_the_whole(kind, added, trims_offsets, texts):
    tokenizer = tokenizer_of(kind, added, trims_offsets)
    tokens = split_tokens(tokenizer)
    for text in texts:
        try:
            whole = ids_and_ends(tokenizer, text)
        except BaseException as error:  # a panic of the library: `lstrip` where normalising changes the length
            if type(error).__name__ != "PanicException":
                raise
            continue
        seams = {at for at in range(1, len(text)) if any(text.startswith(token, at) for token in tokens)}
        assert last_split_point(text, tokens) == max(seams, default=0)
        for at in seams:
            assert ids_and_ends(tokenizer, text[:at]) + ids_and_ends(tokenizer, text[at:], at) == whole, text[:at]
