"""The table of runs that have a state: their labels, and which one is evicted for a new one. Pure.

A run is identified by owner and name, or by owner and client without a name. Its label is its name, or `NAME@OWNER` where a run of
another owner has that label already; without a name `other@OWNER`, or `other@ADDRESS` without keys. At the limit of runs, a new
run evicts one of the owner that has most; among the runs of its owner one without samples for long, then one without a name, then
one without a baseline. Where none of these can be evicted, it shares `other`, as do the runs without a name of an owner that has
`MAX_UNNAMED` of them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import islice

from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.run_context import RunName, UnnamedClient
from rewardserve.service.tripwires.run_state import MonitorLimits, Run

OTHER = "other"
"""Label of samples without a run, and of runs beyond `max_runs`."""

CANARIES = "canaries"
"""Label of alerts about canaries, which belong to the model, not to a run. No run of a client has this label."""

MAX_UNNAMED = 8
"""Limit of the runs of one owner without a name: a trainer may have any number of hosts."""

_Key = tuple[str, str, UnnamedClient | None]
"""Owner, name and client of a run."""

_RESERVED = (OTHER, CANARIES)
_NOBODY: _Key = ("", "", None)
"""Key of samples without owner, run and client."""

_SILENT, _UNNAMED, _LEARNING, _PROTECTED = range(4)
_MIN_LEFT_S = 3_600.0
_MAX_ARCHIVED = 256
"""Limit of blocked runs of one owner whose state was evicted; their alerts are kept."""


class RunTable:
    """Table of runs by label, the one with the oldest latest sample first. `archived` are blocked runs whose state was
    evicted: their alerts and counters.
    """

    def __init__(self, limits: MonitorLimits) -> None:
        self._limits = limits
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.archived: OrderedDict[str, Run] = OrderedDict()
        self._labels: dict[_Key, str] = {}

    def find(self, label: str) -> Run | None:
        """The run with this label, also an archived one."""
        return self.runs.get(label) or self.archived.get(label)

    def label_of(self, name: RunName, owner: str) -> str:
        """The label of a run; `other` where there are too many runs."""
        return self._labels.get(_key(name, owner), OTHER)

    def is_over_limit(self, name: RunName, owner: str) -> bool:
        """Whether a caller with a name or an owner shares `other`."""
        return bool(name or owner) and _key(name, owner) not in self._labels

    def current(self, name: RunName, owner: str, now: float) -> Run | None:
        """The run that samples of this caller would be counted in, if it has a state."""
        return self.runs.get(self._label_for(_key(name, owner), now))

    def known(self, name: RunName, owner: str) -> Run | None:
        """The run of this owner and name, or client."""
        label = self._labels.get(_key(name, owner))
        return None if label is None else self.find(label)

    def open(self, name: RunName, owner: str, now: float, baseline_source: BaselineSource) -> Run:
        """The run of this caller, as one with a sample now. Deletes expired runs, and evicts one where there are too many."""
        self._delete_expired(now)
        key = _key(name, owner)
        label = self._label_for(key, now)
        return self._open(label, _NOBODY if label == OTHER else key, now, baseline_source)

    def open_reserved(self, label: str, now: float, baseline_source: BaselineSource) -> Run:
        """The state of a reserved label."""
        return self._open(label, _NOBODY, now, baseline_source)

    def restore(self, label: str, run: Run, now: float, *, is_archived: bool) -> None:
        """Put back a run of an earlier process under its label. Call it for runs in their order, before any other method.

        It is not deleted within an hour: a server that was away for long, or has a wrong clock, has not seen its samples.
        """
        run.seen_at = max(run.seen_at, now - self._limits.expiry_s + _MIN_LEFT_S)
        (self.archived if is_archived else self.runs)[label] = run
        if label not in _RESERVED:
            self._labels[run.owner, run.name, run.client] = label

    def delete_unblocked(self, label: str) -> None:
        """Delete an archived run that no alert blocks any more."""
        if label in self.archived and not self._is_blocked(self.archived[label]):
            self._delete(label, self.archived)

    def _open(self, label: str, key: _Key, now: float, baseline_source: BaselineSource) -> Run:
        run = self.runs.get(label)
        if run is None:
            if label not in _RESERVED:
                self._evict_for(key, now)
                self._labels[key] = label
            archived = self.archived.pop(label) if label in self.archived else None
            run = self.runs[label] = archived or Run.new(*key, baseline_source)
        self.runs.move_to_end(label)
        run.seen_at = now
        return run

    def _label_for(self, key: _Key, now: float) -> str:
        """The label for samples of this run; `other` where there are too many runs."""
        if key == _NOBODY:
            return OTHER
        if (label := self._labels.get(key)) in self.runs:
            return str(label)
        if self._is_full_for(key) and self._evictable(key, now) is None:
            return OTHER
        return label or self._new_label(*key)

    def _new_label(self, owner: str, name: str, client: UnnamedClient | None) -> str:
        where = owner or (client.address if client is not None else "")
        wanted = f"{name or OTHER}@{where}" if where and (not name or self._is_taken(name)) else name
        label, n = wanted, 1
        while self._is_taken(label):
            n += 1
            label = f"{wanted}#{n}"
        return label

    def _is_taken(self, label: str) -> bool:
        return label in _RESERVED or label in self.runs or label in self.archived

    @property
    def _is_full(self) -> bool:
        return sum(label not in _RESERVED for label in self.runs) >= self._limits.max_runs - len(_RESERVED)

    def _unnamed_of(self, owner: str) -> list[tuple[str, Run]]:
        """The runs of this owner without a name."""
        return [(label, run) for label, run in self.runs.items() if run.client is not None and run.owner == owner]

    def _is_full_for(self, key: _Key) -> bool:
        owner, _, client = key
        return self._is_full or (client is not None and len(self._unnamed_of(owner)) >= MAX_UNNAMED)

    def _evict_for(self, key: _Key, now: float) -> None:
        if self._is_full_for(key) and (label := self._evictable(key, now)) is not None:
            self._delete(label, self.runs)

    def _evictable(self, key: _Key, now: float) -> str | None:
        """The run to evict for a new one; None: none can be evicted."""
        owner, _, client = key
        unnamed = self._unnamed_of(owner) if client is not None else []
        if len(unnamed) >= MAX_UNNAMED:
            (rank, *_), label = min((self._rank(run, now), label) for label, run in unnamed)
            return label if rank == _SILENT else None
        runs = [(label, run) for label, run in self.runs.items() if label not in _RESERVED]
        counts = Counter(run.owner for _, run in runs)
        most = max(counts.values(), default=0)
        evicts_from_others = counts[owner] + 1 < most
        evicted_owners = (
            {o for o, n in counts.items() if n == most} if evicts_from_others or not counts[owner] else {owner}
        )
        ranked = [(self._rank(run, now), label) for label, run in runs if run.owner in evicted_owners]
        if not ranked:
            return None
        (rank, *_), label = min(ranked)
        evicted_ranks = (_SILENT,) if client is not None else (_SILENT, _UNNAMED, _LEARNING)
        return label if evicts_from_others or rank in evicted_ranks else None

    def _rank(self, run: Run, now: float) -> tuple[float, ...]:
        """Runs with a lower rank are evicted first."""
        if now - run.seen_at > self._limits.protected_s:
            return _SILENT, run.seen_at
        if run.client is not None:
            return _UNNAMED, run.seen_at
        if not run.has_baseline:
            return _LEARNING, run.all_sums["samples"], run.seen_at
        return _PROTECTED, run.seen_at

    def _is_blocked(self, run: Run) -> bool:
        return not self._limits.blocks.isdisjoint(run.alerts)

    def _delete(self, label: str, where: OrderedDict[str, Run]) -> None:
        """Delete a run; keep alerts and counters of a blocked one, so that its block stays."""
        run = where.pop(label)
        if where is not self.runs or not self._is_blocked(run):
            self._labels.pop((run.owner, run.name, run.client), None)
            return
        run.clear_samples()
        self.archived[label] = run
        of_owner = [each for each, archived in self.archived.items() if archived.owner == run.owner]
        if len(of_owner) > _MAX_ARCHIVED:
            self._delete(of_owner[0], self.archived)

    def _delete_expired(self, now: float) -> None:
        for label, run in [*islice(self.runs.items(), 2)]:
            if now - run.seen_at > self._limits.expiry_s:
                self._delete(label, self.runs)


def _key(name: RunName, owner: str) -> _Key:
    """Owner, name and client of a run; a reserved label counts as no name."""
    if isinstance(name, UnnamedClient):
        return owner, "", name
    return owner, "" if not name or name in _RESERVED else name, None
