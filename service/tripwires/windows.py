"""Count the samples of a run in windows; when a window is full, smooth its sums and evaluate every wire on them. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import VOTE, Alert, Severity
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_state import MonitorLimits, Run
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import RunSnapshot, WindowMeans
from rewardserve.service.tripwires.wires import FLAGGED_TRAITS, Wire

V = TypeVar("V")

PROBING_COUNT = 64
"""Scorings of one text that do not occur by chance."""


class WindowCounter:
    """Counter of samples in the windows of runs. Stateless: the sums belong to the runs."""

    def __init__(self, limits: MonitorLimits, wires: Sequence[Wire]) -> None:
        self._limits = limits
        self._wires = wires

    def new_samples(self, run: Run, samples: Iterable[SampleFeatures]) -> list[SampleFeatures]:
        """The samples that are no retries of counted ones."""
        return [each for each in samples if self._is_new(run, each)]

    def count(self, run: Run, samples: Sequence[SampleFeatures], now: float) -> list[Alert]:
        """Count the new samples of one request. Return the alerts that they raised."""
        alerts: list[Alert] = []
        _count_groups(run, samples)
        for each in samples:
            self._count(run, each)
            if run.window["samples"] >= self._limits.window:
                alerts += self._close_window(run, now)
        return alerts

    def count_ids(self, run: Run, ids: Iterable[tuple[int, int]]) -> None:
        """Count ids of samples, and those that stand for several samples."""
        for sample_id, content in ids:
            pair = hash((sample_id, content))
            if pair in run.ids:
                continue  # a retry
            run.window.add("ids")
            if sample_id in run.ids:
                run.window.add_squared("id_reuse", 1.0)
            for key in (sample_id, pair):
                _remember(run.ids, key, None, 2 * self._limits.remembered_texts)

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
            count_audit(window, sample.score, sample.audit)
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
            if run.owner or run.name:
                run.baseline_source.keep_learned(run.baseline_key, run.baseline)
        return self._evaluate(run, now) if run.n_windows >= self._limits.warm_up else []

    def _evaluate(self, run: Run, now: float) -> list[Alert]:
        """Evaluate every wire, then the votes."""
        honeypots = len(run.honeypots), sum(run.honeypots)
        snapshot = RunSnapshot(run.smooth, run.baseline, tuple(run.trend), honeypots, run.kl, self._limits.window)
        run.statistics = {w.name: s for w in self._wires if (s := w.statistic(snapshot)) is not None}
        over = [w for w in self._wires if run.statistics.get(w.name, w.threshold) > w.threshold]
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
        run.activate(alert, now)
        return alert


def count_audit(window: RunningSums, score: float, audit: float) -> None:
    """Count the score of one sample, and that of the audit judge."""
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
