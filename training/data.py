"""Rows -> preference pairs, and which of them are held out.

Understands TRL's preference formats (explicit and implicit prompt, strings or messages), OpenRLHF's columns by
setting, and our own files. Knows no tokenizer and no torch.

Two rules nothing here breaks: a group is never split between training and evaluation, and a row that cannot be
read is reported with its file, line and field, never dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from model.contract import sample_to_dict
from model.conversation import Message, Sample, SampleError, check_text
from training import sources
from training.config import DataConfig, SourceConfig

_SPLIT_STEPS = 10_000
_N_SHOWN = 20


class DataError(Exception):
    """Rows that no pair can be made of; the message lists the first of them."""


class FieldError(Exception):
    """One field of one row makes no sense."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a row is, and what is wrong with which of its fields."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, of which people preferred `chosen`.

    `chosen_text` and `rejected_text` are the responses alone, for length baselines. `id` is `file:line`.
    """

    id: str
    source: str
    group: str
    head: str
    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    margin: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """What was read: the pairs in the order of their sources, and the rows that were skipped."""

    pairs: tuple[Pair, ...]
    n_rows: int
    bad: tuple[BadRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out pairs. They share no group."""

    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    n_rows: int
    bad: tuple[BadRow, ...]


def load(config: DataConfig, default_head: str) -> Split:
    """Read every source and split. Raise `DataError` (bad rows, or nothing to train on) or `ConfigError`."""
    read = _read_all(config.sources, config, default_head)
    if config.eval_sources:
        held = _read_all(config.eval_sources, config, default_head)
        held_groups = {p.group for p in held.pairs}
        train = tuple(p for p in read.pairs if p.group not in held_groups)
        split = Split(train, held.pairs, read.n_rows + held.n_rows, read.bad + held.bad)
    else:
        split = Split(*_by_group(read.pairs, config), read.n_rows, read.bad)
    if not split.train:
        raise DataError(f"no pair is left to train on: {split.n_rows} rows, {len(split.held_out)} pairs held out")
    return split


def is_held_out(group: str, salt: str, fraction: float) -> bool:
    """The split rule: `int(sha256(f"{salt}:{group}")) mod 10000 < 10000 * fraction`."""
    digest = hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()
    return int(digest, 16) % _SPLIT_STEPS < round(_SPLIT_STEPS * fraction)


def digest(pairs: Sequence[Pair]) -> str:
    """`sha256:...` of the pairs, in order: what was compared, under which group, for which head."""
    whole = hashlib.sha256()
    for pair in pairs:
        row = [
            sample_to_dict(pair.chosen),
            sample_to_dict(pair.rejected),
            pair.group,
            pair.head,
            pair.margin,
            pair.weight,
        ]
        whole.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return "sha256:" + whole.hexdigest()


def read_source(source: SourceConfig, *, head: str, salt: str = "", cache: str | None = None) -> Pairs:
    """All pairs of one source, at most `max_pairs` of them (those with the lowest digest), and its bad rows."""
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    n_rows = 0
    for row in sources.read(source, cache):
        n_rows += 1
        try:
            pairs.append(to_pair(row, source, head))
        except FieldError as error:
            bad.append(BadRow(row.file, row.line, error.field, str(error)))
    return Pairs(tuple(_at_most(pairs, source.max_pairs, salt)), n_rows, tuple(bad))


def _read_all(all_sources: Iterable[SourceConfig], config: DataConfig, default_head: str) -> Pairs:
    read = [read_source(s, head=s.head or default_head, salt=config.salt, cache=config.cache) for s in all_sources]
    bad = tuple(b for r in read for b in r.bad)
    if bad and config.on_bad_row == "raise":
        raise DataError(_complaint(bad, n_rows=sum(r.n_rows for r in read)))
    return Pairs(tuple(p for r in read for p in r.pairs), sum(r.n_rows for r in read), bad)


def _complaint(bad: Sequence[BadRow], n_rows: int) -> str:
    shown = "\n  ".join(map(str, bad[:_N_SHOWN]))
    more = f"\n  ... and {len(bad) - _N_SHOWN} more" if len(bad) > _N_SHOWN else ""
    return f"{len(bad)} of {n_rows} rows make no pair (data.on_bad_row: skip leaves them out):\n  {shown}{more}"


def _by_group(pairs: Sequence[Pair], config: DataConfig) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    held = {g: is_held_out(g, config.salt, config.eval_fraction) for g in {p.group for p in pairs}}
    return tuple(p for p in pairs if not held[p.group]), tuple(p for p in pairs if held[p.group])


def _at_most(pairs: list[Pair], n: int | None, salt: str) -> list[Pair]:
    if n is None or len(pairs) <= n:
        return pairs
    order = sorted(range(len(pairs)), key=lambda i: hashlib.sha256(f"{salt}:{pairs[i].id}".encode()).digest())
    return [pairs[i] for i in sorted(order[:n])]


# -- one row ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both conversations of a row, and the text of the prompt that they share."""

    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    prompt_key: str


def to_pair(row: sources.Row, source: SourceConfig, head: str) -> Pair:
    """The pair of one row. Raise `FieldError`."""
    if row.values is None:
        raise FieldError("row", row.error)
    sides = _sides(row.values, source)
    if sides.chosen == sides.rejected:
        raise FieldError(source.rejected_key, "is equal to the chosen response: nothing was preferred")
    for key, sample in ((source.chosen_key, sides.chosen), (source.rejected_key, sides.rejected)):
        _check_sample(sample, key)
    group = row.values.get(source.group_key)
    return Pair(
        id=f"{row.file}:{row.line}",
        source=source.name or str(row.values.get(source.source_key) or source.path),
        group=str(group) if group is not None else hashlib.sha256(sides.prompt_key.encode("utf-8")).hexdigest()[:16],
        head=head,
        chosen=sides.chosen,
        rejected=sides.rejected,
        chosen_text=sides.chosen_text,
        rejected_text=sides.rejected_text,
        margin=_margin(row.values.get(source.margin_key), source.margin_key),
        weight=source.weight,
    )


