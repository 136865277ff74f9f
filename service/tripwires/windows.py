"""Count the samples of a run in windows; when a window is full, smooth its sums and evaluate every wire on them. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import TypeVar

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import VOTE, Alert, Severity
from rewardserve.service.tripwires.baseline import Baseline
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_state import MonitorLimits, Run, WindowSample, task_key
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import MIN_AUDITED, RELATIVE, RunSnapshot, WindowMeans
from rewardserve.service.tripwires.strata import Stratum, expected_gap, mixed_baseline, within_strata
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

    def count(self, run: Run, samples: Sequence[SampleFeatures], now: float, prompts: Mapping[int, str]) -> list[Alert]:
        """Count the new samples of one request. Return the alerts that they raised. `prompts`: given texts, by hash."""
        alerts: list[Alert] = []
        for each in samples:
            if each.prompt_hash not in run.prompts.window and not each.task:
                run.prompts.add(each.prompt_hash, prompts.get(each.prompt_hash, ""))
            self._count(run, each)
            if self._is_full(run):
                alerts += self._close_window(run, now)
        return alerts

    def count_audit(self, run: Run, prompt_hash: int, scores: PromptMeans) -> None:
        """Count the score of one sample, and that of the audit judge."""
        stratum = run.stratum_of(scores.task)
        window = stratum.window
        window.add("audited")
        window.add_signed("audit", scores.audit)
        window.add_signed("audited_score", scores.score)
        run.window_audits.append((prompt_hash, scores._replace(task=stratum.task)))

    def count_ids(self, run: Run, ids: Iterable[tuple[int, int]]) -> None:
        """Count ids of samples, and those that stand for several samples."""
        for sample_id, content in ids:
            pair = hash((sample_id, content))
            if pair in run.ids:
                continue  # a retry
            run.window_ids.add("ids")
            if sample_id in run.ids:
                run.window_ids.add_squared("id_reuse", 1.0)
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
        stratum = run.stratum_of(sample.task)
        window = stratum.window
        window.add("samples")
        window.add_signed("score", sample.score)
        window.add("score_squared", sample.score * sample.score)
        saturation = stratum.baseline.saturation
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
            self.count_audit(run, sample.prompt_hash, PromptMeans(sample.score, sample.audit, sample.task))
        if sample.components:
            window.add_components(sample.components)
        if sample.is_honeypot_hit is not None:
            self._count_honeypot(run, window, sample, sample.is_honeypot_hit)
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
            duplicate, is_probing = self._count_duplicate(run, window, sample.text_digest, sample)
        run.window_samples.append(WindowSample(sample, stratum.key, duplicate, is_probing))
        run.window_prompts.add(sample.prompt_hash)
        if sample.evidence:
            run.recent_evidence.append(sample.evidence)
            if len(run.recent_evidence) > self._limits.evidence:
                run.recent_evidence.popleft()

    def _count_duplicate(self, run: Run, window: RunningSums, text: int, sample: SampleFeatures) -> tuple[str, bool]:
        before, n = run.texts.get(text, (None, 0))
        kind, is_probing = "", n >= PROBING_COUNT
        if before is not None:
            kind = "duplicate_within_prompt" if before == sample.prompt_hash else "duplicate_across_prompts"
            window.add(kind)
            self._add_evidence(run, kind, sample.evidence)
        if is_probing:
            window.add("probing")
            self._add_evidence(run, "probing", sample.evidence)
        _remember(run.texts, text, (sample.prompt_hash, n + 1), self._limits.remembered_texts)
        return kind, is_probing

    def _count_honeypot(self, run: Run, window: RunningSums, sample: SampleFeatures, is_honeypot_hit: bool) -> None:
        window.add("honeypots")
        run.honeypots.append(is_honeypot_hit)
        if is_honeypot_hit:
            window.add("honeypot_hits")
            self._add_evidence(run, "honeypots", sample.evidence)

    def _add_evidence(self, run: Run, wire: str, evidence: str) -> None:
        """Store a sample as evidence for a wire."""
        if evidence:
            run.wire_evidence.setdefault(wire, deque(maxlen=self._limits.evidence)).append(evidence)

    # -- one window -------------------------------------------------------------------------------------------------

    def _is_full(self, run: Run) -> bool:
        n, size = len(run.window_samples), self._limits.window
        has_prompts = _WINDOW_GROUP * len(run.window_prompts) >= size
        return n >= size and (has_prompts or n >= _MAX_TIMES * size)

    def _close_window(self, run: Run, now: float) -> list[Alert]:
        _assign_profile(run)
        self._add_prompts(run)
        window = run.window
        run.audit_drift.add_window(prompt_means(run.window_audits))
        for each in (run.window_samples, run.window_prompts, run.window_audits):
            each.clear()
        run.window_ids = RunningSums(n_components=window.n_components)
        self._add_to_trend(run, window)
        self._smooth(run, window)
        if not run.has_baseline and self._is_warm(run):
            run.has_baseline = True
            run.run_wide = within_strata(Baseline().with_learned(run.total), run.strata.values())
            self._complete_baselines(run, self._limits.warm_up * self._limits.window / (4 * _WARM_UP_GROUP))
        elif run.has_baseline:
            self._complete_baselines(run)
        return self.evaluate(run, now) if run.has_baseline and run.is_watched else []

    def _add_prompts(self, run: Run) -> None:
        by_stratum: dict[str, list[WindowSample]] = {}
        if len(run.strata) == 1:
            by_stratum = dict.fromkeys(run.strata, run.window_samples)
        else:
            for each in run.window_samples:
                by_stratum.setdefault(each.stratum, []).append(each)
        for key, samples in by_stratum.items():
            stratum = run.strata[key]
            add_prompts(stratum.window, samples, stratum.baseline.saturation)

    def _smooth(self, run: Run, window: RunningSums) -> None:
        """Add the window to the sums of the run and of its strata, of which the only one has those of the run."""
        keep = 1.0 - self._limits.smoothing
        keep_audited = run.smooth.keep_audited(window, keep, MIN_AUDITED)
        run.n_windows += 1
        run.total += window
        run.smooth = run.smooth.smoothed(window, keep, keep_audited)
        if len(run.strata) == 1:
            (only,) = run.strata.values()
            only.total, only.smooth = run.total, run.smooth
            only.window = RunningSums(n_components=window.n_components)
            return
        for each in run.strata.values():
            each.close_window(keep, keep_audited)

    def _add_to_trend(self, run: Run, window: RunningSums) -> None:
        means = window_means(window) if len(run.strata) == 1 else deviating_means(run.strata.values())
        if means is not None:
            run.trend.append(means)
            if len(run.trend) > self._limits.trend_windows:
                run.trend.popleft()

    def _is_warm(self, run: Run) -> bool:
        n, limits = run.n_windows, self._limits
        has_prompts = _WARM_UP_GROUP * run.total["prompts"] >= limits.warm_up * limits.window
        return n >= limits.warm_up and (has_prompts or n >= _MAX_TIMES * limits.warm_up)

    def _complete_baselines(self, run: Run, enough_prompts: float = inf) -> None:
        """Complete the baselines of strata with enough samples; at the end of the warm-up, also of those with so many prompts."""
        is_only = len(run.strata) == 1
        for each in run.strata.values():
            has_enough = is_only or each.total["prompts"] >= enough_prompts or self._is_stratum_warm(each)
            if not each.has_baseline and has_enough:
                each.complete_baseline(run.run_wide if len(run.strata) > 1 else Baseline(), MIN_AUDITED)
                if not each.task:
                    run.prompts.complete(each.profile)
                if run.name and not each.profile:
                    key = task_key(run.baseline_key, each.task) if each.task else run.baseline_key
                    run.baseline_source.keep_learned(key, each.baseline)

    def _is_stratum_warm(self, stratum: Stratum) -> bool:
        """Half the samples that a run without tasks learns from, of as many prompts; or eight times the samples."""
        n, n_run = stratum.total["samples"], self._limits.warm_up * self._limits.window
        return 2 * n >= n_run and (_WARM_UP_GROUP * stratum.total["prompts"] >= n_run or n >= _MAX_TIMES * n_run)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, run: Run, now: float) -> list[Alert]:
        """Evaluate every wire on all samples, then on each task by itself, and the votes of each."""
        statistics = self._statistics(self._snapshot(run))
        tasks = dict.fromkeys(statistics, "")
        votes, voting_task = self._votes(statistics), ""
        for each in _comparable(run):
            of_task = self._statistics_of_task(run, each, statistics)
            if (n := self._votes(of_task)) > votes:
                votes, voting_task = n, each.task
            for name, statistic in of_task.items():
                if name not in statistics or statistic > statistics[name]:
                    statistics[name], tasks[name] = statistic, each.task
        run.statistics = {**statistics, VOTE: votes}
        alerts = [
            self._trip(run, wire.name, wire.severity, wire.threshold, now, tasks[wire.name])
            for wire in self._wires
            if statistics.get(wire.name, wire.threshold) > wire.threshold
        ]
        if votes >= self._limits.votes_for_a_page:
            alerts.append(self._trip(run, VOTE, "page", self._limits.votes_for_a_page, now, voting_task))
        return [alert for alert in alerts if alert is not None]

    def _snapshot(self, run: Run) -> RunSnapshot:
        """The snapshot of all samples; sets the baseline of the run."""
        strata = [each for each in run.strata.values() if each.has_baseline]
        compared, gap = run.compared, 0.0
        if len(run.strata) == 1 and strata:
            run.baseline = strata[0].baseline
        elif strata:
            run.baseline = mixed_baseline(strata, run.run_wide)
            gap = expected_gap(strata, compared)
        return RunSnapshot(
            run.smooth,
            run.baseline,
            tuple(run.trend),
            (len(run.honeypots), sum(run.honeypots)),
            run.kl,
            self._limits.window,
            run.audit_drift.e_value if run.audit_drift.start is not None else None,
            compared,
            gap,
            run.prompts.n_changes,
            run.attributed,
        )

    def _statistics(self, snapshot: RunSnapshot) -> dict[str, float]:
        return {w.name: s for w in self._wires if (s := w.statistic(snapshot)) is not None}

    def _statistics_of_task(self, run: Run, stratum: Stratum, of_all: Mapping[str, float]) -> dict[str, float]:
        """The statistics of one task: those that compare with a baseline. The others are those of all samples."""
        snapshot = RunSnapshot(stratum.smooth, stratum.baseline, window=self._limits.window)
        relative = {w.name: w.statistic(snapshot) for w in self._wires if isinstance(w.statistic, RELATIVE)}
        others = {name: statistic for name, statistic in of_all.items() if name not in relative}
        return others | {name: statistic for name, statistic in relative.items() if statistic is not None}

    def _votes(self, statistics: Mapping[str, float]) -> float:
        return float(sum(wire.weight(statistics.get(wire.name)) for wire in self._wires))

    def _trip(self, run: Run, wire: str, severity: Severity, threshold: float, now: float, task: str) -> Alert | None:
        """Activate the alert of a wire and return it; None where it is active already."""
        if wire in run.alerts:
            return None
        evidence = tuple(run.wire_evidence.get(wire) or run.recent_evidence)
        alert = Alert(wire, severity, run.statistics[wire], threshold, run.step, evidence, task)
        run.activate(alert, now)
        return alert


def _assign_profile(run: Run) -> None:
    """Count the samples without a task for the profile of their prompts, which only the whole window shows."""
    counted_as = run.stratum_of_profile(run.prompts.current) if run.has_samples_without_task else None
    if counted_as is None:
        return
    stratum = run.stratum_of_profile(run.prompts.close_window())
    if stratum is counted_as:
        return
    samples = [each for each in run.window_samples if each.stratum == counted_as.key]
    stratum.window, counted_as.window = counted_as.window, stratum.window
    stratum.window.set("saturated", sum(_is_saturated(each.features, stratum) for each in samples))
    run.window_samples = [
        each._replace(stratum=stratum.key) if each.stratum == counted_as.key else each for each in run.window_samples
    ]


def _is_saturated(sample: SampleFeatures, stratum: Stratum) -> bool:
    return stratum.baseline.saturation is not None and sample.score > stratum.baseline.saturation


def _comparable(run: Run) -> list[Stratum]:
    """The tasks that are compared by themselves too; none where all samples are of one."""
    return [each for each in run.strata.values() if each.is_comparable] if len(run.strata) > 1 else []


def window_means(window: RunningSums) -> WindowMeans | None:
    """The means over the audited samples of a window; None without any."""
    score, audit = window.mean("audited_score"), window.mean("audit")
    return None if score is None or audit is None else WindowMeans(score, audit)


def deviating_means(strata: Iterable[Stratum]) -> WindowMeans | None:
    """The mean deviations of the audited samples of the open window from the baselines of their strata; None without any."""
    n = score = audit = 0.0
    for each in strata:
        means = window_means(each.window)
        if means is not None and each.audits is not None:
            weight = each.window["audited"]
            n += weight
            score += weight * (means.score - each.audits.score)
            audit += weight * (means.audit - each.audits.audit)
    return WindowMeans(score / n, audit / n) if n else None


def prompt_means(audits: Iterable[tuple[int, PromptMeans]]) -> list[PromptMeans]:
    """The means of each prompt, from pairs of a prompt and both scores of a response."""
    by_prompt: dict[tuple[int, str], list[PromptMeans]] = {}
    for prompt, scores in audits:
        by_prompt.setdefault((prompt, scores.task), []).append(scores)
    return [
        PromptMeans(sum(s.score for s in each) / len(each), sum(s.audit for s in each) / len(each), task)
        for (_, task), each in by_prompt.items()
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
