"""The baseline of a run: the frozen distribution that its statistics are compared with.

It comes from the calibration, or is learned from the first samples of a run, and never changes afterwards: a
baseline that followed the run would adapt to the exploit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.running_sums import RunningSums

_MIN_STD: Mapping[str, float] = {
    "missing_end": 0.1,
    "repetition": 0.01,
    "length": 0.05,
    "spread": 0.05,
    "score": 0.1,
}
_LEARNED = (*TRAITS, "score", "spread", "distance", "id_reuse", "duplicate_across_prompts")
"""Numbers of which a run learns the baseline at its start, besides the components of its reward."""

_Z_ONE_IN_1000 = 3.09
"""Standard deviations that one in a thousand normal numbers exceeds: the warm-up has too few samples for the quantile."""

_DEFAULT_MIN_STD = 0.05
"""Smallest standard deviation: a trait without variance in the baseline would make any occurrence an infinite shift."""


MAX_LEARNED = 2_000
"""Limit of the baselines that are kept, over all models."""


@dataclass(frozen=True, slots=True)
class BaselineStat:
    """Mean and standard deviation of one number over single samples. `n` of them; 1 where they come from a calibration. `error` is
    the standard error of the mean, clustered by prompt; 0 where it is not known.
    """

    mean: float
    std: float
    n: float = 1.0
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """`stats` by name: `score`, `spread`, `distance` and the traits. `saturation` is the score that one in a thousand exceeds."""

    stats: Mapping[str, BaselineStat] = field(default_factory=dict)
    saturation: float | None = None

    def shift(self, name: str, mean: float | None) -> float | None:
        """Shift of a mean from that of the baseline, in standard deviations of single samples; None: not known."""
        stat = self.stats.get(name)
        return None if stat is None or mean is None else (mean - stat.mean) / stat.std

    def with_learned(self, sums: RunningSums) -> Baseline:
        """Add the statistics of the first samples of a run, where the baseline has none."""
        learned = {name: stat for name in _LEARNED if (stat := _learned_stat(sums, name)) is not None}
        learned |= {
            component(i): BaselineStat(mean, sqrt(variance), sums["samples"])
            for i, (mean, variance) in enumerate(sums.components())
        }
        learned = {name: stat for name, stat in learned.items() if isfinite(stat.mean + stat.std + stat.error)}
        saturation, score = self.saturation, learned.get("score")
        if saturation is None and score is not None:
            saturation = score.mean + _Z_ONE_IN_1000 * score.std
        return Baseline({**learned, **self.stats}, saturation)


class LearnedBaselines:
    """The baselines that runs have learned, by model and run; the ones that were saved first are dropped beyond `MAX_LEARNED`.

    They outlive the state of a run, which is deleted after a day without samples.
    """

    def __init__(self) -> None:
        self._by_run: OrderedDict[tuple[str, str], Baseline] = OrderedDict()
        self.n_changes = 0

    def find(self, model: str, run: str) -> Baseline | None:
        """The baseline that this run has learned under this model."""
        return self._by_run.get((model, run))

    def save(self, model: str, run: str, baseline: Baseline) -> None:
        """Keep a baseline."""
        self.n_changes += 1
        self._by_run[model, run] = baseline
        self._by_run.move_to_end((model, run))
        if len(self._by_run) > MAX_LEARNED:
            self._by_run.popitem(last=False)

    def items(self) -> list[tuple[str, str, Baseline]]:
        """All baselines with their model and run, the one that was saved first at the beginning."""
        return [(*key, baseline) for key, baseline in self._by_run.items()]


@dataclass(frozen=True, slots=True, eq=False)
class BaselineSource:
    """Source of the baselines of runs that one model scores; each model has one, because rewards of two models are not comparable.

    `default` is the baseline of a new run. `components` are the names of the components of a reward, where it has several.
    `store` has the baselines that runs have learned, where they are kept. `model` is the name of the model, a label of the run's
    metrics; `digest` identifies all that the numbers of a sample depend on: weights, pipeline, phrases.
    """

    default: Baseline = Baseline()
    components: tuple[str, ...] = ()
    store: LearnedBaselines | None = None
    model: str = ""
    digest: str = ""

    def baseline_of(self, run: str) -> Baseline:
        """The baseline that a run begins with."""
        return self.learned(run) or self.default

    def learned(self, run: str) -> Baseline | None:
        """The baseline that a run has learned before; None: none."""
        return None if self.store is None else self.store.find(self.digest, run)

    def keep_learned(self, run: str, baseline: Baseline) -> None:
        """Keep the baseline that a run has learned, unless it has one from before."""
        if self.store is not None and self.learned(run) is None:
            self.store.save(self.digest, run, baseline)


def component(i: int) -> str:
    """The name of a component of the reward in a baseline."""
    return f"component_{i}"


def is_component(name: str) -> bool:
    """Whether a number is a component of the reward, whose standard deviation may be 0."""
    return name.startswith("component_")


def min_std(name: str) -> float:
    """The lower bound of the standard deviation of a number."""
    return _MIN_STD.get(name, _DEFAULT_MIN_STD)


def baseline_stat(name: str, mean: float, std: float, n: float = 1.0, error: float = 0.0) -> BaselineStat:
    """Create a statistic with a standard deviation of at least `min_std`."""
    return BaselineStat(mean, max(std, min_std(name)), n, error)


def _learned_stat(sums: RunningSums, name: str) -> BaselineStat | None:
    mean, std = sums.mean(name), sums.std(name)
    return None if mean is None or std is None else baseline_stat(name, mean, std, sums.n_of(name), sums.error(name))
