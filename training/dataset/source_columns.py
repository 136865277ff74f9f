"""Find which kind of feedback a source holds, and check its columns against those that the recipe names.

A column that the recipe names must be in every row, or the source is refused. Depends on the rows of one source, not on
files or items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rewardserve.model.conversation import Message
from rewardserve.model.text.nearest_word import did_you_mean, nearest_word
from rewardserve.training.dataset import turns
from rewardserve.training.dataset.feedback import SOURCE_KINDS, SourceKind
from rewardserve.training.dataset.sources import SourceRow
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import ConfigError

_DEFAULT = {f.name: f.default for f in fields(SourceConfig) if f.name.endswith("_key")}


@dataclass(frozen=True, slots=True)
class _KindColumns:
    """Settings that name the columns of one kind: of its responses, of its label, and those that may be missing.

    `finish_reasons`: columns that tell which responses were cut off, under these names alone.
    """

    responses: tuple[str, ...]
    label: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ("finish_reason",)


_OF_KIND: dict[SourceKind, _KindColumns] = {
    "pairs": _KindColumns(
        ("chosen_key", "rejected_key"),
        (),
        ("margin_key", "tie_key", "confidence_key", "flip_key", "paraphrase_key"),
        ("chosen_finish_reason", "rejected_finish_reason"),
    ),
    "rankings": _KindColumns(("responses_key",), ("ranks_key",), finish_reasons=("finish_reasons",)),
    "ratings": _KindColumns(("response_key",), ("rating_key",)),
    "labels": _KindColumns(("response_key",), ("label_key",), ("confidence_key", "flip_key")),
    "steps": _KindColumns(("steps_key",), ("step_labels_key",)),
}
OF_ATTRIBUTES: tuple[SourceKind, ...] = ("pairs", "ratings")
"""Kinds that a row may have for several heads."""
_OF_ALL = ("prompt_key", "system_key", "tools_key", "group_key", "source_key", "context_key")
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "system_key": ("system_prompt",),
    "response_key": ("completion", "output", "messages"),
    "responses_key": ("completions",),
    "rating_key": ("score",),
    "label_key": ("kto_tag",),
}
"""Names of these columns in the formats of TRL, OpenRLHF and LLaMA-Factory."""
_NOT_REQUIRED = ("system_key", "tools_key")
"""Columns that a recipe may ignore, or read as another one."""
_PROMPT_NAMES = ("instruction", "question", "query", "input", "context", "messages", "conversation", "text", "post")
"""Names of the prompt column in other data sets."""
_N_NAMES = 12


@dataclass(frozen=True, slots=True)
class SourceColumns:
    """Columns of one source, which holds feedback of one `kind`. `source` has None for a column that is not read.

    `implicit`: without a prompt column, whole conversations are `declared` by the recipe or were `found` in the rows.
    `repeats`: every response is a text that begins with its prompt. `unread`: columns that are not read.
    """

    source: SourceConfig
    n_rows: int
    n_with: Mapping[str, int]
    implicit: Literal["", "declared", "found"] = ""
    repeats: bool = False
    unread: tuple[str, ...] = ()
    kind: SourceKind = "pairs"

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of the responses."""
        return tuple(str(getattr(self.source, key)) for key in _OF_KIND[self.kind].responses)

    @property
    def is_list(self) -> bool:
        """Whether one column has a list of all responses."""
        return self.kind in ("rankings", "steps")

    @property
    def words(self) -> str:
        """The responses in error messages."""
        return _words(self.kind)

    @property
    def no_user(self) -> str:
        """The fault of a row that has neither a prompt nor whole conversations."""
        shared = " that they share" if self.kind == "pairs" else ""
        return f"there is no prompt, and {self.words} begin with no turn of a user{shared}"

    @property
    def read(self) -> tuple[str, ...]:
        """Columns that are read."""
        keys = _keys_of(self.kind, self.source)
        own = (name for key in keys if (name := getattr(self.source, key)))
        return (*own, *self.source.attributes, *(name for name in self.finish_reasons if self.n_with.get(name)))

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Columns that tell which responses were cut off."""
        return _OF_KIND[self.kind].finish_reasons

    def responses(self, row: Mapping[str, Any]) -> list[Any]:
        """Values of a row's responses, unchecked."""
        found = [row.get(name) for name in self.fields]
        return found[0] if self.is_list and isinstance(found[0], list) else found


