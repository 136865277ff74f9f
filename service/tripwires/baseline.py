"""What is usual: the frozen distribution that the statistics of a run are compared with.

It comes with the calibration, or is learnt from the first samples of a run; either way it never moves afterwards. A
reference that follows the run would follow it into the exploit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.running_sums import RunningSums

_LEAST_DEVIATION: Mapping[str, float] = {
    "missing_end": 0.1,
    "repetition": 0.01,
    "length": 0.05,
    "spread": 0.05,
    "score": 0.1,
}
_LEARNT = (*TRAITS, "score", "spread", "distance", "id_reuse")
"""What a run shows at its beginning, besides the parts of its reward."""

_ONE_IN_A_THOUSAND = 3.09
"""Standard deviations that one in a thousand normal numbers exceeds: so many samples are not there to count them."""

_LEAST_OF_OTHERS = 0.05
"""A reference that never did a thing has no deviation to measure by; then doing it a little is no shift to speak of."""


@dataclass(frozen=True, slots=True)
class BaselineStat:
    """Mean and standard deviation of one number over single samples. `n` of them; 1 where a calibration says so."""

    mean: float
    std: float
    n: float = 1.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """`usual` by name: `level`, `spread`, `distance` and the traits. `saturation` is the level that one in a thousand exceeds."""

    usual: Mapping[str, BaselineStat] = field(default_factory=dict)
    saturation: float | None = None

    def shift(self, name: str, mean: float | None) -> float | None:
        """How far a mean is from the usual one, in standard deviations of single samples; None: there is no saying."""
        usual = self.usual.get(name)
        return None if usual is None or mean is None else (mean - usual.mean) / usual.std

    def with_learned(self, seen: RunningSums) -> Baseline:
        """With what a run itself showed at its beginning, where nothing else is known."""
        learned = {name: usual for name in _LEARNT if (usual := _usual(seen, name)) is not None}
        learned |= {
            component(i): BaselineStat(mean, sqrt(variance), seen["samples"])
            for i, (mean, variance) in enumerate(seen.components())
        }
        saturation, score = self.saturation, learned.get("score")
        if saturation is None and score is not None:
            saturation = score.mean + _ONE_IN_A_THOUSAND * score.std
        return Baseline({**learned, **self.usual}, saturation)


@dataclass(frozen=True, slots=True, eq=False)
class BaselineSource:
    """What the rewards of one model are measured by; of another model's they say nothing, so there is one for each.

    `parts` are the names of what a reward is made of, where that is several. `known` is what runs of these names showed to be
    usual before; `learnt` hears of what another one does. `model` is the name of the model, a label of the run's metrics.
    """

    baseline: Baseline = Baseline()
    components: tuple[str, ...] = ()
    known: Mapping[str, Baseline] = field(default_factory=dict)
    learned: Callable[[str, Baseline], None] = lambda *_: None
    model: str = ""


def component(i: int) -> str:
    """The name of a part of the reward."""
    return f"component_{i}"


def is_component(name: str) -> bool:
    """Whether a number is a part of the reward. Such a part may have no deviation, where it did not vary."""
    return name.startswith("component_")


def min_std(name: str) -> float:
    """The smallest standard deviation to measure by."""
    return _LEAST_DEVIATION.get(name, _LEAST_OF_OTHERS)


def usual(name: str, mean: float, std: float, n: float = 1.0) -> BaselineStat:
    """With a deviation that is no smaller than makes sense."""
    return BaselineStat(mean, max(std, min_std(name)), n)


def _usual(seen: RunningSums, name: str) -> BaselineStat | None:
    mean, std = seen.mean(name), seen.std(name)
    return None if mean is None or std is None else usual(name, mean, std, seen.n_of(name))
