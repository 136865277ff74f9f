"""Read sources into items of feedback, and split off the held-out ones.

Two invariants: a group is never split between training and evaluation, and a row that cannot be read is reported with
its file, line and field, never dropped silently. Independent of row formats, tokenizers and torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heappushpop
from operator import itemgetter
from pathlib import Path

from rewardserve.model.contract import sample_to_dict
from rewardserve.training.dataset import shapes, source_columns, sources
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.disk_list import DiskList, concatenated, picked
from rewardserve.training.dataset.feedback import Item, Pair, SourceKind, counted, noun, with_noun
from rewardserve.training.dataset.pairs import to_items
from rewardserve.training.dataset.sources import SourceRow
from rewardserve.training.settings.data_config import DataConfig, SourceConfig

_SPLIT_STEPS = 10_000
_MAX_SMALL = 2 * 2**20
_N_SHOWN, _N_LINES = 20, 10
_OF_ONE_ROW = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[-+]?\d[\d.e+-]*|0x\w+")
"""Parts of a fault that differ between rows with the same cause: values and numbers."""


class DataError(Exception):
    """Rows that make no item; the message has a line for each cause."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """Location of a bad row, its bad field, and the fault."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.file}:{self.line}: {self.field}: {self.message}"

    @property
    def cause(self) -> tuple[str, str, str]:
        """Equal for rows of one file with the same fault in the same field."""
        return self.file, self.field, _OF_ONE_ROW.sub("_", self.message)