def _check_sample(sample: Sample, field: str) -> None:
    try:
        if sample.text is None:
            for message in sample.conversation():
                check_text(message.content)
        else:
            check_text(sample.text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _margin(value: Any, field: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(field, f"is {value!r}; a margin is a finite number")
    return float(value)


def _sides(values: dict[str, Any], source: SourceConfig) -> _Sides:
    """Which of TRL's formats this row is written in, read accordingly."""
    prompt = values.get(source.prompt_key)
    chosen = _side(values, source.chosen_key)
    rejected = _side(values, source.rejected_key)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise FieldError(source.rejected_key, "one of chosen and rejected is a string and the other is messages")
    if prompt is not None:
        start = _prompt(prompt, source)
        return _explicit(_with_context(start, values, source), chosen, rejected, source)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _implicit_text(str(chosen), str(rejected))
    return _implicit_messages(chosen, rejected)


def _side(values: dict[str, Any], field: str) -> str | tuple[Message, ...]:
    value = values.get(field)
    if value is None:
        raise FieldError(field, f"is missing; the row has {', '.join(sorted(values))}")
    if isinstance(value, str):
        if not value:
            raise FieldError(field, "is empty")
        check_utf8(value, field)
        return value
    return _messages(value, field)


def check_utf8(text: str, field: str) -> None:
    """Raise `FieldError` for text that no tokenizer can read."""
    try:
        check_text(text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise FieldError(field, f"is a {type(value).__name__}; give text, or a list of messages")
    for i, item in enumerate(value):
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("role"), str)
            or not isinstance(item.get("content"), str)
        ):
            raise FieldError(field, f"message {i} is no object with a role and a content, both text")
        check_utf8(item["content"], field)
    return tuple(Message(item["role"], item["content"]) for item in value)


def _prompt(value: Any, source: SourceConfig) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        check_utf8(value, source.prompt_key)
        return value if source.strings == "raw" else (Message("user", value),)
    return _messages(value, source.prompt_key)


def _with_context(
    prompt: str | tuple[Message, ...], values: dict[str, Any], source: SourceConfig
) -> str | tuple[Message, ...]:
    context = values.get(source.context_key)
    if source.context == "ignore" or context is None:
        return prompt
    if not isinstance(context, str):
        raise FieldError(source.context_key, f"is a {type(context).__name__}; it must be text")
    if isinstance(prompt, str):
        return f"{context}\n\n{prompt}"
    at = next((i for i, m in enumerate(prompt) if m.role == "user"), 0)
    asked = Message(prompt[at].role, f"{context}\n\n{prompt[at].content}")
    return (*prompt[:at], asked, *prompt[at + 1 :])


def _explicit(
    prompt: str | tuple[Message, ...],
    chosen: str | tuple[Message, ...],
    rejected: str | tuple[Message, ...],
    source: SourceConfig,
) -> _Sides:
    if isinstance(prompt, str):
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise FieldError(source.chosen_key, "strings: raw joins a prompt with a response; both must be text")
        return _Sides(Sample(text=prompt + chosen), Sample(text=prompt + rejected), chosen, rejected, prompt)
    side: Callable[[str | tuple[Message, ...]], Sample] = lambda answer: _answered(prompt, answer)  # noqa: E731
    return _Sides(side(chosen), side(rejected), _said(prompt, chosen), _said(prompt, rejected), _key(prompt))


def _answered(prompt: tuple[Message, ...], answer: str | tuple[Message, ...]) -> Sample:
    """The prompt with its answer. Some data sets repeat the prompt at the front of the answer."""
    if isinstance(answer, str):
        return Sample(prompt=prompt, response=answer)
    after = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    return Sample(messages=(*prompt, *after))


def _said(prompt: tuple[Message, ...], answer: str | tuple[Message, ...]) -> str:
    if isinstance(answer, str):
        return answer
    after = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    return "\n".join(m.content for m in after)


def _implicit_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> _Sides:
    n = _n_common(chosen, rejected)
    prompt = chosen[:n]
    texts = ["\n".join(m.content for m in side[n:]) for side in (chosen, rejected)]
    key = _key(prompt) if prompt else _key((*chosen, *rejected))
    return _Sides(Sample(messages=chosen), Sample(messages=rejected), texts[0], texts[1], key)


def _implicit_text(chosen: str, rejected: str) -> _Sides:
    """Rendered conversations. The prompt is their common beginning, back to the last `Assistant:` or line end.

    Two responses often begin alike; cut at the character, the prompt of one question would differ from row to row.
    """
    common = chosen[: _n_common(chosen, rejected)]
    turn = common.rfind("Assistant:")
    n = turn + len("Assistant:") if turn >= 0 else common.rfind("\n") + 1
    key = common[:n] or "\n".join(sorted((chosen, rejected)))
    return _Sides(Sample(text=chosen), Sample(text=rejected), chosen[n:], rejected[n:], key)


def _n_common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _key(messages: tuple[Message, ...]) -> str:
    return json.dumps([[m.role, m.content] for m in messages])
