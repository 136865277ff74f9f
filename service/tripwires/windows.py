"""Count the samples of a run in windows; when a window is full, smooth its sums and have every wire evaluated on them. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TypeVar

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.baseline import Baseline
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.evaluation import WireEvaluator
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_state import MonitorLimits, Run, WindowSample, task_key
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import MIN_AUDITED
from rewardserve.service.tripwires.strata import Stratum, within_strata
from rewardserve.service.tripwires.window_sums import add_audits, add_prompts, prompt_means
from rewardserve.service.tripwires.wires import FLAGGED_TRAITS

V = TypeVar("V")

PROBING_COUNT = 64
"""Scorings of one text for one prompt that do not occur by chance."""

_WINDOW_GROUP, _WARM_UP_GROUP = 16, 8
"""Samples of a window, and of a warm-up, for each of its prompts: with larger groups they take longer."""
_MAX_TIMES = 8
"""Times the samples of a window, and the windows of a warm-up, after which they end with any number of prompts."""


class WindowCounter:
    """Counter of samples in the windows of runs. Stateless: the sums belong to the runs."""

    def __init__(self, limits: MonitorLimits, evaluator: WireEvaluator) -> None:
        self._limits = limits
        self._evaluator = evaluator

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
        before, n, at = run.texts.get(text, (None, 0, 0))
        n = n if before == sample.prompt_hash else 0  # a policy's fixed answers go to many prompts
        kind, is_probing = "", n >= PROBING_COUNT
        if before == sample.prompt_hash:
            kind = "duplicate_within_prompt"
            window.add(kind)
        elif before is not None and run.n_windows - at <= 1:
            # Against all earlier texts the share of a policy that does not change would grow with their number.
            kind = "duplicate_across_prompts"
            window.add_squared(kind, 1.0)
        if kind:
            self._add_evidence(run, kind, sample.evidence)
        if is_probing:
            window.add("probing")
            self._add_evidence(run, "probing", sample.evidence)
        known = sample.prompt_hash, n + 1, run.n_windows
        _remember(run.texts, text, known, self._limits.remembered_texts)
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
        _add_audits(run)
        window = run.window
        run.audit_drift.add_window(prompt_means(run.window_audits))
        for each in (run.window_samples, run.window_prompts, run.window_audits):
            each.clear()
        run.window_ids = RunningSums(n_components=window.n_components)
        self._smooth(run, window)
        if not run.has_baseline and self._is_warm(run):
            run.has_baseline = True
            run.run_wide = within_strata(Baseline().with_learned(run.total), run.strata.values())
            self._complete_baselines(run, self._limits.warm_up * self._limits.window / (4 * _WARM_UP_GROUP))
        elif run.has_baseline:
            self._complete_baselines(run)
        return self._evaluator.evaluate(run, now) if run.has_baseline and run.is_watched else []

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

    def _is_warm(self, run: Run) -> bool:
        n, limits = run.n_windows, self._limits
        has_prompts = _WARM_UP_GROUP * run.total["prompts"] >= limits.warm_up * limits.window
        return n >= limits.warm_up and (has_prompts or n >= _MAX_TIMES * limits.warm_up)

    def _complete_baselines(self, run: Run, enough_prompts: float = inf) -> None:
        """Complete the baselines of strata with enough samples; at the end of the warm-up, also of those with so many prompts."""
        is_only = len(run.strata) == 1
        for each in run.strata.values():
            if each.has_baseline:
                each.learn_audits(each.smooth, MIN_AUDITED)
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


def _assign_profile(run: Run) -> None:
    """Count the samples without a task for the profile of their prompts, which only the whole window shows."""
    counted_as = run.stratum_of_profile(run.prompts.current) if run.has_samples_without_task else None
    if counted_as is None:
        return
    n_tasks = sum(bool(each.task) for each in run.strata.values())
    stratum = run.stratum_of_profile(run.prompts.close_window(n_tasks))
    if run.prompts.has_restarted:
        stratum.forget_windows()
    if stratum is counted_as:
        return
    samples = [each for each in run.window_samples if each.stratum == counted_as.key]
    stratum.window, counted_as.window = counted_as.window, stratum.window
    stratum.window.set("saturated", sum(_is_saturated(each.features, stratum) for each in samples))
    run.window_samples = [
        each._replace(stratum=stratum.key) if each.stratum == counted_as.key else each for each in run.window_samples
    ]


def _add_audits(run: Run) -> None:
    by_task: dict[str, list[tuple[int, PromptMeans]]] = {}
    for audit in run.window_audits:
        by_task.setdefault(audit[1].task, []).append(audit)
    for task, audits in by_task.items():
        add_audits(run.stratum_of(task).window, audits)


def _is_saturated(sample: SampleFeatures, stratum: Stratum) -> bool:
    return stratum.baseline.saturation is not None and sample.score > stratum.baseline.saturation


def _remember(kept: OrderedDict[int, V], key: int, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
