"""Check the columns of a source's rows against those that the recipe names.

A column that the recipe names must be in every row, or the source is refused. Depends on the rows of one source, not on
files or pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rewardserve.model.conversation import Message
from rewardserve.model.text.nearest_word import nearest_word
from rewardserve.training import turns
from rewardserve.training.config import ConfigError, SourceConfig
from rewardserve.training.sources import SourceRow

_DEFAULT = {f.name: f.default for f in fields(SourceConfig) if f.name.endswith("_key")}
_REQUIRED = ("chosen_key", "rejected_key")
_PROMPT_NAMES = ("instruction", "question", "query", "input", "context", "messages", "conversation", "text", "post")
"""Names of the prompt column in other data sets."""
_N_NAMES = 12


@dataclass(frozen=True, slots=True)
class SourceColumns:
    """Columns of one source. `source` has None for a column that is not read.

    `implicit`: without a prompt column, whole conversations are `declared` by the recipe or were `found` in the rows.
    `repeats`: every response is a text that begins with its prompt. `unread`: columns that are not read.
    """

    source: SourceConfig
    n_rows: int
    n_with: Mapping[str, int]
    implicit: Literal["", "declared", "found"] = ""
    repeats: bool = False
    unread: tuple[str, ...] = ()


def find_columns(rows: Sequence[SourceRow], source: SourceConfig) -> SourceColumns:
    """Find the columns of these rows. Raise `ConfigError` for a named column that none of them has."""
    values = [row.values for row in rows if row.values is not None]
    n_with = Counter(key for row in values for key, value in row.items() if value is not None)
    if not values:
        return SourceColumns(source, 0, n_with)
    keys: dict[str, Any] = {
        name: _present(name, getattr(source, name), n_with, len(values), source) for name in _DEFAULT
    }
    if source.context == "ignore":
        keys["context_key"] = None
    found = replace(source, **keys)
    implicit: Literal["", "declared", "found"] = ""
    if found.prompt_key is None:
        implicit = "declared" if source.prompt_key is None else "found"
        if implicit == "found" and not any(_is_whole(row, found) for row in values):
            raise ConfigError(_no_prompt(n_with, len(values), source))
    unread = tuple(sorted(set(map(str, n_with)) - {key for key in keys.values() if key}))
    return SourceColumns(found, len(values), n_with, implicit, _repeats(values, found), unread)


def notes(found: SourceColumns) -> Iterator[str]:
    """Yield notes on columns whose reading does not follow from their names."""
    if found.implicit:
        yield f"no prompt column: chosen and rejected are read whole ({found.implicit})"
    if found.repeats:
        yield "chosen and rejected begin with their prompt: the prompt is removed from them"
    if found.unread:
        yield f"columns that are not read: {', '.join(found.unread[:_N_NAMES])}{', ...' * (len(found.unread) > _N_NAMES)}"


def _present(name: str, key: str | None, n_with: Counter[str], n_rows: int, source: SourceConfig) -> str | None:
    """Column to read; None for a default name that no row has. Raise `ConfigError` for one named in the recipe."""
    if key is None or n_with[key]:
        return key
    needed = name in _REQUIRED or (name == "context_key" and source.context == "prepend")
    if key == _DEFAULT[name] and not needed:
        return None
    if name == "context_key" and source.context == "ignore":
        return None
    near = nearest_word(key, map(str, n_with))
    hint = f"; did you mean {near!r}?" if near else "."
    null = "" if name in _REQUIRED else f" ({name}: null reads no such column.)"
    raise ConfigError(
        f"data source {source.path!r}: {name} is {key!r}, and none of the {n_rows} rows has it{hint} "
        f"Their columns: {_names(n_with)}.{null}"
    )


def _no_prompt(n_with: Counter[str], n_rows: int, source: SourceConfig) -> str:
    near = next((name for name in _PROMPT_NAMES if n_with[name]), None)
    near = near or nearest_word(str(source.prompt_key), map(str, n_with))
    name_it = f"Name it (prompt_key: {near})" if near else "Name it (prompt_key)"
    return (
        f"data source {source.path!r}: none of the {n_rows} rows has the column {source.prompt_key!r}, and chosen and "
        f"rejected do not begin with the turns of one user: responses would be trained without their prompt. {name_it}, "
        f"or set prompt_key: null if chosen and rejected are whole conversations. Their columns: {_names(n_with)}."
    )


def _names(n_with: Mapping[str, int]) -> str:
    return ", ".join(sorted(map(str, n_with)))


def _is_whole(row: dict[str, Any], source: SourceConfig) -> bool:
    chosen, rejected = row.get(str(source.chosen_key)), row.get(str(source.rejected_key))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return turns.is_rendered(common_text(chosen, rejected))
    sides = [_as_messages(side) for side in (chosen, rejected)]
    return all(sides) and turns.is_conversation(*sides)


def _as_messages(value: Any) -> tuple[Message, ...]:
    """Messages of a list of them; empty for anything else. Faults of a row are reported when its pair is made."""
    items = value if isinstance(value, list) else []
    if not all(isinstance(i, dict) and isinstance(i.get("role"), str) for i in items):
        return ()
    return tuple(Message(i["role"], str(i.get("content"))) for i in items)


def common_text(a: str, b: str) -> str:
    """Longest common beginning of both texts."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


def _repeats(values: Sequence[dict[str, Any]], source: SourceConfig) -> bool:
    """Whether chosen and rejected are texts in every row, and begin with the prompt or its last user turn."""
    some_long = False
    for row in values:
        sides = [row.get(str(key)) for key in (source.chosen_key, source.rejected_key)]
        chosen, rejected = (side if isinstance(side, str) else "" for side in sides)
        prompt = row.get(str(source.prompt_key))
        prompt = prompt if isinstance(prompt, str) else turns.last_user_turn(_as_messages(prompt))
        if turns.cut(prompt, chosen) is None or turns.cut(prompt, rejected) is None:
            return False
        some_long = some_long or turns.is_long(prompt)
    return some_long
