"""The state of every run, and what is said when a wire trips. O(1) a run, a bounded number of runs.

Samples come in, sums grow; when a window is full its sums are smoothed, every wire looks at them, and what trips stays
tripped until somebody acknowledges it. Pure: the time is passed in, and nothing here touches a reward.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from model.traits import NAMES, OF_IDS
from service.tripwires.reference import Reference
from service.tripwires.tally import Tally
from service.tripwires.wire import Finding, Observation, Severity
from service.tripwires.wires import WIRES, Means, View, Wire

V = TypeVar("V")

OTHER = "other"
"""The run that samples without a name belong to, and those of more runs than there is room for."""

VOTE = "vote"
"""The wire that trips when several others have."""

CANARY = "canary"
"""The wire that trips when the same model gives canaries other scores: somebody or something has changed it."""

CANARY_CHANGE = 1.0
"""In multiples of what kernels and batches may do to a score."""


@dataclass(frozen=True, slots=True)
class BoardLimits:
    """`window` counts samples. `smoothing` is the weight of the newest window. A run that knows no reference learns one from
    `warm_up` windows. A run that is silent for `expiry_s` is forgotten.
    """

    window: int = 128
    smoothing: float = 0.1
    warm_up: int = 4
    votes_for_a_page: int = 3
    trend_windows: int = 30
    max_runs: int = 32
    expiry_s: float = 86_400.0
    remembered_texts: int = 4_096
    evidence: int = 20


@dataclass(slots=True)
class Alarm:
    """A wire that has tripped, from then until it is acknowledged."""

    finding: Finding
    since: float


@dataclass(slots=True)
class Run:
    """What is kept of one run."""

    reference: Reference
    total: Tally = field(default_factory=Tally)
    window: Tally = field(default_factory=Tally)
    smooth: Tally = field(default_factory=Tally)
    trend: deque[Means] = field(default_factory=deque)
    texts: OrderedDict[int, int] = field(default_factory=OrderedDict)
    keys: OrderedDict[int, None] = field(default_factory=OrderedDict)
    recent: deque[str] = field(default_factory=deque)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    trips: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, float] = field(default_factory=dict)
    n_windows: int = 0
    step: int | None = None
    seen_at: float = 0.0


class Board:
    """Watches runs. Belongs to one event loop."""

    def __init__(self, reference: Reference, limits: BoardLimits, wires: Sequence[Wire] = WIRES) -> None:
        self._reference = reference
        self._limits = limits
        self.wires = tuple(wires)
        self._runs: OrderedDict[str, Run] = OrderedDict()

    @property
    def thresholds(self) -> dict[str, float]:
        """Of every wire, of the vote, and of the canaries."""
        known = {wire.name: wire.threshold for wire in self.wires}
        return {**known, VOTE: float(self._limits.votes_for_a_page), CANARY: CANARY_CHANGE}

    @property
    def runs(self) -> dict[str, Run]:
        """By name, the one that was silent longest first."""
        return dict(self._runs)

    def observe(self, name: str | None, step: int | None, seen: Sequence[Observation], now: float) -> list[Finding]:
        """Count what is new of these samples of one request. What tripped because of them."""
        run = self._run(name or OTHER, now)
        run.step = step if step is not None else run.step
        new = [each for each in seen if self._is_new(run, each)]
        found: list[Finding] = []
        _count_groups(run, new)
        for each in new:
            self._count(run, each)
            if run.window["samples"] >= self._limits.window:
                found += self._close_window(run, now)
        return found

    def hear(self, name: str | None, level: float, audit: float, now: float) -> None:
        """What the audit judge says of a sample: `level` is what the sample was scored."""
        _count_audit(self._run(name or OTHER, now).window, level, audit)

    def kept_as(self, name: str | None) -> str:
        """The name under which a run is kept: its own, or that of all others where there was no room."""
        return name if name is not None and name in self._runs else OTHER

    def report(self, name: str, finding: Finding, now: float) -> bool:
        """What another found about a run. Whether it is news: what has tripped stays so until it is acknowledged."""
        run = self._run(name, now)
        if finding.wire in run.alarms:
            return False
        run.statistics[finding.wire] = finding.statistic
        _latch(run, finding, now)
        return True

    def acknowledge(self, name: str, wire: str) -> bool:
        """Let a wire trip again. Whether it had tripped."""
        run = self._runs.get(name)
        return run is not None and run.alarms.pop(wire, None) is not None

    # -- one sample -------------------------------------------------------------------------------------------------

    def _is_new(self, run: Run, seen: Observation) -> bool:
        """Not a retry of what was counted. Who says nothing that tells a retry apart has none."""
        if seen.key is None:
            return True
        if seen.key in run.keys:
            return False
        _remember(run.keys, seen.key, None, self._limits.remembered_texts)
        return True

    def _count(self, run: Run, seen: Observation) -> None:
        window = run.window
        window.count("samples")
        window.count_signed("level", seen.level)
        window.count("level_squared", seen.level * seen.level)
        saturation = run.reference.saturation
        if saturation is not None and seen.level > saturation:
            window.count("saturated")
        if seen.is_capped:
            window.count("capped")
        if seen.spread is not None:
            window.count("spreads")
            window.count_squared("spread", seen.spread)
        if seen.distance is not None:
            window.count("distances")
            window.count_signed("distance", seen.distance)
            window.count("distance_squared", seen.distance * seen.distance)
        if seen.audit is not None:
            _count_audit(window, seen.level, seen.audit)
        for trait, value in zip(NAMES, seen.traits, strict=False):
            if value:
                window.count_squared(trait, value)
        if seen.traits:
            window.count("responses")
        if len(seen.traits) > len(OF_IDS):
            window.count("texts")
        if seen.text_digest is not None:
            self._count_duplicate(run, seen.text_digest, seen.group)
        if seen.evidence:
            run.recent.append(seen.evidence)
            if len(run.recent) > self._limits.evidence:
                run.recent.popleft()

    def _count_duplicate(self, run: Run, text: int, group: int) -> None:
        before = run.texts.get(text)
        if before is not None:
            run.window.count("repeats" if before == group else "echoes")
        _remember(run.texts, text, group, self._limits.remembered_texts)

    # -- one window -------------------------------------------------------------------------------------------------

    def _close_window(self, run: Run, now: float) -> list[Finding]:
        window, run.window = run.window, Tally()
        run.total += window
        run.n_windows += 1
        keep = 1.0 - self._limits.smoothing
        run.smooth = Tally(keep * old + new for old, new in zip(run.smooth.sums, window.sums, strict=True))
        level, audit = window.mean("audited_level"), window.mean("audit")
        if level is not None and audit is not None:
            run.trend.append(Means(level, audit))
            if len(run.trend) > self._limits.trend_windows:
                run.trend.popleft()
        if run.n_windows == self._limits.warm_up:
            run.reference = run.reference.with_learnt(run.total)
        return self._look(run, now) if run.n_windows >= self._limits.warm_up else []

    def _look(self, run: Run, now: float) -> list[Finding]:
        """Ask every wire, then the vote."""
        view = View(run.smooth, run.reference, tuple(run.trend))
        run.statistics = {w.name: s for w in self.wires if (s := w.statistic(view)) is not None}
        over = [w for w in self.wires if run.statistics.get(w.name, w.threshold) > w.threshold]
        n_votes = float(sum(wire.weight(run.statistics[wire.name]) for wire in over))
        run.statistics[VOTE] = n_votes
        found = [self._trip(run, w.name, w.severity, w.threshold, now) for w in over]
        if n_votes >= self._limits.votes_for_a_page:
            found.append(self._trip(run, VOTE, "page", self._limits.votes_for_a_page, now))
        return [finding for finding in found if finding is not None]

    def _trip(self, run: Run, wire: str, severity: Severity, threshold: float, now: float) -> Finding | None:
        """The finding, unless this wire has tripped already and nobody has looked."""
        if wire in run.alarms:
            return None
        finding = Finding(wire, severity, run.statistics[wire], threshold, run.step, tuple(run.recent))
        _latch(run, finding, now)
        return finding

    # -- runs -------------------------------------------------------------------------------------------------------

    def _run(self, name: str, now: float) -> Run:
        """The run of this name; a new one where there is room, else that of all others."""
        self._forget_silent(now)
        if name not in self._runs and len(self._runs) >= self._limits.max_runs - 1:
            name = OTHER  # one place is kept for it
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = Run(self._reference)
        self._runs.move_to_end(name)
        run.seen_at = now
        return run

    def _forget_silent(self, now: float) -> None:
        for name, run in [*islice(self._runs.items(), 2)]:
            if now - run.seen_at > self._limits.expiry_s:
                del self._runs[name]


def _latch(run: Run, finding: Finding, now: float) -> None:
    run.alarms[finding.wire] = Alarm(finding, now)
    run.trips[finding.wire] += 1


def _count_audit(window: Tally, level: float, audit: float) -> None:
    window.count("audited")
    window.count_signed("audit", audit)
    window.count_signed("audited_level", level)


def _count_groups(run: Run, seen: Iterable[Observation]) -> None:
    """Responses to one prompt that came together: whether their rewards differ at all."""
    by_group: dict[int, set[float]] = {}
    sizes = Counter(each.group for each in seen)
    for each in seen:
        by_group.setdefault(each.group, set()).add(each.value)
    for group, values in by_group.items():
        if sizes[group] > 1:
            run.window.count("groups")
            if len(values) == 1:
                run.window.count("flat_groups")


def _remember(kept: OrderedDict[int, V], key: int, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
