"""The state of every run, and the alerts of its wires. O(1) a run, a bounded number of runs.

Samples are added to sums; when a window is full, its sums are smoothed, and every wire is evaluated on them. An alert stays
active until an operator acknowledges it. Pure: the time is passed in, and no reward changes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import CANARY, VOTE, Alert, Severity
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.config import VOTES_FOR_A_PAGE
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import AuditDivergence, HoneypotHitRate, RunSnapshot, WindowMeans
from rewardserve.service.tripwires.wires import FLAGGED_TRAITS, WIRES, Wire

V = TypeVar("V")

OTHER = "other"
"""Label of samples without a run, and of runs beyond `max_runs`."""

CANARIES = "canaries"
"""Label of alerts about canaries, which belong to the model, not to a run. No run of a client has this label."""

CANARY_THRESHOLD = 1.0
"""Multiples of the change of a score that kernels and batches may cause."""

PROBING_COUNT = 64
"""Scorings of one text that do not occur by chance."""

_RESERVED = (OTHER, CANARIES)
_UNNAMED = ("", "")
"""Key of samples without owner and run."""

_SILENT, _LEARNING, _PROTECTED = range(3)
_MAX_ARCHIVED = 256
"""Limit of blocked runs of one owner whose state was evicted; their alerts are kept."""


@dataclass(frozen=True, slots=True)
class MonitorLimits:
    """`window` counts samples. `smoothing` is the weight of the newest window. A run without a baseline learns one from
    `warm_up` windows. A run without samples for `ended_s` has ended, so its alerts resolve; after `expiry_s` it is deleted. A run
    with a baseline and a sample within `protected_s` is not evicted for another run of the same owner. `blocks` are
    wires whose alerts block a run.
    """

    window: int = 128
    smoothing: float = 0.1
    warm_up: int = 4
    votes_for_a_page: int = VOTES_FOR_A_PAGE
    trend_windows: int = AuditDivergence.max_windows
    max_runs: int = 32
    expiry_s: float = 86_400.0
    protected_s: float = 3_600.0
    ended_s: float = 1_800.0
    remembered_texts: int = 4_096
    evidence: int = 20
    blocks: frozenset[str] = frozenset()


@dataclass(slots=True)
class ActiveAlert:
    """Alert of a wire, active until it is acknowledged."""

    alert: Alert
    since: float


@dataclass(slots=True)
class Run:
    """The state of one run. `total` and `window` are sums over rewards of the model of `baseline_source`, since
    `model_changed_at` where another model scored the run before; sums over rewards of the earlier model are in `earlier`.
    `owner` is the name of the API key, "" without keys; `name` is "" for samples without a run.
    """

    baseline_source: BaselineSource
    baseline: Baseline
    total: RunningSums
    window: RunningSums
    smooth: RunningSums
    earlier: RunningSums
    model_changed_at: float | None = None
    trend: deque[WindowMeans] = field(default_factory=deque)
    texts: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    keys: OrderedDict[int, None] = field(default_factory=OrderedDict)
    ids: OrderedDict[int, None] = field(default_factory=OrderedDict)
    honeypots: deque[bool] = field(default_factory=lambda: deque(maxlen=HoneypotHitRate.max_answers))
    recent_evidence: deque[str] = field(default_factory=deque)
    wire_evidence: dict[str, deque[str]] = field(default_factory=dict)
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
        """Key of this run's baseline in the baseline store. Names of API keys contain no space."""
        return f"{self.owner} {self.name}" if self.owner else self.name

    @property
    def all_sums(self) -> RunningSums:
        """Sums over all samples, of all models."""
        return self.earlier + self.total + self.window