@dataclass(frozen=True, slots=True)
class SourceItems:
    """Result of one source of one kind: its items, the rows that make none, and `n_spare` items beyond `max_pairs`.

    `notes` describe how the columns were read.
    """

    path: str
    items: Sequence[Item]
    n_rows: int
    bad: tuple[BadRow, ...] = ()
    n_spare: int = 0
    notes: tuple[str, ...] = ()
    kind: SourceKind = "pairs"

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Items of a source of pairs."""
        return tuple(item for item in self.items if isinstance(item, Pair))


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out items. They share no group: `n_same_group` items were removed because of `eval_sources`.

    With `data.on_disk` training items are read from a file when they are asked for; held-out ones are in memory.
    """

    train: Sequence[Item]
    held_out: Sequence[Item]
    read: tuple[SourceItems, ...]
    n_same_group: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows of all sources."""
        return sum(r.n_rows for r in self.read)

    @property
    def bad(self) -> tuple[BadRow, ...]:
        """Rows of all sources that make no item."""
        return tuple(b for r in self.read for b in r.bad)


def load(config: DataConfig, default_head: str) -> Split:
    """Read every source and split. Raise `DataError` (bad rows, or no training pairs) or `ConfigError`."""
    read = _read_all("data.sources", config.sources, config, default_head)
    items = concatenated(*(r.items for r in read))
    if config.eval_sources:
        held_read = _read_all("data.eval_sources", config.eval_sources, config, default_head, before=config.sources)
        held = tuple(item for r in held_read for item in r.items)
        held_groups = {item.group for item in held}
        train = picked(items, [i for i, item in enumerate(items) if item.group not in held_groups])
        split = Split(train, held, (*read, *held_read), n_same_group=len(items) - len(train))
    else:
        split = Split(*_by_group(items, config), tuple(read))
    _refuse_losses(split, config.max_dropped)
    _refuse_none_held_out(split, config)
    if config.swap:
        split = replace(split, train=split.held_out, held_out=split.train)
    if not split.train:
        one = _noun_of(split.read)
        raise DataError(
            f"no {one} is left to train on: {with_noun(split.n_rows, 'row')}, {len(split.bad)} without a {one}, "
            f"{with_noun(len(split.held_out), one)} held out, {split.n_same_group} in a group that is held out"
            f"{_listed(split.bad)}"
        )
    return split


def check_small_files(config: DataConfig, default_head: str) -> None:
    """Raise the errors of `load`, before a minute goes into libraries and a model, where reading all sources takes no time."""
    paths = [Path(source.path) for source in (*config.sources, *config.eval_sources)]
    if all(path.is_file() and path.stat().st_size < _MAX_SMALL for path in paths):
        load(config, default_head)


def _refuse_losses(split: Split, max_dropped: float) -> None:
    """Raise `DataError` for a source that makes too few pairs."""
    for read in split.read:
        if not read.n_rows:
            raise DataError(f"data source {read.path!r} has no rows")
        lost = {f"without a {noun((read.kind,))}": len(read.bad)}
        refuse_loss(f"rows of {read.path!r}", read.n_rows, lost, max_dropped, read.bad)


def _refuse_none_held_out(split: Split, config: DataConfig) -> None:
    """Raise `DataError` if `eval_fraction` holds out no pair: the run would have no accuracy and no calibration."""
    if config.eval_sources or not config.eval_fraction or split.held_out or not split.train:
        return
    n_groups = len({item.group for item in split.train})
    raise DataError(
        f"data.eval_fraction is {config.eval_fraction:g}, and of {with_noun(n_groups, 'group')} ({counted(split.train)}) none is "
        "held out. Raise it, set another data.salt to draw other groups, name data.eval_sources, or set data.eval_fraction: 0."
    )


def refuse_loss(
    units: str, n_units: int, lost: Mapping[str, int], max_dropped: float, bad: Sequence[BadRow] = ()
) -> None:
    """Raise `DataError` if a larger share than `max_dropped` of these units is lost, with the counts by reason.

    `bad`: the rows among them that make no item, whose causes are listed.
    """
    n = sum(lost.values())
    if n > max_dropped * n_units:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items() if count)
        raise DataError(
            f"{n} of the {n_units} {units} are lost: {reasons}. That is more than data.max_dropped "
            f"({max_dropped:g}) allows; raise it if the loss is intended.{_listed(bad)}"
        )


def is_held_out(group: str, salt: str, fraction: float) -> bool:
    """Apply the split rule: `int(sha256(f"{salt}:{group}")) mod 10000 < 10000 * fraction`."""
    digest = hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()
    return int(digest, 16) % _SPLIT_STEPS < round(_SPLIT_STEPS * fraction)


def digest(items: Iterable[Item]) -> str:
    """Digest `sha256:...` of the items in order: samples, label, group, head, weight. Made pairs follow from these."""
    whole = hashlib.sha256()
    for item in items:
        if item.made:
            continue
        row = [*map(sample_to_dict, item.samples), item.group, item.head, item.margin, item.weight]
        row += [item.paraphrase] if item.paraphrase else []
        row += [["repeat", item.repeat]] if item.repeat != 1 else []
        # A decided pair without a flip rate has none of these, as before there were other kinds.
        if item.kind != "pairs" or item.flip or not item.values[0]:
            row += [item.kind, item.values, item.flip]
        whole.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return "sha256:" + whole.hexdigest()


def read_source(
    source: SourceConfig,
    *,
    head: str,
    salt: str = "",
    cache: str | None = None,
    on_disk: bool = False,
    mark: str = "",
) -> SourceItems:
    """Read all items of one source, at most `max_pairs` of them (those with the lowest digest), and its bad rows.

    `mark` ends the ids of the items.
    """
    rows = _Rows(source, cache, keeps=not on_disk)
    found = source_columns.find_columns(rows, source)
    chosen = _Chosen(source.max_pairs, salt, mark, on_disk=on_disk)
    bad: list[BadRow] = []
    n_rows = 0
    for row in rows:
        n_rows += 1
        try:
            for item in to_items(row, found, head):
                chosen.add(item)
        except FieldError as error:
            bad.append(BadRow(row.file, row.line, error.field, str(error)))
    kept = chosen.items()
    notes = (*([rows.note] if rows.note else []), *source_columns.notes(found))
    return SourceItems(source.path, kept, n_rows, tuple(bad), chosen.n - len(kept), notes, found.kind)


class _Rows:
    """The rows of a source, as often as they are asked for: a file is read again, so its rows need not fit into memory."""

    def __init__(self, source: SourceConfig, cache: str | None, *, keeps: bool) -> None:
        self.note = ""
        self._source, self._cache = source, cache
        is_read_again = sources.find_reader(source) is not None or not keeps
        self._kept = None if is_read_again else list(self._read())

    def __iter__(self) -> Iterator[SourceRow]:
        """Rows in order."""
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[SourceRow]:
        shaped = shapes.shaped(sources.read(self._source, self._cache), self._source)
        self.note = shaped.note if shaped.name else ""
        return shaped.rows


class _Chosen:
    """At most `most` items, those with the lowest digests of their ids, in order; `n` counts all. `mark` ends their ids."""

    def __init__(self, most: int | None, salt: str, mark: str, *, on_disk: bool) -> None:
        self.n = 0
        self._most, self._salt, self._mark = most, salt, mark
        self._all: list[Item] | DiskList[Item] = DiskList() if on_disk else []
        self._found: list[tuple[int, int, Item]] = []
        """A heap by digest, the highest first, where there is a limit."""

    def add(self, item: Item) -> None:
        """Take one more item."""
        self.n += 1
        if self._most is None:
            self._all.append(self._marked(item))
            return
        digest = int.from_bytes(hashlib.sha256(f"{self._salt}:{item.id}".encode()).digest())
        put = heappush if len(self._found) < self._most else heappushpop
        put(self._found, (-digest, self.n, item))

    def items(self) -> Sequence[Item]:
        """The items in the order in which they came."""
        for _, _, item in sorted(self._found, key=itemgetter(1)):
            self._all.append(self._marked(item))
        return tuple(self._all) if isinstance(self._all, list) else self._all

    def _marked(self, item: Item) -> Item:
        return item.with_id(f"{item.id}{self._mark}") if self._mark else item


def _noun_of(read: Iterable[SourceItems]) -> str:
    kinds = {r.kind for r in read}
    return noun(tuple(kinds))


def _read_all(
    place: str,
    all_sources: Iterable[SourceConfig],
    config: DataConfig,
    default_head: str,
    before: Iterable[SourceConfig] = (),
) -> list[SourceItems]:
    """Read sources; `place` is that of their list in the recipe, which errors name.

    One that was read `before`, for another head say, gets separate ids.
    """
    paths, read = Counter(source.path for source in before), list[SourceItems]()
    for number, source in enumerate(all_sources):
        paths[source.path] += 1
        mark = f" (source {n})" if (n := paths[source.path]) > 1 else ""
        with sources.named(f"{place}.{number}"):
            found = read_source(
                source,
                head=source.head or default_head,
                salt=config.salt,
                cache=config.cache,
                on_disk=config.on_disk and place == "data.sources",
                mark=mark,
            )
        read.append(found)
    bad = tuple(b for r in read for b in r.bad)
    if bad and config.on_bad_row == "raise":
        raise DataError(_complaint(bad, sum(r.n_rows for r in read), _noun_of(read)))
    return read


def _complaint(bad: Sequence[BadRow], n_rows: int, one: str) -> str:
    make = "makes" if len(bad) == 1 else "make"
    return f"{len(bad)} of {with_noun(n_rows, 'row')} {make} no {one} (data.on_bad_row: skip leaves them out):{_listed(bad)}"


def _listed(bad: Sequence[BadRow]) -> str:
    """A line for each of the first causes."""
    causes = causes_of(bad)
    more = [f"... and {with_noun(len(causes) - _N_SHOWN, 'more cause')}"] * (len(causes) > _N_SHOWN)
    return "".join(f"\n  {line}" for line in (*causes[:_N_SHOWN], *more))


def causes_of(bad: Sequence[BadRow]) -> list[str]:
    """A line for each cause, those of most rows first: its first row, and the lines of others."""
    rows: dict[tuple[str, str, str], list[BadRow]] = {}
    for each in bad:
        rows.setdefault(each.cause, []).append(each)
    most = sorted(rows.values(), key=len, reverse=True)
    return [str(first) + _others(others) for first, *others in most]


def _others(rows: Sequence[BadRow]) -> str:
    if not rows:
        return ""
    lines = ", ".join(str(each.line) for each in rows[:_N_LINES]) + ", ..." * (len(rows) > _N_LINES)
    return f" (and {with_noun(len(rows), 'more row')}: {lines})"


def _by_group(items: Sequence[Item], config: DataConfig) -> tuple[Sequence[Item], tuple[Item, ...]]:
    held = [is_held_out(item.group, config.salt, config.eval_fraction) for item in items]
    train = picked(items, [i for i, is_held in enumerate(held) if not is_held])
    return train, tuple(items[i] for i, is_held in enumerate(held) if is_held)