def _words(kind: SourceKind) -> str:
    return "chosen and rejected" if kind == "pairs" else "the responses"


def find_columns(rows: Iterable[SourceRow], source: SourceConfig) -> SourceColumns:
    """Find the columns of these rows, which are read up to three times. Raise `ConfigError` for a named column that none has."""
    n_rows, n_with = 0, Counter[str]()
    for values in _values(rows):
        n_rows += 1
        n_with.update([key for key, value in values.items() if value is not None])
    if not n_rows:
        return SourceColumns(source, 0, n_with)
    kind = find_kind(n_with, source)
    own = _keys_of(kind, source)
    _refuse_other_keys(source, kind, own)
    _require_attributes(source, kind, n_with)
    keys: dict[str, Any] = {name: _present(name, kind, n_with, n_rows, source) for name in own}
    if source.context == "ignore":
        keys["context_key"] = None
    if source.attributes:
        keys |= {"margin_key": None, "tie_key": None}
    others = {value for key, value in keys.items() if key not in _NOT_REQUIRED}
    for key in _NOT_REQUIRED:
        if keys[key] in (*source.ignored_columns, *others):
            keys[key] = None
    found = SourceColumns(replace(source, **keys), n_rows, n_with, kind=kind)
    implicit: Literal["", "declared", "found"] = ""
    if found.source.prompt_key is None:
        implicit = "declared" if source.prompt_key is None else "found"
        if implicit == "found" and not any(_is_whole(values, found) for values in _values(rows)):
            raise ConfigError(_no_prompt(n_with, n_rows, source, kind))
    read = {*(key for key in keys.values() if key), *source.attributes, *found.finish_reasons}
    unread = tuple(sorted(set(map(str, n_with)) - read))
    return replace(found, implicit=implicit, repeats=_repeats(_values(rows), found), unread=unread)


def _values(rows: Iterable[SourceRow]) -> Iterator[dict[str, Any]]:
    return (row.values for row in rows if row.values is not None)


def find_kind(columns: Mapping[str, int], source: SourceConfig) -> SourceKind:
    """The kind that the recipe names, or the only one whose columns are there; pairs if there is none. Raise `ConfigError`."""
    if source.kind != "auto":
        return source.kind
    kinds = OF_ATTRIBUTES if source.attributes else SOURCE_KINDS
    found: list[SourceKind] = [
        kind for kind in kinds if all(_named(key, columns, source) in columns for key in _required(kind, source))
    ]
    if len(found) > 1:
        raise ConfigError(
            f"data source {source.path!r} has the columns of {' and of '.join(found)}: set kind to one of them. Its columns: "
            f"{_names(columns)}."
        )
    return found[0] if found else "pairs"


def _required(kind: SourceKind, source: SourceConfig) -> tuple[str, ...]:
    """Settings of the columns that every row has; attributes stand for the label."""
    own = _OF_KIND[kind]
    return own.responses if source.attributes else (*own.responses, *own.label)


def _keys_of(kind: SourceKind, source: SourceConfig) -> tuple[str, ...]:
    """Settings of the columns that are read."""
    optional = [key for key in _OF_KIND[kind].optional if not source.attributes or key not in ("margin_key", "tie_key")]
    return (*_OF_ALL, *_required(kind, source), *optional)


def _require_attributes(source: SourceConfig, kind: SourceKind, n_with: Mapping[str, int]) -> None:
    if source.attributes and kind not in OF_ATTRIBUTES:
        raise ConfigError(
            f"data source {source.path!r}: attributes are those of {' or '.join(OF_ATTRIBUTES)}, and kind is {kind}"
        )
    for name in source.attributes:
        if not n_with.get(name):
            raise ConfigError(
                f"data source {source.path!r}: attributes has {name!r}, and no row has a value of it{did_you_mean(name, n_with)}. "
                f"Their columns: {_names(n_with)}."
            )


def _named(key: str, columns: Mapping[str, int], source: SourceConfig) -> Any:
    """Column of a setting: with its default, the first of the known names that is there."""
    name = getattr(source, key)
    names = (name, *OTHER_NAMES.get(key, ())) if name == _DEFAULT[key] else (name,)
    return next((each for each in names if columns.get(each)), name)