class RunMonitor:
    """Monitor of all runs. Belongs to one event loop. `baseline_source` is for runs whose model is not given.

    A run is identified by owner and name: runs of two owners are two runs, also with the same name. Its label is its name, or
    `NAME@OWNER` where a run of another owner has that label already; `other`, or `other@OWNER`, without a name. At the limit of
    runs, a new run evicts one of the owner that has most; among the runs of its owner one without samples for long, then one
    without a baseline. Where none of these can be evicted, it shares `other`.
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
        """Thresholds of every wire, of the vote, and of the canaries."""
        known = {wire.name: wire.threshold for wire in self.wires}
        return {**known, VOTE: float(self._limits.votes_for_a_page), CANARY: CANARY_THRESHOLD}

    @property
    def runs(self) -> dict[str, Run]:
        """Runs by label, the one with the oldest latest sample first."""
        return dict(self._runs)

    @property
    def archived(self) -> dict[str, Run]:
        """Blocked runs whose state was evicted: their alerts and counters."""
        return dict(self._archived)

    def set_baseline_source(
        self, name: str | None, baseline_source: BaselineSource, now: float, owner: str = ""
    ) -> None:
        """Set the model that scores this run from now on. For another model a new baseline is learned; alerts stay."""
        run = self._runs.get(self._label_for(_key(name, owner), now))
        if run is not None and run.baseline_source is not baseline_source:
            _change_model(run, baseline_source, now)

    def observe(
        self,
        name: str | None,
        step: int | None,
        samples: Sequence[SampleFeatures],
        now: float,
        kl: float | None = None,
        source: BaselineSource | None = None,
        owner: str = "",
    ) -> list[Alert]:
        """Count the new samples of one request. Return the alerts that they raised.

        Samples of another model than the run has now are left out: they were in flight when the model was replaced.
        """
        run = self._run_of_caller(name, owner, now, source)
        if source is not None and run.baseline_source is not source:
            return []
        run.step = step if step is not None else run.step
        run.kl = kl if kl is not None else run.kl
        new = [each for each in samples if self._is_new(run, each)]
        if _key(name, owner) not in self._labels and (name or owner):
            self.n_over_limit += len(new)
        alerts: list[Alert] = []
        _count_groups(run, new)
        for each in new:
            self._count(run, each)
            if run.window["samples"] >= self._limits.window:
                alerts += self._close_window(run, now)
        return alerts

    def add_audit(self, name: str | None, score: float, audit: float, now: float, owner: str = "") -> None:
        """Count the score of one sample, and that of the audit judge."""
        _count_audit(self._run_of_caller(name, owner, now).window, score, audit)

    def add_sample_ids(self, name: str | None, ids: Iterable[tuple[int, int]], now: float, owner: str = "") -> None:
        """Count ids, and those that stand for several samples. `ids`: the hash of each id, with the hash of its sample."""
        run = self._run_of_caller(name, owner, now)
        for sample_id, content in ids:
            pair = hash((sample_id, content))
            if pair in run.ids:
                continue  # a retry
            run.window.add("ids")
            if sample_id in run.ids:
                run.window.add_squared("id_reuse", 1.0)
            for key in (sample_id, pair):
                _remember(run.ids, key, None, 2 * self._limits.remembered_texts)

    def blocked_by(self, name: str | None, owner: str = "", *, is_bound: bool = False) -> str | None:
        """The wire whose active alert blocks this run, or every run.

        `is_bound`: the owner may send certain runs only. Then samples without a run, and unknown runs, are refused while any
        run of the owner is blocked: they would circumvent the block.
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
        """The label of a run; `other` where there are too many runs."""
        return self._labels.get(_key(name, owner), OTHER)

    def evidence_of(self, label: str) -> set[str]:
        """The evidence that a future alert of this run could name. At most `limits.evidence` per wire."""
        run = self._runs.get(label)
        return (
            set()
            if run is None
            else {each for named in (run.recent_evidence, *run.wire_evidence.values()) for each in named}
        )

    def has_ended(self, label: str, now: float) -> bool:
        """Whether this run has sent no samples for `ended_s`. Canaries are no run."""
        run = self._runs.get(label)
        return label != CANARIES and (run is None or now - run.seen_at > self._limits.ended_s)

    def report(self, label: str, alert: Alert, now: float) -> bool:
        """Activate an alert about a reserved label. Return whether it was not active already."""
        run = self._run(label, _UNNAMED, now)
        if alert.wire in run.alerts:
            return False
        run.statistics[alert.wire] = alert.statistic
        _activate(run, alert, now)
        return True

    def acknowledge(self, label: str, wire: str) -> bool:
        """Acknowledge an alert, so that the wire can trip again. Return whether it was active."""
        run = self._runs.get(label) or self._archived.get(label)
        if run is None or run.alerts.pop(wire, None) is None:
            return False
        if label in self._archived and not self._is_blocked(run):
            self._forget(label, self._archived)
        return True

    # -- one sample -------------------------------------------------------------------------------------------------

    def _is_new(self, run: Run, sample: SampleFeatures) -> bool:
        """Whether a sample is no retry of a counted one. A sample without a retry key counts as new."""
        if sample.retry_key is None:
            return True
        if sample.retry_key in run.keys:
            return False
        _remember(run.keys, sample.retry_key, None, self._limits.remembered_texts)
        return True

    def _count(self, run: Run, sample: SampleFeatures) -> None:
        window = run.window
        window.add("samples")
        window.add_signed("score", sample.score)
        window.add("score_squared", sample.score * sample.score)
        saturation = run.baseline.saturation
        if saturation is not None and sample.score > saturation:
            window.add("saturated")
        if sample.is_capped:
            window.add("capped")
        if sample.spread is not None:
            window.add("spreads")
            window.add_squared("spread", sample.spread)
        if sample.distance is not None:
            window.add("distances")
            window.add_signed("distance", sample.distance)
            window.add("distance_squared", sample.distance * sample.distance)
        if sample.audit is not None:
            _count_audit(window, sample.score, sample.audit)
        if sample.components:
            window.add_components(sample.components)
        if sample.is_honeypot_hit is not None:
            self._count_honeypot(run, sample, sample.is_honeypot_hit)
        for trait, value in zip(TRAITS, sample.traits, strict=False):
            if value:
                window.add_squared(trait, value)
                if trait in FLAGGED_TRAITS:
                    self._add_evidence(run, trait, sample.evidence)
        if sample.traits:
            window.add("responses")
        if len(sample.traits) > len(TOKEN_TRAITS):
            window.add("texts")
        if sample.text_digest is not None:
            self._count_duplicate(run, sample.text_digest, sample)
        if sample.evidence:
            run.recent_evidence.append(sample.evidence)
            if len(run.recent_evidence) > self._limits.evidence:
                run.recent_evidence.popleft()

    def _count_duplicate(self, run: Run, text: int, sample: SampleFeatures) -> None:
        before, n = run.texts.get(text, (None, 0))
        if before is not None:
            kind = "duplicate_within_prompt" if before == sample.prompt_hash else "duplicate_across_prompts"
            run.window.add(kind)
            self._add_evidence(run, kind, sample.evidence)
        if n >= PROBING_COUNT:
            run.window.add("probing")
            self._add_evidence(run, "probing", sample.evidence)
        _remember(run.texts, text, (sample.prompt_hash, n + 1), self._limits.remembered_texts)

    def _count_honeypot(self, run: Run, sample: SampleFeatures, is_honeypot_hit: bool) -> None:
        run.window.add("honeypots")
        run.honeypots.append(is_honeypot_hit)
        if is_honeypot_hit:
            run.window.add("honeypot_hits")
            self._add_evidence(run, "honeypots", sample.evidence)

    def _add_evidence(self, run: Run, wire: str, evidence: str) -> None:
        """Store a sample as evidence for a wire."""
        if evidence:
            run.wire_evidence.setdefault(wire, deque(maxlen=self._limits.evidence)).append(evidence)

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
                run.baseline_source.on_learned(run.baseline_key, run.baseline)
        return self._evaluate(run, now) if run.n_windows >= self._limits.warm_up else []

    def _evaluate(self, run: Run, now: float) -> list[Alert]:
        """Evaluate every wire, then the votes."""
        honeypots = len(run.honeypots), sum(run.honeypots)
        snapshot = RunSnapshot(run.smooth, run.baseline, tuple(run.trend), honeypots, run.kl, self._limits.window)
        run.statistics = {w.name: s for w in self.wires if (s := w.statistic(snapshot)) is not None}
        over = [w for w in self.wires if run.statistics.get(w.name, w.threshold) > w.threshold]
        n_votes = float(sum(wire.weight(run.statistics[wire.name]) for wire in over))
        run.statistics[VOTE] = n_votes
        alerts = [self._trip(run, w.name, w.severity, w.threshold, now) for w in over]
        if n_votes >= self._limits.votes_for_a_page:
            alerts.append(self._trip(run, VOTE, "page", self._limits.votes_for_a_page, now))
        return [alert for alert in alerts if alert is not None]

    def _trip(self, run: Run, wire: str, severity: Severity, threshold: float, now: float) -> Alert | None:
        """Activate the alert of a wire and return it; None where it is active already."""
        if wire in run.alerts:
            return None
        evidence = tuple(run.wire_evidence.get(wire) or run.recent_evidence)
        alert = Alert(wire, severity, run.statistics[wire], threshold, run.step, evidence)
        _activate(run, alert, now)
        return alert

    # -- runs -------------------------------------------------------------------------------------------------------

    def _label_for(self, key: tuple[str, str], now: float) -> str:
        """The label for samples of this run; `other` where there are too many runs."""
        if key == _UNNAMED:
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
        return label in _RESERVED or label in self._runs or label in self._archived

    def _known(self, key: tuple[str, str]) -> Run | None:
        """The run of this owner and name. Alerts of `other` block no owner, because its runs are of several."""
        label = OTHER if key == _UNNAMED else self._labels.get(key)
        if label is None and not key[0]:
            label = OTHER if self._is_full else None
        return None if label is None else self._runs.get(label) or self._archived.get(label)

    def _run_of_caller(
        self, name: str | None, owner: str, now: float, baseline_source: BaselineSource | None = None
    ) -> Run:
        self._forget_silent(now)
        key = _key(name, owner)
        label = self._label_for(key, now)
        return self._run(label, _UNNAMED if label == OTHER else key, now, baseline_source)

    def _run(self, label: str, key: tuple[str, str], now: float, baseline_source: BaselineSource | None = None) -> Run:
        run = self._runs.get(label)
        if run is None:
            if label not in _RESERVED:
                self._evict_for(key[0], now)
                self._labels[key] = label
            archived = self._archived.pop(label) if label in self._archived else None
            run = self._runs[label] = archived or _new_run(key, baseline_source or self.baseline_source)
        self._runs.move_to_end(label)
        run.seen_at = now
        return run

    @property
    def _is_full(self) -> bool:
        return sum(label not in _RESERVED for label in self._runs) >= self._limits.max_runs - len(_RESERVED)

    def _evict_for(self, owner: str, now: float) -> None:
        if self._is_full and (label := self._evictable(owner, now)) is not None:
            self._forget(label, self._runs)

    def _evictable(self, owner: str, now: float) -> str | None:
        """The run to evict for a new one of this owner; None: none can be evicted."""
        runs = [(label, run) for label, run in self._runs.items() if label not in _RESERVED]
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
        return label if evicts_from_others or rank != _PROTECTED else None

    def _rank(self, run: Run, now: float) -> tuple[float, ...]:
        """Runs with a lower rank are evicted first."""
        if now - run.seen_at > self._limits.protected_s:
            return _SILENT, run.seen_at
        if run.n_windows < self._limits.warm_up:
            return _LEARNING, run.all_sums["samples"], run.seen_at
        return _PROTECTED, run.seen_at

    def _is_blocked(self, run: Run) -> bool:
        return not self._limits.blocks.isdisjoint(run.alerts)

    def _forget(self, label: str, where: OrderedDict[str, Run]) -> None:
        """Delete a run; keep alerts and counters of a blocked one, so that its block stays."""
        run = where.pop(label)
        if where is not self._runs or not self._is_blocked(run):
            self._labels.pop((run.owner, run.name), None)
            return
        evidence = run.recent_evidence, run.wire_evidence
        for each in (run.trend, run.texts, run.keys, run.ids, run.honeypots, *evidence, run.statistics):
            each.clear()
        self._archived[label] = run
        of_owner = [each for each, archived in self._archived.items() if archived.owner == run.owner]
        if len(of_owner) > _MAX_ARCHIVED:
            self._forget(of_owner[0], self._archived)

    def _forget_silent(self, now: float) -> None:
        for label, run in [*islice(self._runs.items(), 2)]:
            if now - run.seen_at > self._limits.expiry_s:
                self._forget(label, self._runs)


