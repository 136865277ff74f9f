"""Control tokens, and the encoding of content that quotes one as ordinary text.

A tokenizer searches for its added tokens in all text: a response that contains `<|im_end|>` would end its turn, and could
forge another turn that praises it. A token is a control token if the tokenizer marks it as special, or if the template writes
it. Content that quotes one is encoded with a second tokenizer, which lacks the control tokens and shares everything else with
the first: the ids are those of ordinary text, and the template treats the content as any other.

While a conversation is rendered, every quoted token is replaced by a stand-in: one character of a private-use area that occurs
nowhere in it. The control tokens in the rendering are then the template's. They are replaced by aliases, which only the second
tokenizer knows, the stand-ins by their original text, and the whole is encoded at once: the ids of a piece of text depend on
the text before it (whether it is the first, which white space a token absorbs), so the template's words keep their ids.
Knows `tokenizers`; knows no templates and no policies.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from rewardserve.model.conversation import InvalidText

_THOUGHT = re.compile(r"</?(think|thinking|thought|reasoning)>|\[/?THINK\]")
"""Marks around the reasoning of a policy, for which templates search in contents: they neither open nor end a turn."""

_HARMLESS = frozenset({b"Sequence", b"Prepend", b"Replace", b"NFC"})
"""Normalisers that turn no other text into a control token. NFC composes characters, but none of those in control tokens."""

_PRIVATE_USE = range(0xF0000, 0x10FFFE)

_SYMBOLS = "".join(map(chr, range(0x101D0, 0x101FC)))
"""Signs of the Phaistos disc: no normaliser in use changes or drops them, and they are parts of no word."""


@dataclass(frozen=True, slots=True)
class Escaped:
    """Texts with stand-ins in place of quoted control tokens, and the original text of each stand-in."""

    texts: tuple[str, ...]
    originals: Mapping[str, str]

    def restore(self, text: str) -> str:
        """Replace the stand-ins in a text by their original text."""
        return text.translate({ord(stand_in): original for stand_in, original in self.originals.items()})


class ControlTokens:
    """The control tokens of a `tokenizers.Tokenizer`. `written`: added tokens that the template writes.

    `joints`: the template's texts between contents. `_has_open_joints`: a token might be completed across one.
    Thread-safe. Raise ValueError where a tokenizer cannot be copied.
    """

    def __init__(self, fast: Any, written: Collection[int], joints: Iterable[str]) -> None:
        added = fast.get_added_tokens_decoder()
        self._fast = fast
        self._contents: dict[int, str] = {
            i: token.content
            for i, token in added.items()
            if (token.special or i in written) and _is_mark(token.content)
        }
        tokens = sorted(self._contents.values(), key=len, reverse=True)
        self._tokens = tuple(tokens)
        self._longest = len(tokens[0]) if tokens else 0
        self._pattern = _any_of(tokens)
        self._openers = tuple(sorted({token[0] for token in tokens}))
        self._beginnings = frozenset(token[:n] for token in tokens for n in range(1, len(token)))
        self._endings = frozenset(token[-n:] for token in tokens for n in range(1, len(token)))
        self._has_open_joints = any(self._may_complete(joint) for joint in set(joints))
        self._normalizer = fast.normalizer if self._contents and _changes_letters(fast.normalizer) else None
        if self._normalizer is not None:
            self._normal = _any_of([self._normalizer.normalize_str(token) for token in tokens])
        self._blind = _literal_tokenizer(fast, self._contents)

    def are_quoted(self, text: str) -> bool:
        """Whether content has, or might complete, a control token. Fast where it has none."""
        for opener in self._openers:
            if opener in text and self._pattern.search(text):
                return True
        return self._is_disguised(text) or (self._has_open_joints and self._loose_ends(text) != (0, 0))

    def reach_over(self, left: str, right: str) -> bool:
        """Whether a control token begins in one text and ends in the next."""
        before = left[max(0, len(left) - self._longest) :]
        found = self._pattern.finditer(before + right[: self._longest])
        return any(match.start() < len(before) < match.end() for match in found)

    def unmarked(self, piece: str) -> str | None:
        """The plain text that begins a turn in `piece`, the template's text before a content; None: a control token begins it.

        The bare name of a role does not count as plain text after a control token.
        """
        spans = [span for _, span in self._found(piece)]
        rest = _THOUGHT.sub("", piece[spans[-1][1] if spans else 0 :]).strip()
        return None if spans and all(c.isalnum() or c.isspace() for c in rest) else rest

    def hide(self, texts: Sequence[str], *, beside: str = "", is_joined: bool = False) -> Escaped:
        """Replace quoted control tokens in texts by stand-ins. `beside`: other text in which the stand-ins must not occur.

        `is_joined`: the text beside these texts could complete a token.
        """
        taken = set(beside).union(*texts)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        stand_ins: dict[str, str] = {}

        def stand_in(original: str) -> str:
            if original and original not in stand_ins:
                stand_ins[original] = next(free, "")
                if not stand_ins[original]:
                    raise InvalidText("the text uses up all characters of the private-use areas")
            return stand_ins.get(original, "")

        hidden = []
        for text in texts:
            head, tail = self._loose_ends(text) if is_joined or self._has_open_joints else (0, 0)
            end = len(text) - tail
            inside = self._pattern.sub(lambda match: stand_in(match.group()), text[head:end])
            hidden.append(stand_in(text[:head]) + inside + stand_in(text[end:]))
        return Escaped(tuple(hidden), {new: original for original, new in stand_ins.items()})

    def encode(self, text: str, hidden: Escaped) -> tuple[list[int], list[int]]:
        """Ids of a text with stand-ins, and the end of each in the restored text."""
        parts: list[_Part] = []
        start = 0
        for token, (begin, end) in self._found(text):
            content = self._contents[token]
            # White space that the token absorbs stays beside it, and its alias absorbs it.
            at = text.index(content, begin, end)
            parts += [_text(hidden.restore(text[start:at])), _Part(self._blind.alias_of[token], len(content))]
            start = at + len(content)
        parts.append(_text(hidden.restore(text[start:])))
        return self._as_text(parts)

    def _as_text(self, parts: list[_Part]) -> tuple[list[int], list[int]]:
        """Ids and ends of parts in which only aliases are control tokens."""
        written = "".join(part.written for part in parts)
        encoding = self._blind.tokenizer.encode(written, add_special_tokens=False)
        # The vocabulary has the token as a word too (Unigram, WordPiece): cut the text so that it is not found whole.
        cuts = [
            (begin + end) // 2
            for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if i in self._contents and end - begin > 1 and self._is_quoted(i, written[begin:end])
        ]
        if cuts:
            return self._as_text(_cut(parts, cuts, self._blind.cut))
        begins = [0, *accumulate(len(part.written) for part in parts)]
        restored = [0, *accumulate(part.n_restored for part in parts)]
        ids: list[int] = []
        ends: list[int] = []
        for i, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i == self._blind.cut_id:
                continue
            ids.append(self._blind.control_of.get(i, i))
            at = bisect_right(begins, end) - 1
            inside = end - begins[at]
            is_text = at < len(parts) and len(parts[at].written) == parts[at].n_restored
            ends.append(restored[at] + inside if is_text or not inside else restored[at + 1])
        return ids, ends

    def _found(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """The control tokens of a text and their spans, with the white space that they absorb."""
        encoding = self._fast.encode(text, add_special_tokens=False)
        return [
            (i, (begin, end))
            for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
            # The id alone is not enough: `<unk>` is also the id of unknown text.
            if i in self._contents and self._contents[i] in text[begin:end]
        ]

    def _is_quoted(self, token: int, text: str) -> bool:
        """Whether the vocabulary has mapped this text to the control token."""
        return self._contents[token] in text or self._is_disguised(text)

    def _is_disguised(self, text: str) -> bool:
        """Whether normalising turns the text into a control token, which is then found, or is a word of the vocabulary."""
        if self._normalizer is None:
            return False
        return self._normal.search(self._normalizer.normalize_str(text)) is not None

    def _loose_ends(self, text: str) -> tuple[int, int]:
        """Numbers of characters at the start and the end of a text that may be a part of a control token."""
        lengths = range(1, min(self._longest, len(text) + 1))
        head = max((n for n in lengths if text[:n] in self._endings), default=0)
        tail = max((n for n in lengths if text[-n:] in self._beginnings), default=0)
        return head, min(tail, len(text) - head)

    def _may_complete(self, joint: str) -> bool:
        """Whether content on either side of this text could complete a control token with it."""
        if any(joint in token[1:-1] for token in self._tokens):
            return True
        lengths = range(1, min(self._longest, len(joint) + 1))
        return any(joint[:n] in self._endings or joint[-n:] in self._beginnings for n in lengths)


def _is_mark(content: str) -> bool:
    """Whether a token may be a control token: neither white space, a single character, nor a mark of reasoning."""
    return len(content.strip()) > 1 and _THOUGHT.fullmatch(content) is None


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Pattern of the tokens, the longest first, as the tokenizer searches for them."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _changes_letters(normalizer: Any) -> bool:
    """Whether normalising does more than mark spaces and compose accents."""
    if normalizer is None:
        return False
    try:
        kinds = set(re.findall(rb'"type":"(\w+)"', normalizer.__getstate__()))
    except Exception:  # a part written in Python has no description
        return True
    return not kinds <= _HARMLESS


@dataclass(frozen=True, slots=True)
class _Part:
    """Text for the second tokenizer, and the number of its characters in the restored text."""

    written: str
    n_restored: int


def _text(run: str) -> _Part:
    return _Part(run, len(run))


def _cut(parts: Sequence[_Part], cuts: Sequence[int], cut: str) -> list[_Part]:
    """Insert a cut token into the parts at these positions of the written text, each of which is inside a text part."""
    out: list[_Part] = []
    start = 0
    for part in parts:
        end = start + len(part.written)
        inside = [at - start for at in cuts if start < at < end]
        for begin, stop in pairwise([0, *inside, len(part.written)]):
            out += [_Part(cut, 0)] * (begin > 0)
            out.append(_text(part.written[begin:stop]) if inside else part)
        start = end
    return out


@dataclass(frozen=True, slots=True)
class _LiteralTokenizer:
    """A tokenizer with the same vocabulary and components that reads control tokens as text, and aliases as control tokens.

    `cut` is a token that is left out of the ids: the text before it and the text after it are encoded separately.
    """

    tokenizer: Any
    alias_of: Mapping[int, str]
    control_of: Mapping[int, int]
    cut: str
    cut_id: int


def _literal_tokenizer(fast: Any, controls: Mapping[int, str]) -> _LiteralTokenizer:
    """Copy a tokenizer, with aliases for its control tokens. Raise ValueError where it cannot be copied."""
    from tokenizers import AddedToken, Tokenizer

    copy = Tokenizer(fast.model)  # shared: a vocabulary may take a hundred megabytes
    if fast.normalizer is not None:
        copy.normalizer = fast.normalizer
    if fast.pre_tokenizer is not None:
        copy.pre_tokenizer = fast.pre_tokenizer
    added = sorted(fast.get_added_tokens_decoder().items())
    copy.add_tokens([AddedToken(token.content, special=i in controls, **_flags(token)) for i, token in added])
    wrong = [token.content for i, token in added if copy.token_to_id(token.content) != i]
    if wrong:
        raise ValueError(f"a copy of the tokenizer gives other ids to its added tokens ({wrong[0]!r}, ...)")
    # Random in every process, so that no text can contain one.
    alias_of = {i: _secret() for i in controls}
    cut = _secret()
    copy.add_tokens([AddedToken(alias_of[i], special=False, **_flags(token)) for i, token in added if i in controls])
    copy.add_tokens([AddedToken(cut, special=False, normalized=False)])
    id_of: dict[str, int] = {token.content: i for i, token in copy.get_added_tokens_decoder().items()}
    control_of = {id_of[alias]: i for i, alias in alias_of.items()}
    copy.encode_special_tokens = True
    for alias_id, i in control_of.items():
        found, real = (
            t.encode(text, add_special_tokens=False).ids for t, text in ((copy, alias_of[i]), (fast, controls[i]))
        )
        if (alias_id in found) != (i in real):
            raise ValueError(f"its normaliser changes the alias of {controls[i]!r}")
    return _LiteralTokenizer(copy, alias_of, control_of, cut, id_of[cut])


def _flags(token: Any) -> dict[str, bool]:
    return {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")}


def _secret() -> str:
    return "".join(secrets.choice(_SYMBOLS) for _ in range(16))
