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

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.wire import CANARY, VOTE, Alert, SampleFeatures, Severity
from rewardserve.service.tripwires.wires import WIRES, HoneypotHitRate, RunSnapshot, WindowMeans, Wire

V = TypeVar("V")

OTHER = "other"
"""The run that samples without a name belong to, and those of more runs than there is room for."""

CANARIES = "canaries"
"""What canaries are reported as: they belong to the model, not to a run. Nobody else's run is kept under that name."""

CANARY_THRESHOLD = 1.0
"""In multiples of what kernels and batches may do to a score."""

PROBING_COUNT = 64
"""So often nobody scores one text by chance."""

_OURS = (OTHER, CANARIES)
_NOBODY = ("", "")
"""Owner and name of samples that have neither."""

_SILENT, _LEARNING, _PROTECTED = range(3)
_MOST_PARKED = 256
"""Blocked runs of one owner whose state has made room for other runs; their alerts are kept."""
_TELLTALE = frozenset({"judge_injection", "empty_opener", "control_tokens", "foreign_script"})
"""Traits of which every sample that has one is evidence by itself."""


@dataclass(frozen=True, slots=True)
class MonitorLimits:
    """`window` counts samples. `smoothing` is the weight of the newest window. A run that knows no reference learns one from
    `warm_up` windows. A run that is silent for `ended_s` has ended, so its alerts resolve; after `expiry_s` it is forgotten. A run
    that has its reference and was not silent for `protected_s` does not make room for another run of the same owner. `blocks` are
    wires whose alerts end the service of a run.
    """

    window: int = 128
    smoothing: float = 0.1
    warm_up: int = 4
    votes_for_a_page: int = 3
    trend_windows: int = 30
    max_runs: int = 32
    expiry_s: float = 86_400.0
    protected_s: float = 3_600.0
    ended_s: float = 1_800.0
    remembered_texts: int = 4_096
    evidence: int = 20
    blocks: frozenset[str] = frozenset()


@dataclass(slots=True)
class ActiveAlert:
    """A wire that has tripped, from then until it is acknowledged."""

    alert: Alert
    since: float


@dataclass(slots=True)
class Run:
    """What is kept of one run. `total` and `window` were measured by `yardstick`, since `measured_at` where there was another one
    before; what that one has measured is in `before`. `owner` is the key that sent it, "" where there are no keys; `name` is
    "" for samples that name no run.
    """

    baseline_source: BaselineSource
    baseline: Baseline
    total: RunningSums
    window: RunningSums
    smooth: RunningSums
    before: RunningSums
    measured_at: float | None = None
    trend: deque[WindowMeans] = field(default_factory=deque)
    texts: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    keys: OrderedDict[int, None] = field(default_factory=OrderedDict)
    ids: OrderedDict[int, None] = field(default_factory=OrderedDict)
    honeypots: deque[bool] = field(default_factory=lambda: deque(maxlen=HoneypotHitRate.most))
    recent: deque[str] = field(default_factory=deque)
    shown: dict[str, deque[str]] = field(default_factory=dict)
    alerts: dict[str, ActiveAlert] = field(default_factory=dict)
    trips: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, float] = field(default_factory=dict)
    n_windows: int = 0
    step: int | None = None
    kl: float | None = None
    seen_at: float = 0.0
    owner: str = ""
    name: str = ""

    @property
    def baseline_key(self) -> str:
        """The key of this run's reference among those that outlive a restart. Names of keys hold no space."""
        return f"{self.owner} {self.name}" if self.owner else self.name

    @property
    def counted(self) -> RunningSums:
        """Everything, by whatever it was measured."""
        return self.before + self.total + self.window