def _key(name: str | None, owner: str) -> tuple[str, str]:
    """Owner and name of a run; a reserved label counts as no name."""
    return owner, "" if not name or name in _RESERVED else name


def _new_run(key: tuple[str, str], baseline_source: BaselineSource) -> Run:
    total, window, smooth, earlier = (RunningSums(n_components=len(baseline_source.components)) for _ in range(4))
    run = Run(baseline_source, baseline_source.default, total, window, smooth, earlier, owner=key[0], name=key[1])
    run.baseline = baseline_source.known.get(run.baseline_key, run.baseline)
    return run


def _change_model(run: Run, baseline_source: BaselineSource, now: float) -> None:
    """Start a new baseline. Texts, alerts and counters stay; no counter falls."""
    n = len(baseline_source.components)
    all_sums = run.all_sums
    run.earlier = (
        all_sums if run.baseline_source.components == baseline_source.components else all_sums.with_components(n)
    )
    run.total, run.window, run.smooth = (RunningSums(n_components=n) for _ in range(3))
    run.baseline_source, run.baseline = (
        baseline_source,
        baseline_source.known.get(run.baseline_key, baseline_source.default),
    )
    run.trend.clear()
    run.statistics.clear()
    run.n_windows = 0
    if all_sums["samples"]:
        run.model_changed_at = now


def _activate(run: Run, alert: Alert, now: float) -> None:
    run.alerts[alert.wire] = ActiveAlert(alert, now)
    run.trips[alert.wire] += 1


def _count_audit(window: RunningSums, score: float, audit: float) -> None:
    window.add("audited")
    window.add_signed("audit", audit)
    window.add_signed("audited_score", score)


def _count_groups(run: Run, samples: Iterable[SampleFeatures]) -> None:
    """Count groups of responses to one prompt in one request, and those whose rewards do not differ."""
    by_group: dict[int, set[float]] = {}
    sizes = Counter(each.prompt_hash for each in samples)
    for each in samples:
        by_group.setdefault(each.prompt_hash, set()).add(each.reward)
    for prompt_hash, rewards in by_group.items():
        if sizes[prompt_hash] > 1:
            run.window.add("groups")
            if len(rewards) == 1:
                run.window.add("flat_groups")


def _remember(kept: OrderedDict[int, V], key: int, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
