"""Convert one row to one item of feedback: a pair, a ranking, a rating or a label.

Independent of files, splits and tokenizers; a row that makes no item is refused with the faulty field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rewardserve.model.conversation import is_empty_value
from rewardserve.training.dataset.conversations import (
    Conversations,
    FieldError,
    check_samples,
    name_of,
    optional_text,
    read_conversations,
    refuse_unread_columns,
    value_of,
)
from rewardserve.training.dataset.feedback import Graded, Item, Pair, SourceKind
from rewardserve.training.dataset.source_columns import SourceColumns
from rewardserve.training.dataset.sources import SourceRow

MAX_NUMBER = 1e6
MOST_RANKED = 64
_YES_NO: dict[Any, bool] = {True: True, False: False, "true": True, "false": False}
"""1 and 0 are equal to true and false."""


def to_items(row: SourceRow, columns: SourceColumns, head: str) -> tuple[Item, ...]:
    """The items of one row: one, or with attributes one for each that has a value. Raise `FieldError`."""
    if columns.kind == "steps":
        return _to_steps(row, columns, head)
    if not columns.source.attributes:
        return (to_item(row, columns, head),)
    values, names = _values(row, columns), columns.source.attributes
    given = {name: number for name in names if (number := _attribute(values.get(name), name)) is not None}
    if not given:
        raise FieldError(names[0], "is missing, and so are the other attributes" * (len(names) > 1) or "is missing")
    found = read_conversations(values, columns)
    return tuple(_of_attribute(row, values, found, columns, name, number) for name, number in given.items())


def _attribute(value: Any, name: str) -> float | None:
    return None if is_empty_value(value) else _number(value, name, "rating")


def _of_attribute(
    row: SourceRow, values: dict[str, Any], found: Conversations, columns: SourceColumns, name: str, number: float
) -> Item:
    """A rating, or a pair whose preferred response is told by the sign."""
    sign = -1.0 if columns.source.better == "lower" else 1.0
    if columns.kind == "ratings":
        return replace(_graded(row, values, found, columns, name, (sign * number,)), id=f"{row.id}#{name}")
    pair = replace(_pair(row, values, found, columns, name), id=f"{row.id}#{name}", tie=number == 0)
    return pair if sign * number >= 0 else pair.reversed()


def to_item(row: SourceRow, columns: SourceColumns, head: str) -> Item:
    """Convert one row of any kind. Raise `FieldError`."""
    return _READERS[columns.kind](row, columns, head)


def to_pair(row: SourceRow, columns: SourceColumns, head: str) -> Pair:
    """Convert one row of pairs. Raise `FieldError`."""
    values = _values(row, columns)
    return _pair(row, values, read_conversations(values, columns), columns, head)


def _pair(row: SourceRow, values: dict[str, Any], found: Conversations, columns: SourceColumns, head: str) -> Pair:
    source = columns.source
    chosen, rejected = found.samples
    if chosen == rejected:
        raise FieldError(source.rejected_key, "is equal to the chosen response: there is no preference")
    check_samples(found, columns.fields)
    tie = _yes_no(value_of(values, source.tie_key, columns), str(source.tie_key))
    margin = _number(value_of(values, source.margin_key, columns), str(source.margin_key), "margin", 0.0)
    if tie and margin:
        raise FieldError(str(source.margin_key), f"is {margin:g}, and the row is a tie, which has no margin")
    return Pair(
        id=row.id,
        source=_source_of(values, columns),
        group=_group_of(values, found, columns),
        head=head,
        chosen=chosen,
        rejected=rejected,
        chosen_text=found.texts[0],
        rejected_text=found.texts[1],
        margin=margin or 0.0,
        weight=source.weight,
        tie=bool(tie),
        flip=_flip(values, columns),
        paraphrase=optional_text(values, source.paraphrase_key, "a paraphrase"),
        repeat=source.repeat,
    )


def _to_ranking(row: SourceRow, columns: SourceColumns, head: str) -> Graded:
    values, key = _values(row, columns), columns.source.ranks_key
    found = read_conversations(values, columns)
    ranks = value_of(values, key, columns)
    if len(found.samples) > MOST_RANKED:
        raise FieldError(columns.fields[0], f"has {len(found.samples)} responses; a ranking has at most {MOST_RANKED}")
    if not isinstance(ranks, list) or len(ranks) != len(found.samples):
        raise FieldError(key, f"must be a list of {len(found.samples)} ranks, one a response")
    sign = 1.0 if columns.source.better == "higher" else -1.0
    ranked = tuple(sign * _required_number(rank, key, "rank") for rank in ranks)
    if len(set(found.samples)) < len(found.samples):
        raise FieldError(columns.fields[0], "has the same response twice")
    return _graded(row, values, found, columns, head, ranked)


def _to_rating(row: SourceRow, columns: SourceColumns, head: str) -> Graded:
    values, key = _values(row, columns), columns.source.rating_key
    sign = -1.0 if columns.source.better == "lower" else 1.0
    rating = sign * _required_number(value_of(values, key, columns), key, "rating")
    return _graded(row, values, read_conversations(values, columns), columns, head, (rating,))


def _to_label(row: SourceRow, columns: SourceColumns, head: str) -> Graded:
    values, key = _values(row, columns), columns.source.label_key
    good = _required_label(value_of(values, key, columns), key)
    return _graded(row, values, read_conversations(values, columns), columns, head, (float(good),))


def _to_steps(row: SourceRow, columns: SourceColumns, head: str) -> tuple[Item, ...]:
    """A label for the end of each step: of the response up to there, as a server scores one that is not finished.

    A step whose label is null makes no item.
    """
    values, source, (field,) = _values(row, columns), columns.source, columns.fields
    steps, labels = value_of(values, field, columns), value_of(values, source.step_labels_key, columns)
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps) or not steps:
        raise FieldError(field, "must be a list of the texts of the steps")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise FieldError(source.step_labels_key, f"must be a list of {len(steps)} labels, one a step")
    good = [_yes_no(label, source.step_labels_key) for label in labels]
    if all(label is None for label in good):
        raise FieldError(source.step_labels_key, "has no label")
    until = [source.step_separator.join(steps[:n]) for n in range(1, len(steps) + 1)]
    whole = _graded(row, values, read_conversations(values | {field: until}, columns), columns, head, ())
    return tuple(
        replace(whole, id=f"{whole.id}#{n}", samples=(sample,), texts=(text,), values=(float(is_good),))
        for n, (sample, text, is_good) in enumerate(zip(whole.samples, whole.texts, good, strict=True), 1)
        if is_good is not None
    )


_READERS: dict[SourceKind, Callable[[SourceRow, SourceColumns, str], Item]] = {
    "pairs": to_pair,
    "rankings": _to_ranking,
    "ratings": _to_rating,
    "labels": _to_label,
}


def _graded(
    row: SourceRow,
    values: dict[str, Any],
    found: Conversations,
    columns: SourceColumns,
    head: str,
    graded: tuple[float, ...],
) -> Graded:
    check_samples(found, columns.fields * (len(found.samples) if columns.is_list else 1))
    return Graded(
        id=row.id,
        source=_source_of(values, columns),
        group=_group_of(values, found, columns),
        head=head,
        kind="labels" if columns.kind == "steps" else columns.kind,
        samples=found.samples,
        texts=found.texts,
        values=graded,
        weight=columns.source.weight,
        flip=_flip(values, columns) if columns.kind == "labels" else 0.0,
        scale=columns.source.rating_scale,
        repeat=columns.source.repeat,
    )


def _values(row: SourceRow, columns: SourceColumns) -> dict[str, Any]:
    if row.values is None:
        raise FieldError(row.field, row.error)
    refuse_unread_columns(row.values, columns)
    return row.values


def _source_of(values: dict[str, Any], columns: SourceColumns) -> str:
    source = columns.source
    return source.name or name_of(values, source.source_key, columns) or source.path


def _group_of(values: dict[str, Any], found: Conversations, columns: SourceColumns) -> str:
    """Value of the group column, or else a digest of the prompt."""
    group = name_of(values, columns.source.group_key, columns)
    return group if group is not None else hashlib.sha256(found.prompt_key.encode("utf-8")).hexdigest()[:16]


def _flip(values: dict[str, Any], columns: SourceColumns) -> float:
    """Probability that the label of the row is wrong."""
    source = columns.source
    flip = _number(value_of(values, source.flip_key, columns), str(source.flip_key), "flip rate", 0.0, 0.5)
    confidence = _number(
        value_of(values, source.confidence_key, columns), str(source.confidence_key), "confidence", 0.5, 1
    )
    return flip or (0.0 if confidence is None else 1.0 - confidence)


def _yes_no(value: Any, field: str) -> bool | None:
    if value is None:
        return None
    known = _YES_NO.get(value.casefold() if isinstance(value, str) else value) if _is_hashable(value) else None
    if known is None:
        raise FieldError(field, f"is {str(value)[:40]!r}; it must be true or false")
    return known


def _required_label(value: Any, field: str) -> bool:
    good = _yes_no(value, field)
    if good is None:
        raise FieldError(field, "has an empty label; it must be true or false")
    return good


def _is_hashable(value: Any) -> bool:
    return isinstance(value, str | bool | int | float)


def _required_number(value: Any, field: str, what: str) -> float:
    number = _number(value, field, what)
    if number is None:
        raise FieldError(field, f"has an empty {what}")
    return number


def _number(value: Any, field: str, what: str, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float | None:
    if value is None:
        return None
    if isinstance(value, Decimal):  # column of a database
        value = float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # NaN is in no range
        raise FieldError(field, f"is {str(value)[:40]!r}; a {what} is a number from {low:g} to {high:g}")
    return float(value)
