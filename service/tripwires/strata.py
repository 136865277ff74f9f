"""The strata of a run: the samples of each task that its client names, each with its own baseline.

A mean is compared with the mean of the baselines, weighted as the latest samples are distributed over the strata (direct
standardisation), so a curriculum that moves between tasks shifts nothing, while a change within them does. Errors are those of a
stratified sample: each stratum's own, by its weight (Cochran, Sampling Techniques, 1977, section 5.3). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import hypot, sqrt
from typing import NamedTuple

from rewardserve.service.tripwires.baseline import Baseline, BaselineStat, is_component
from rewardserve.service.tripwires.running_sums import RunningSums, count_of

MAX_TASKS = 16
"""Tasks of a run that have a separate baseline, the one of all further tasks included."""

OTHER_TASKS = "other"
"""Name of the task that stands for all further ones."""

MIN_PROMPTS = 32
"""Fewest prompts, of the baseline and of the latest samples, from which a task is compared by itself too."""


class AuditGapMean(NamedTuple):
    """Mean of the score less that of the audit judge, on the samples that both scored, and its standard error."""

    mean: float
    error: float


@dataclass(slots=True)
class Stratum:
    """The samples of one task of a run; without a task, of one of its `prompt_profiles`, by index. Since `first_step`.

    `window` are the sums of the open window, `total` those of all windows, `smooth` the smoothed ones. `has_baseline`: the
    baseline, of `n_prompts` prompts, is complete; until then the samples are compared with nothing. `audits` is the gap between
    score and judge with which it began.
    """

    task: str
    first_step: int | None
    baseline: Baseline
    window: RunningSums
    total: RunningSums
    smooth: RunningSums
    has_baseline: bool = False
    n_prompts: float = 0.0
    audits: AuditGapMean | None = None
    profile: int = 0

    @classmethod
    def new(cls, task: str, first_step: int | None, baseline: Baseline, n_components: int, profile: int = 0) -> Stratum:
        """A stratum without samples."""
        window, total, smooth = (RunningSums(n_components=n_components) for _ in range(3))
        return cls(task, first_step, baseline, window, total, smooth, profile=profile)

    @property
    def key(self) -> str:
        """Name of the stratum in its run: a task is printable, so it contains no line break."""
        return f"\n{self.profile}" if self.profile else self.task

    def close_window(self, keep: float, keep_audited: float) -> None:
        """Add the open window to the sums. Every stratum does so when a window of the run is full."""
        self.total += self.window
        self.smooth = self.smooth.smoothed(self.window, keep, keep_audited)
        self.window = RunningSums(n_components=self.window.n_components)

    def forget_windows(self) -> None:
        """Begin again with the open window: the one before had samples of two kinds of prompts."""
        self.total, self.smooth = (RunningSums(n_components=self.window.n_components) for _ in range(2))

    def complete_baseline(self, run_wide: Baseline, min_audited: int) -> None:
        """Learn the missing numbers of the baseline from all samples so far, and freeze it.

        Standard deviations are at least those within the first strata of the run: few samples may lack the rare large values.
        """
        learned = self.baseline.with_learned(self.total)
        stats = {name: _at_least(stat, name, run_wide) for name, stat in learned.stats.items()}
        self.baseline = Baseline(stats, learned.saturation)
        self.has_baseline = True
        self.n_prompts = self.total["prompts"]
        self.learn_audits(self.total, min_audited)

    def learn_audits(self, sums: RunningSums, min_audited: int) -> None:
        """Learn the gap with which the stratum began from these sums, if they have enough audits and it is not known yet."""
        mean = sums.audit_gap
        if self.audits is None and mean is not None and sums["audited"] >= min_audited:
            self.audits = AuditGapMean(mean, sums.audit_gap_error)

    @property
    def is_comparable(self) -> bool:
        """Whether there are enough prompts to compare this task by itself."""
        return self.has_baseline and min(self.n_prompts, self.smooth["prompts"]) >= MIN_PROMPTS


def mixed_baseline(strata: Collection[Stratum], run_wide: Baseline) -> Baseline:
    """The baseline of samples that are distributed over these strata as the latest ones are.

    `run_wide` has the numbers that belong to no single task.
    """
    names = {name for each in strata for name in each.baseline.stats}
    stats = {name: stat for name in names if (stat := _mixed(name, strata)) is not None}
    saturations = [each.baseline.saturation for each in strata if each.baseline.saturation is not None]
    return Baseline({**run_wide.stats, **stats}, max(saturations, default=None))


def within_strata(run_wide: Baseline, strata: Iterable[Stratum]) -> Baseline:
    """The baseline of all samples of a run, with the standard deviations within its strata."""
    learned = [Baseline().with_learned(each.total).stats for each in strata]
    stats = dict(run_wide.stats)
    for name, stat in run_wide.stats.items():
        parts = [each[name] for each in learned if name in each]
        if parts:
            n = sum(part.n for part in parts)
            stats[name] = replace(stat, std=sqrt(sum(part.n * part.std * part.std for part in parts) / n))
    return Baseline(stats, run_wide.saturation)


def learned_so_far(strata: Iterable[Stratum]) -> list[Stratum]:
    """The strata with a baseline of all their samples, where theirs is not complete: by itself such a stratum has no shift."""
    return [
        each
        if each.has_baseline
        else Stratum(
            each.task,
            each.first_step,
            each.baseline.with_learned(each.total),
            each.window,
            each.total,
            each.smooth,
            n_prompts=each.total["prompts"],
            profile=each.profile,
        )
        for each in strata
    ]


def audit_gap_growth(strata: Iterable[Stratum], min_audited: float) -> AuditGapMean | None:
    """Growth of the gap between score and judge since the start of each stratum, as the latest audits are distributed over them.

    None where there are too few of these.
    """
    known = [(each.smooth, each.audits) for each in strata if each.audits is not None and each.smooth["audited"]]
    n = sum(now["audited"] for now, _ in known)
    if not n or n < min_audited:
        return None
    growth = error = 0.0
    for now, start in known:
        weight = now["audited"] / n
        growth += weight * ((now.audit_gap or 0.0) - start.mean)
        error = hypot(error, weight * now.audit_gap_error, weight * start.error)
    return AuditGapMean(growth, error)


def _mixed(name: str, strata: Collection[Stratum]) -> BaselineStat | None:
    count = "samples" if is_component(name) else count_of(name)
    parts = [
        (each.smooth[count], each.baseline.stats[name], each.n_prompts)
        for each in strata
        if name in each.baseline.stats
    ]
    total = sum(n for n, _, _ in parts)
    if not total:
        return None
    mean = sum(n * stat.mean for n, stat, _ in parts) / total
    variance = sum(n * stat.std * stat.std for n, stat, _ in parts) / total
    if is_component(name):  # a share of the variance of all samples together
        variance += sum(n * (stat.mean - mean) * (stat.mean - mean) for n, stat, _ in parts) / total
    errors = (n * _error(stat, n_prompts) for n, stat, n_prompts in parts)
    return BaselineStat(
        mean, sqrt(variance), sum(stat.n for _, stat, _ in parts), sqrt(sum(e * e for e in errors)) / total
    )


def _at_least(stat: BaselineStat, name: str, run_wide: Baseline) -> BaselineStat:
    known = run_wide.stats.get(name)
    return stat if known is None or is_component(name) or known.std <= stat.std else replace(stat, std=known.std)


def _error(stat: BaselineStat, n_prompts: float) -> float:
    """The standard error of a baseline's mean. With few prompts a rare trait may not have occurred, and its measured error is 0."""
    return max(stat.error, stat.std / sqrt(n_prompts)) if n_prompts else stat.error