class RunMonitor:
    """Watches runs. Belongs to one event loop. `yardstick` is for the runs of whom nobody says by what they are measured.

    A run is known by its owner and its name: runs of two owners are two runs, whatever they are called. It is kept under a label:
    its name, or `NAME@OWNER` where another owner's run had that label first; `other`, or `other@OWNER`, without a name. When
    all places are taken a new run takes one from the owner that has most; among the runs of its own owner from one that was
    silent for long, then from one that has not shown yet what is usual. Where none of these can go, it shares `other`.
    """

    def __init__(self, baseline_source: BaselineSource, limits: MonitorLimits, wires: Sequence[Wire] = WIRES) -> None:
        self.baseline_source = baseline_source
        self._limits = limits
        self.wires = tuple(wires)
        self.n_over_limit = 0
        self.n_inspected = 0
        self.n_skipped = 0
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._labels: dict[tuple[str, str], str] = {}
        self._archived: OrderedDict[str, Run] = OrderedDict()

    @property
    def thresholds(self) -> dict[str, float]:
        """Of every wire, of the vote, and of the canaries."""
        known = {wire.name: wire.threshold for wire in self.wires}
        return {**known, VOTE: float(self._limits.votes_for_a_page), CANARY: CANARY_THRESHOLD}

    @property
    def runs(self) -> dict[str, Run]:
        """By name, the one that was silent longest first."""
        return dict(self._runs)

    @property
    def archived(self) -> dict[str, Run]:
        """Blocked runs whose state has made room for others: their alerts and counters."""
        return dict(self._archived)

    def measure(self, name: str | None, baseline_source: BaselineSource, now: float, owner: str = "") -> None:
        """From now on this run's rewards are another model's, if they are: what is usual is learnt anew, and alerts stay."""
        run = self._runs.get(self._label_for(_key(name, owner), now))
        if run is not None and run.baseline_source is not baseline_source:
            _measure_anew(run, baseline_source, now)

    def observe(
        self,
        name: str | None,
        step: int | None,
        seen: Sequence[SampleFeatures],
        now: float,
        kl: float | None = None,
        by: BaselineSource | None = None,
        owner: str = "",
    ) -> list[Alert]:
        """Count what is new of these samples of one request. What tripped because of them.

        Samples whose rewards are not of the model that the run is measured by are left out: they were on their way when it
        changed.
        """
        run = self._run_of_caller(name, owner, now, by)
        if by is not None and run.baseline_source is not by:
            return []
        run.step = step if step is not None else run.step
        run.kl = kl if kl is not None else run.kl
        new = [each for each in seen if self._is_new(run, each)]
        if _key(name, owner) not in self._labels and (name or owner):
            self.n_over_limit += len(new)
        found: list[Alert] = []
        _count_groups(run, new)
        for each in new:
            self._count(run, each)
            if run.window["samples"] >= self._limits.window:
                found += self._close_window(run, now)
        return found

    def add_audit(self, name: str | None, score: float, audit: float, now: float, owner: str = "") -> None:
        """What the audit judge says of a sample: `level` is what the sample was scored."""
        _count_audit(self._run_of_caller(name, owner, now).window, score, audit)

    def add_sample_ids(self, name: str | None, ids: Iterable[tuple[int, int]], now: float, owner: str = "") -> None:
        """Samples by the hash of their id, with the hash of what they are: one id is to stand for one sample."""
        run = self._run_of_caller(name, owner, now)
        for sample_id, content in ids:
            pair = hash((sample_id, content))
            if pair in run.ids:
                continue  # a retry
            if sample_id in run.ids:
                run.window.add_squared("id_reuse", 1.0)
            for key in (sample_id, pair):
                _remember(run.ids, key, None, 2 * self._limits.remembered_texts)

    def blocked_by(self, name: str | None, owner: str = "", *, is_bound: bool = False) -> str | None:
        """The wire whose alert ends the service of this run, or of every run, until somebody acknowledges it.

        `is_bound`: the owner may send certain runs only. Then samples without a run, and runs that are not known yet, are
        refused while any run of the owner is blocked: they would be its way out.
        """
        blocks = self._limits.blocks
        if not blocks:
            return None
        key = _key(name, owner)
        runs = [self._runs[CANARIES]] if CANARIES in self._runs else []
        own = self._known(key)
        if own is not None:
            runs.append(own)
        if is_bound and (own is None or not own.name):
            runs += [run for run in (*self._runs.values(), *self._archived.values()) if run.owner == owner]
        return next((wire for run in runs for wire in run.alerts if wire in blocks), None)

    def label_of(self, name: str | None, owner: str = "") -> str:
        """The label of a run: its own, or that of all others where there was no room."""
        return self._labels.get(_key(name, owner), OTHER)

    def named(self, label: str) -> set[str]:
        """The evidence that an alert of this run could name from now on. At most `limits.evidence` a wire that shows some."""
        run = self._runs.get(label)
        return set() if run is None else {each for shown in (run.recent, *run.shown.values()) for each in shown}

    def has_ended(self, label: str, now: float) -> bool:
        """Whether this run has sent nothing for so long that its alerts are of no use. Canaries are no run."""
        run = self._runs.get(label)
        return label != CANARIES and (run is None or now - run.seen_at > self._limits.ended_s)

    def report(self, name: str, alert: Alert, now: float) -> bool:
        """What another found about one of our own runs. Whether it is news: what has tripped stays so until acknowledged."""
        run = self._run(name, _NOBODY, now)
        if alert.wire in run.alerts:
            return False
        run.statistics[alert.wire] = alert.statistic
        _latch(run, alert, now)
        return True

    def acknowledge(self, label: str, wire: str) -> bool:
        """Let a wire trip again. Whether it had tripped."""
        run = self._runs.get(label) or self._archived.get(label)
        if run is None or run.alerts.pop(wire, None) is None:
            return False
        if label in self._archived and not self._is_blocked(run):
            self._forget(label, self._archived)
        return True

    # -- one sample -------------------------------------------------------------------------------------------------

    def _is_new(self, run: Run, seen: SampleFeatures) -> bool:
        """Not a retry of what was counted. Who says nothing that tells a retry apart has none."""
        if seen.key is None:
            return True
        if seen.key in run.keys:
            return False
        _remember(run.keys, seen.key, None, self._limits.remembered_texts)
        return True

    def _count(self, run: Run, seen: SampleFeatures) -> None:
        window = run.window
        window.count("samples")
        window.add_signed("score", seen.score)
        window.count("score_squared", seen.score * seen.score)
        saturation = run.baseline.saturation
        if saturation is not None and seen.score > saturation:
            window.count("saturated")
        if seen.is_capped:
            window.count("capped")
        if seen.spread is not None:
            window.count("spreads")
            window.add_squared("spread", seen.spread)
        if seen.distance is not None:
            window.count("distances")
            window.add_signed("distance", seen.distance)
            window.count("distance_squared", seen.distance * seen.distance)
        if seen.audit is not None:
            _count_audit(window, seen.score, seen.audit)
        if seen.components:
            window.add_components(seen.components)
        if seen.is_honeypot_hit is not None:
            self._count_honeypot(run, seen, seen.is_honeypot_hit)
        for trait, value in zip(TRAITS, seen.traits, strict=False):
            if value:
                window.add_squared(trait, value)
                if trait in _TELLTALE:
                    self._show(run, trait, seen.evidence)
        if seen.traits:
            window.count("responses")
        if len(seen.traits) > len(TOKEN_TRAITS):
            window.count("texts")
        if seen.text_digest is not None:
            self._count_duplicate(run, seen.text_digest, seen)
        if seen.evidence:
            run.recent.append(seen.evidence)
            if len(run.recent) > self._limits.evidence:
                run.recent.popleft()

    def _count_duplicate(self, run: Run, text: int, seen: SampleFeatures) -> None:
        before, n = run.texts.get(text, (None, 0))
        if before is not None:
            kind = "duplicate_within_prompt" if before == seen.group else "duplicate_across_prompts"
            run.window.count(kind)
            self._show(run, kind, seen.evidence)
        if n >= PROBING_COUNT:
            run.window.count("probing")
            self._show(run, "probing", seen.evidence)
        _remember(run.texts, text, (seen.group, n + 1), self._limits.remembered_texts)

    def _count_honeypot(self, run: Run, seen: SampleFeatures, is_honeypot_hit: bool) -> None:
        run.window.count("honeypots")
        run.honeypots.append(is_honeypot_hit)
        if is_honeypot_hit:
            run.window.count("honeypot_hits")
            self._show(run, "honeypots", seen.evidence)

    def _show(self, run: Run, wire: str, evidence: str) -> None:
        """Remember a sample that this very wire is about."""
        if evidence:
            run.shown.setdefault(wire, deque(maxlen=self._limits.evidence)).append(evidence)

    # -- one window -------------------------------------------------------------------------------------------------

    def _close_window(self, run: Run, now: float) -> list[Alert]:
        window, run.window = run.window, RunningSums(n_components=run.window.n_components)
        run.total += window
        run.n_windows += 1
        keep = 1.0 - self._limits.smoothing
        run.smooth = RunningSums(keep * old + new for old, new in zip(run.smooth.sums, window.sums, strict=True))
        score, audit = window.mean("audited_score"), window.mean("audit")
        if score is not None and audit is not None:
            run.trend.append(WindowMeans(score, audit))
            if len(run.trend) > self._limits.trend_windows:
                run.trend.popleft()
        if run.n_windows == self._limits.warm_up:
            run.baseline = run.baseline.with_learned(run.total)
            if (run.owner or run.name) and run.baseline_key not in run.baseline_source.known:
                run.baseline_source.learned(run.baseline_key, run.baseline)
        return self._look(run, now) if run.n_windows >= self._limits.warm_up else []

    def _look(self, run: Run, now: float) -> list[Alert]:
        """Ask every wire, then the vote."""
        honeypots = len(run.honeypots), sum(run.honeypots)
        view = RunSnapshot(run.smooth, run.baseline, tuple(run.trend), honeypots, run.kl, self._limits.window)
        run.statistics = {w.name: s for w in self.wires if (s := w.statistic(view)) is not None}
        over = [w for w in self.wires if run.statistics.get(w.name, w.threshold) > w.threshold]
        n_votes = float(sum(wire.weight(run.statistics[wire.name]) for wire in over))
        run.statistics[VOTE] = n_votes
        found = [self._trip(run, w.name, w.severity, w.threshold, now) for w in over]
        if n_votes >= self._limits.votes_for_a_page:
            found.append(self._trip(run, VOTE, "page", self._limits.votes_for_a_page, now))
        return [alert for alert in found if alert is not None]

    def _trip(self, run: Run, wire: str, severity: Severity, threshold: float, now: float) -> Alert | None:
        """The finding, unless this wire has tripped already and nobody has looked."""
        if wire in run.alerts:
            return None
        evidence = tuple(run.shown.get(wire) or run.recent)
        alert = Alert(wire, severity, run.statistics[wire], threshold, run.step, evidence)
        _latch(run, alert, now)
        return alert

    # -- runs -------------------------------------------------------------------------------------------------------

    def _label_for(self, key: tuple[str, str], now: float) -> str:
        """Where samples of this run are kept, or will be: in a place of its own if there is one, else in `other`."""
        if key == _NOBODY:
            return OTHER
        if (label := self._labels.get(key)) in self._runs:
            return str(label)
        if self._is_full and self._evictable(key[0], now) is None:
            return OTHER
        return label or self._new_label(*key)

    def _new_label(self, owner: str, name: str) -> str:
        wanted = f"{name or OTHER}@{owner}" if owner and (not name or self._is_taken(name)) else name
        label, n = wanted, 1
        while self._is_taken(label):
            n += 1
            label = f"{wanted}#{n}"
        return label

    def _is_taken(self, label: str) -> bool:
        return label in _OURS or label in self._runs or label in self._archived

    def _known(self, key: tuple[str, str]) -> Run | None:
        """The run of this owner and name. Overflow of one owner is not answered for by another: `other` is nobody's alone."""
        label = OTHER if key == _NOBODY else self._labels.get(key)
        if label is None and not key[0]:
            label = OTHER if self._is_full else None
        return None if label is None else self._runs.get(label) or self._archived.get(label)

    def _run_of_caller(
        self, name: str | None, owner: str, now: float, baseline_source: BaselineSource | None = None
    ) -> Run:
        self._forget_silent(now)
        key = _key(name, owner)
        label = self._label_for(key, now)
        return self._run(label, _NOBODY if label == OTHER else key, now, baseline_source)

    def _run(self, label: str, key: tuple[str, str], now: float, baseline_source: BaselineSource | None = None) -> Run:
        run = self._runs.get(label)
        if run is None:
            if label not in _OURS:
                self._make_room(key[0], now)
                self._labels[key] = label
            archived = self._archived.pop(label) if label in self._archived else None
            run = self._runs[label] = archived or _new_run(key, baseline_source or self.baseline_source)
        self._runs.move_to_end(label)
        run.seen_at = now
        return run

    @property
    def _is_full(self) -> bool:
        return sum(label not in _OURS for label in self._runs) >= self._limits.max_runs - len(_OURS)

    def _make_room(self, owner: str, now: float) -> None:
        if self._is_full and (label := self._evictable(owner, now)) is not None:
            self._forget(label, self._runs)

    def _evictable(self, owner: str, now: float) -> str | None:
        """The run that a new one of this owner takes the place of; None: there is none that can go."""
        runs = [(label, run) for label, run in self._runs.items() if label not in _OURS]
        counts = Counter(run.owner for _, run in runs)
        most = max(counts.values(), default=0)
        takes_from_others = counts[owner] + 1 < most
        losers = {o for o, n in counts.items() if n == most} if takes_from_others or not counts[owner] else {owner}
        ranked = [(self._rank(run, now), label) for label, run in runs if run.owner in losers]
        if not ranked:
            return None
        (rank, *_), label = min(ranked)
        return label if takes_from_others or rank != _PROTECTED else None

    def _rank(self, run: Run, now: float) -> tuple[float, ...]:
        """Runs with a lower rank go first."""
        if now - run.seen_at > self._limits.protected_s:
            return _SILENT, run.seen_at
        if run.n_windows < self._limits.warm_up:
            return _LEARNING, run.counted["samples"], run.seen_at
        return _PROTECTED, run.seen_at

    def _is_blocked(self, run: Run) -> bool:
        return not self._limits.blocks.isdisjoint(run.alerts)

    def _forget(self, label: str, where: OrderedDict[str, Run]) -> None:
        """Let go of a run; of a blocked one all but its alerts and counters, so that its block outlives it."""
        run = where.pop(label)
        if where is not self._runs or not self._is_blocked(run):
            self._labels.pop((run.owner, run.name), None)
            return
        for each in (run.trend, run.texts, run.keys, run.ids, run.honeypots, run.recent, run.shown, run.statistics):
            each.clear()
        self._archived[label] = run
        of_owner = [each for each, archived in self._archived.items() if archived.owner == run.owner]
        if len(of_owner) > _MOST_PARKED:
            self._forget(of_owner[0], self._archived)

    def _forget_silent(self, now: float) -> None:
        for label, run in [*islice(self._runs.items(), 2)]:
            if now - run.seen_at > self._limits.expiry_s:
                self._forget(label, self._runs)


