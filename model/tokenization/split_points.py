"""Split points of a text: cuts after which the ids of the parts are the ids of the whole.

A fast tokenizer searches for added tokens first, in the raw text, the leftmost and of those the longest; every piece
between two of them is normalised, split and encoded separately. So a text may be cut directly before an added token,
if no token crosses the cut:
- no added token may end with the beginning of this one, or contain it further inside: it could begin before the cut;
- neither the token nor a longer one that begins with it may absorb whitespace on its left (`lstrip`); it must not begin with
  whitespace, which the token before it could absorb (`rstrip`), or be searched in normalised text only;
- no added token may depend on the characters beside it (`single_word`);
- the components of the pipeline must be known to work piece by piece. Metaspace, which may mark the first piece of a text,
  does: the second part begins with the token, and its first piece of text is no more the first than in the whole.
Where one of these cannot be shown, there is no split point. Knows the serialised tokenizer, and no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

_PIECE_BY_PIECE = frozenset({
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Replace",
    "Sequence", "Strip", "StripAccents",
    "BertPreTokenizer", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts",
    "Whitespace", "WhitespaceSplit",
    "BPE", "Unigram", "WordLevel", "WordPiece",
    "BertProcessing", "RobertaProcessing", "TemplateProcessing",
})  # fmt: skip


def split_tokens(fast: Any) -> tuple[str, ...]:
    """The added tokens of a `tokenizers.Tokenizer` before which a text may be cut. `fast` must match special tokens."""
    added = fast.get_added_tokens_decoder().values()
    if any(token.single_word for token in added) or not _is_piece_by_piece(fast):
        return ()
    raw = [token.content for token in added if not token.normalized]
    takers = [token.content for token in added if token.lstrip]
    return tuple(
        token.content
        for token in added
        if not token.normalized
        and not token.content[:1].isspace()
        and not any(taker.startswith(token.content) for taker in takers)
        and not any(_may_reach_into(other, token.content) for other in raw)
    )


def last_split_point(text: str, tokens: Sequence[str]) -> int:
    """Index of the last of these tokens; 0: none."""
    return max(0, *(text.rfind(token) for token in tokens)) if tokens else 0


def _may_reach_into(other: str, token: str) -> bool:
    """Whether `other` may begin before an occurrence of `token` and end after its first character."""
    return any(token.startswith(other[i:]) or other.startswith(token, i) for i in range(1, len(other)))


def _is_piece_by_piece(fast: Any) -> bool:
    try:
        state = json.loads(fast.to_str())
    except Exception:  # a part written in Python has no description
        return False
    parts = [state.get(name) for name in ("normalizer", "pre_tokenizer", "model", "post_processor")]
    return not state["model"].get("dropout") and all(kind in _PIECE_BY_PIECE for kind in _kinds(parts))


def _kinds(part: Any) -> Iterator[str]:
    """The type of a component, and of all its parts."""
    if isinstance(part, list):
        for each in part:
            yield from _kinds(each)
    elif isinstance(part, dict):
        if "type" in part:
            yield part["type"]
        for name in ("normalizers", "pretokenizers", "processors"):
            yield from _kinds(part.get(name))
