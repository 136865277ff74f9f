"""The stages of the reward pipeline. Each is a pure function of a `Reward` that says what it did.

Every stage keeps the order of values (it is non-decreasing), so none of them changes which of two
responses is better; a hard cap may make them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.reward.record import Reward

Stage = Callable[[Reward], Reward]


@dataclass(frozen=True, slots=True)
class Normalize:
    """value = (value - mean) / std, with frozen statistics."""

    mean: float
    std: float

    def __call__(self, reward: Reward) -> Reward:
        """Set `normalized` and `value`."""
        z = (reward.value - self.mean) / self.std
        return Reward(reward.raw, value=z, normalized=z, notes=reward.notes)


@dataclass(frozen=True, slots=True)
class Cap:
    """value = min(max(value, low), high); either side may be open (None)."""

    low: float | None
    high: float | None

    def __call__(self, reward: Reward) -> Reward:
        """Clip, and note which side was clipped."""
        if self.high is not None and reward.value > self.high:
            return _moved(reward, self.high, "capped_high")
        if self.low is not None and reward.value < self.low:
            return _moved(reward, self.low, "capped_low")
        return reward


@dataclass(frozen=True, slots=True)
class SoftCap:
    """A cap that keeps the order of responses beyond it.

    Up to a knee one `width` inside the cap the value is unchanged; beyond, the excess t (in widths)
    becomes t / (1 + t), so the curve leaves the knee with slope 1 and approaches the cap without
    reaching it. Algebraic rather than exponential: float64 still tells values apart a million widths out.
    """

    low: float | None
    high: float | None
    width: float

    def __call__(self, reward: Reward) -> Reward:
        """Bend, and note which side was bent."""
        if self.high is not None and reward.value > self.high - self.width:
            bent = self._bend(reward.value - (self.high - self.width))
            return _moved(reward, self.high - self.width + bent, "softcapped_high")
        if self.low is not None and reward.value < self.low + self.width:
            bent = self._bend(self.low + self.width - reward.value)
            return _moved(reward, self.low + self.width - bent, "softcapped_low")
        return reward

    def _bend(self, excess: float) -> float:
        t = excess / self.width
        return self.width * (1.0 - 1.0 / (1.0 + t))


def _moved(reward: Reward, value: float, note: str) -> Reward:
    """As `_replace`, at half its price."""
    return Reward(reward.raw, value, reward.normalized, (*reward.notes, note))