def _key(name: str | None, owner: str) -> tuple[str, str]:
    """Owner and name of a run; our own names are no names that a caller can give."""
    return owner, "" if not name or name in _OURS else name


def _new_run(key: tuple[str, str], baseline_source: BaselineSource) -> Run:
    total, window, smooth, before = (RunningSums(n_components=len(baseline_source.components)) for _ in range(4))
    run = Run(baseline_source, baseline_source.baseline, total, window, smooth, before, owner=key[0], name=key[1])
    run.baseline = baseline_source.known.get(run.baseline_key, run.baseline)
    return run


def _measure_anew(run: Run, baseline_source: BaselineSource, now: float) -> None:
    """Texts, alerts and counters are the run's own and stay; a counter never falls."""
    n = len(baseline_source.components)
    counted = run.counted
    run.before = counted if run.baseline_source.components == baseline_source.components else counted.with_components(n)
    run.total, run.window, run.smooth = (RunningSums(n_components=n) for _ in range(3))
    run.baseline_source, run.baseline = (
        baseline_source,
        baseline_source.known.get(run.baseline_key, baseline_source.baseline),
    )
    run.trend.clear()
    run.statistics.clear()
    run.n_windows = 0
    if counted["samples"]:
        run.measured_at = now


def _latch(run: Run, alert: Alert, now: float) -> None:
    run.alerts[alert.wire] = ActiveAlert(alert, now)
    run.trips[alert.wire] += 1


def _count_audit(window: RunningSums, score: float, audit: float) -> None:
    window.count("audited")
    window.add_signed("audit", audit)
    window.add_signed("audited_score", score)


def _count_groups(run: Run, seen: Iterable[SampleFeatures]) -> None:
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