def _refuse_other_keys(source: SourceConfig, kind: SourceKind, own: Sequence[str]) -> None:
    for key, default in _DEFAULT.items():
        if key not in own and getattr(source, key) != default:
            raise ConfigError(
                f"data source {source.path!r}: {key} is {getattr(source, key)!r}, which has no effect with {kind}: leave it out, "
                "or set kind."
            )


def notes(found: SourceColumns) -> Iterator[str]:
    """Yield notes on columns whose reading does not follow from their names."""
    if found.implicit:
        yield f"no prompt column: {found.words} are read whole ({found.implicit})"
    if found.repeats:
        yield f"{found.words} begin with their prompt: the prompt is removed from them"
    if found.kind != "pairs":
        yield f"read as {found.kind}, by the columns {', '.join(found.read)}"
    if found.unread:
        yield f"columns that are not read: {', '.join(found.unread[:_N_NAMES])}{', ...' * (len(found.unread) > _N_NAMES)}"


def _present(name: str, kind: SourceKind, n_with: Counter[str], n_rows: int, source: SourceConfig) -> str | None:
    """Column to read; None for a default name that no row has. Raise `ConfigError` for one named in the recipe."""
    key = _named(name, n_with, source)
    if key is None or n_with[key]:
        return None if key is None else str(key)
    required = _required(kind, source)
    needed = name in required or (name == "context_key" and source.context == "prepend")
    if key == _DEFAULT[name] and not needed:
        return None
    if name == "context_key" and source.context == "ignore":
        return None
    near = nearest_word(key, map(str, n_with))
    hint = f"; did you mean {near!r}?" if near else "."
    null = "" if name in required else f" ({name}: null reads no such column.)"
    raise ConfigError(
        f"data source {source.path!r}: {name} is {key!r}, and none of the {n_rows} rows has it{hint} "
        f"Their columns: {_names(n_with)}.{null}"
    )


def _no_prompt(n_with: Counter[str], n_rows: int, source: SourceConfig, kind: SourceKind) -> str:
    near = next((name for name in _PROMPT_NAMES if n_with[name]), None)
    near = near or nearest_word(str(source.prompt_key), map(str, n_with))
    name_it = f"Name it (prompt_key: {near})" if near else "Name it (prompt_key)"
    return (
        f"data source {source.path!r}: none of the {n_rows} rows has the column {source.prompt_key!r}, and {_words(kind)} "
        f"do not begin with the turns of one user: responses would be trained without their prompt. {name_it}, "
        f"or set prompt_key: null if {_words(kind)} are whole conversations. Their columns: {_names(n_with)}."
    )


def _names(n_with: Mapping[str, int]) -> str:
    return ", ".join(sorted(map(str, n_with)))


def _is_whole(row: dict[str, Any], found: SourceColumns) -> bool:
    responses = found.responses(row)
    if all(isinstance(each, str) for each in responses):
        return len(responses) > 1 and turns.is_rendered(common_text(*responses))
    sides = [_as_messages(side) for side in responses]
    return all(sides) and turns.is_conversation(*sides)


def _as_messages(value: Any) -> tuple[Message, ...]:
    """Messages of a list of them; empty for anything else. Faults of a row are reported when its pair is made."""
    items = [turns.of_sharegpt(item) for item in value] if isinstance(value, list) else []
    if not all(isinstance(i, dict) and isinstance(i.get("role"), str) for i in items):
        return ()
    return tuple(Message(i["role"], str(i.get("content"))) for i in items)


def common_text(*texts: str) -> str:
    """Longest common beginning of the texts."""
    low, high = min(texts), max(texts)  # where these two agree, so do all between them
    return low[: next((i for i, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), len(low))]


def _repeats(values: Iterable[dict[str, Any]], found: SourceColumns) -> bool:
    """Whether the responses are texts in every row, and begin with the prompt or its last user turn."""
    some_long = False
    for row in values:
        prompt = row.get(str(found.source.prompt_key))
        prompt = prompt if isinstance(prompt, str) else turns.last_user_turn(_as_messages(prompt))
        answers = [each if isinstance(each, str) else "" for each in found.responses(row)]
        if any(turns.cut(prompt, answer) is None for answer in answers):
            return False
        some_long = some_long or turns.is_long(prompt)
    return some_long
