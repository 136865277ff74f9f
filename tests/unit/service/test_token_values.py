"""The texts of tokens, by the decoders of the tokenizers that models have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from rewardserve.service.token_values import pieces

BYTES = {f"<0x{byte:02X}>": 10 + i for i, byte in enumerate("é🥚".encode())}
LLAMA_2 = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
CASES = {
    "metaspace": (decoders.Metaspace(), ["▁Eight", "▁minutes", "▁please", "."], ["Eight", " minutes", " please", "."]),
    "llama 2": (LLAMA_2, ["▁Eight", "▁", "<0xC3>", "<0xA9>", "▁minutes"], ["Eight", " ", "", "é", " minutes"]),
    "four bytes": (
        LLAMA_2,
        ["▁an", "<0xF0>", "<0x9F>", "<0xA5>", "<0x9A>", "▁egg"],
        ["an", "", "", "", "🥚", " egg"],
    ),
    "characters of bytes": (
        LLAMA_2,
        ["▁a", "<0xF0>", "<0x9F>", "<0xA5>", "<0x9A>", *["<0xC3>", "<0xA9>"] * 4],
        ["a", "", "", "", "🥚", *["", "é"] * 4],
    ),
    "wordpiece": (decoders.WordPiece(cleanup=False), ["boil", "##ing", "an", "egg"], ["boil", "ing", " an", " egg"]),
}


class Encoder:
    """The part of an encoder that makes text of ids."""

    def __init__(self, decoder: object, tokens: Sequence[str]) -> None:
        vocabulary = {"?": 0, **BYTES}
        for token in tokens:
            vocabulary.setdefault(token, 100 + len(vocabulary))
        self.ids = tuple(vocabulary[token] for token in tokens)
        self._tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        self._tokenizer.decoder = decoder

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [0, 1])
def test_the_texts_of_tokens_are_the_parts_of_the_text_of_all(case, first):
    decoder, tokens, expected = CASES[case]
    encoder = Encoder(decoder, tokens)
    assert pieces(encoder, encoder.ids, first) == expected[first:]
    assert "".join(pieces(encoder, encoder.ids, 0)) == encoder.decode(encoder.ids)


def test_bytes_that_never_become_a_character_are_shown():
    encoder = Encoder(LLAMA_2, ["▁a", "<0xC3>", "▁b"])
    assert pieces(encoder, encoder.ids, 0) == ["a", "", "\ufffd b"]
    encoder = Encoder(LLAMA_2, ["▁a", *["<0xC3>"] * 6])
    assert "".join(pieces(encoder, encoder.ids, 0)).count("\ufffd") == 6
