"""Count the samples of a run in windows; when a window is full, smooth its sums and evaluate every wire on them. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import VOTE, Alert, Severity
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_state import MonitorLimits, Run, WindowSample
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import RunSnapshot, WindowMeans
from rewardserve.service.tripwires.wires import FLAGGED_TRAITS, Wire

V = TypeVar("V")

PROBING_COUNT = 64
"""Scorings of one text that do not occur by chance."""

_WINDOW_GROUP, _WARM_UP_GROUP = 16, 8
"""Samples of a window, and of a warm-up, for each of its prompts: with larger groups they take longer."""
_MAX_TIMES = 8
"""Times the samples of a window, and the windows of a warm-up, after which they end with any number of prompts."""


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
        for each in samples:
            self._count(run, each)
            if self._is_full(run):
                alerts += self._close_window(run, now)
        return alerts

    def count_audit(self, run: Run, prompt_hash: int, score: float, audit: float) -> None:
        """Count the score of one sample, and that of the audit judge."""
        run.window.add("audited")
        run.window.add_signed("audit", audit)
        run.window.add_signed("audited_score", score)
        run.window_audits.append((prompt_hash, PromptMeans(score, audit)))

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
            self.count_audit(run, sample.prompt_hash, sample.score, sample.audit)
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
        duplicate, is_probing = "", False
        if sample.text_digest is not None:
            duplicate, is_probing = self._count_duplicate(run, sample.text_digest, sample)
        run.window_samples.append(WindowSample(sample, duplicate, is_probing))
        run.window_prompts.add(sample.prompt_hash)
        if sample.evidence:
            run.recent_evidence.append(sample.evidence)
            if len(run.recent_evidence) > self._limits.evidence:
                run.recent_evidence.popleft()

    def _count_duplicate(self, run: Run, text: int, sample: SampleFeatures) -> tuple[str, bool]:
        before, n = run.texts.get(text, (None, 0))
        kind, is_probing = "", n >= PROBING_COUNT
        if before is not None:
            kind = "duplicate_within_prompt" if before == sample.prompt_hash else "duplicate_across_prompts"
            run.window.add(kind)
            self._add_evidence(run, kind, sample.evidence)
        if is_probing:
            run.window.add("probing")
            self._add_evidence(run, "probing", sample.evidence)
        _remember(run.texts, text, (sample.prompt_hash, n + 1), self._limits.remembered_texts)
        return kind, is_probing

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

    def _is_full(self, run: Run) -> bool:
        n, size = run.window["samples"], self._limits.window
        has_prompts = _WINDOW_GROUP * len(run.window_prompts) >= size
        return n >= size and (has_prompts or n >= _MAX_TIMES * size)

    def _close_window(self, run: Run, now: float) -> list[Alert]:
        window, run.window = run.window, RunningSums(n_components=run.window.n_components)
        add_prompts(window, run.window_samples, run.baseline.saturation)
        run.audit_drift.add_window(prompt_means(run.window_audits))
        for each in (run.window_samples, run.window_prompts, run.window_audits):
            each.clear()
        run.total += window
        run.n_windows += 1
        run.smooth = run.smooth.smoothed(window, 1.0 - self._limits.smoothing)
        score, audit = window.mean("audited_score"), window.mean("audit")
        if score is not None and audit is not None:
            run.trend.append(WindowMeans(score, audit))
            if len(run.trend) > self._limits.trend_windows:
                run.trend.popleft()
        if not run.has_baseline and self._is_warm(run):
            run.has_baseline = True
            run.baseline = run.baseline.with_learned(run.total)
            if run.owner or run.name:
                run.baseline_source.keep_learned(run.baseline_key, run.baseline)
        return self._evaluate(run, now) if run.has_baseline else []

    def _is_warm(self, run: Run) -> bool:
        n, limits = run.n_windows, self._limits
        has_prompts = _WARM_UP_GROUP * run.total["prompts"] >= limits.warm_up * limits.window
        return n >= limits.warm_up and (has_prompts or n >= _MAX_TIMES * limits.warm_up)

    def _evaluate(self, run: Run, now: float) -> list[Alert]:
        """Evaluate every wire, then the votes."""
        honeypots = len(run.honeypots), sum(run.honeypots)
        drift = run.audit_drift.e_value if run.audit_drift.start is not None else None
        snapshot = RunSnapshot(
            run.smooth, run.baseline, tuple(run.trend), honeypots, run.kl, self._limits.window, audit_drift=drift
        )
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


def prompt_means(audits: Iterable[tuple[int, PromptMeans]]) -> list[PromptMeans]:
    """The means of each prompt, from pairs of a prompt and both scores of a response."""
    by_prompt: dict[int, list[PromptMeans]] = {}
    for prompt, scores in audits:
        by_prompt.setdefault(prompt, []).append(scores)
    return [
        PromptMeans(sum(s.score for s in each) / len(each), sum(s.audit for s in each) / len(each))
        for each in by_prompt.values()
    ]


def add_prompts(window: RunningSums, samples: Sequence[WindowSample], saturation: float | None) -> None:
    """Add the numbers that only a whole window has: its prompts, groups, and the spread of numbers over prompts.

    Where there is one prompt alone, its samples are the independent units.
    """
    by_prompt: dict[int, list[WindowSample]] = {}
    for each in samples:
        by_prompt.setdefault(each.features.prompt_hash, []).append(each)
    window.add("prompts", len(by_prompt))
    for group in by_prompt.values():
        if len(group) > 1:
            window.add("groups")
            if len({each.features.reward for each in group}) == 1:
                window.add("flat_groups")
    groups = list(by_prompt.values()) if len(by_prompt) > 1 else [[each] for each in samples]
    if len(groups) < 2:
        return
    times = len(groups) / (len(groups) - 1)
    for name, column in _columns(groups, saturation):
        mean = window.mean(name)
        if mean is not None:
            rests = [total - mean * n for n, total in column]
            window.add(f"{name}_clustered", times * sum([rest * rest for rest in rests]))  # inf where `**` would raise


def _columns(
    groups: Sequence[Sequence[WindowSample]], saturation: float | None
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Number of samples and sum of each number, of every group."""
    features = [[each.features for each in group] for group in groups]
    sizes = [len(group) for group in groups]
    yield "score", [(len(group), sum([each.score for each in group])) for group in features]
    for name, values in (
        ("spread", [[each.spread for each in group if each.spread is not None] for group in features]),
        ("distance", [[each.distance for each in group if each.distance is not None] for group in features]),
    ):
        if any(values):
            yield name, [(len(each), sum(each)) for each in values]
    if saturation is not None:
        yield "saturated", [(len(group), sum([each.score > saturation for each in group])) for group in features]
    if any(each.is_capped for group in features for each in group):
        yield "capped", [(len(group), sum([each.is_capped for each in group])) for group in features]
    n_texts = [sum([len(each.traits) > len(TOKEN_TRAITS) for each in group]) for group in features]
    for kind in ("duplicate_within_prompt", "duplicate_across_prompts"):
        counts = [sum([each.duplicate == kind for each in group]) for group in groups]
        if any(counts):
            yield kind, list(zip(n_texts, counts, strict=True))
    if any(probing := [sum([each.is_probing for each in group]) for group in groups]):
        yield "probing", list(zip(n_texts, probing, strict=True))
    n_responses = sizes if all(each.traits for group in features for each in group) else None
    for i, name in enumerate(TRAITS):
        totals = [sum([each.traits[i] for each in group if len(each.traits) > i]) for group in features]
        if any(totals):
            if i >= len(TOKEN_TRAITS):
                counted = n_texts
            else:
                counted = n_responses or [sum([bool(each.traits) for each in group]) for group in features]
            yield name, list(zip(counted, totals, strict=True))


def _remember(kept: OrderedDict[int, V], key: int, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
