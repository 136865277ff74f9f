"""Average the weights of several reward models of one origin (WARM, Ramé et al. 2401.12187).

Averaging makes a better model only where the models are linearly connected: where the path between them in weight space
stays as accurate as its ends. That is measured on held-out pairs before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.network import RewardNetwork
from rewardserve.training.errors import ModelUnusable
from rewardserve.training.settings.validation import ConfigError

LARGEST_BARRIER = 0.02
"""Accuracy that a point of the path may lose against the models that it mixes; up to there networks count as linearly connected
(Frankle et al. 1912.05671)."""


@dataclass(frozen=True, slots=True)
class LinearPath:
    """Held-out accuracies on the path from one member to the average: of the member, of the middle, of the average.

    `expected` is that of the average if the path is straight: the mean of all members.
    """

    member: str
    start: float
    middle: float
    average: float
    expected: float

    @property
    def barrier(self) -> float:
        """Accuracy that the worse point loses against the models that it mixes, weighted as it mixes them."""
        return max((self.start + self.expected) / 2 - self.middle, self.expected - self.average)

    def __str__(self) -> str:
        """One line for the console and the report."""
        return f"{self.member}: accuracy {self.start:.3f}, half way {self.middle:.3f}, average {self.average:.3f}"


def require_several(paths: Sequence[str]) -> None:
    """Raise `ConfigError` unless these are two or more different checkpoints."""
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise ConfigError(
            f"average needs two or more different checkpoints, not {list(paths)}: give --checkpoint once for each"
        )


def average(
    paths: Sequence[str], read: Callable[[str], Checkpoint], accuracy: Callable[[Checkpoint], float]
) -> tuple[Checkpoint, tuple[LinearPath, ...]]:
    """Mean of the weights, with the accuracies on the path to each member. Raise `ModelUnusable`.

    `read` loads one member in float32, `accuracy` judges it on the held-out pairs. Two networks are in memory at a time, so
    members are read twice.
    """
    mean = read(paths[0])
    ends = [accuracy(mean)]
    for n, path in enumerate(paths[1:], start=2):
        member = read(path)
        _refuse_difference((paths[0], mean), (path, member))
        ends.append(accuracy(member))
        _mix(mean.network, member.network, 1 / n)
    whole, expected = accuracy(mean), sum(ends) / len(ends)
    found = []
    for path, end in zip(paths, ends, strict=True):
        member = read(path)
        _mix(member.network, mean.network, 1 / 2)
        found.append(LinearPath(path, end, accuracy(member), whole, expected))
    _refuse_barrier(found)
    return mean, tuple(found)


def _mix(into: RewardNetwork, other: RewardNetwork, share: float) -> None:
    """Move every parameter and buffer of `into` by `share` of its distance to that of `other`."""
    theirs = other.state_dict()
    with torch.no_grad():
        for name, mine in into.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name].to(mine), share)
        into.bias_H.lerp_(other.bias_H.to(into.bias_H), share)


def _refuse_difference(first: tuple[str, Checkpoint], second: tuple[str, Checkpoint]) -> None:
    """Raise `ModelUnusable` if two checkpoints are not two trainings of one model, encoded alike."""
    (one, a), (another, b) = first, second
    compared = {
        "architecture": (a.architecture, b.architecture),
        "heads": (a.network.head_names, b.network.head_names),
        "shapes of weights": (_shapes(a.network), _shapes(b.network)),
        "tokenizer": (_tokenizer_digest(a), _tokenizer_digest(b)),
        **{f.name: (getattr(a.policy, f.name), getattr(b.policy, f.name)) for f in fields(a.policy)},
    }
    different = [name for name, (left, right) in compared.items() if left != right]
    if different:
        raise ModelUnusable(
            f"--checkpoint: {one} and {another} differ in {', '.join(different)}: only trainings of one model, encoded "
            "alike, can be averaged"
        )


def _tokenizer_digest(checkpoint: Checkpoint) -> str | None:
    return checkpoint.facts.tokenizer_digest if checkpoint.facts else None


def _shapes(network: RewardNetwork) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _refuse_barrier(found: Sequence[LinearPath]) -> None:
    worst = max(found, key=lambda path: path.barrier)
    if worst.barrier > LARGEST_BARRIER:
        raise ModelUnusable(
            f"--checkpoint: these models are not linearly connected: on the path to {worst} ({worst.expected:.3f} is the mean of "
            f"the members). {LARGEST_BARRIER:g} may be lost. Train them from the same weights and heads, with a lower optim.lr, or "
            "serve them as an ensemble (REWARD_MODELS)."
        )
