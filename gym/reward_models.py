"""Reward models of one seed, by their data and their backbones.

All reward models of a seed start from the same labelled pairs, and their first backbone is the same, so that variants
can be compared seed by seed. Independent of the settings of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from gym.counterexamples import (
    AUDITOR,
    N_AUDITED,
    audited_pairs,
    bootstrap,
    concatenate,
    find_counterexamples,
    weighted,
)
from gym.gold import gold
from gym.labeller import PLANTED, Biases, LabelledPairs, pairs
from gym.mining import WEIGHT
from gym.policy import Policy
from gym.proxy import Backbone, MultiModelScorer, RewardModel, backbone, reward_model
from gym.responses import FloatArray, Responses
from gym.rewards import CalibrationData, RewardModels, one_model, several_models

N_MEMBERS: Final = 4
N_PAIRS: Final = 6_000
N_JUDGE: Final = 400


@dataclass(frozen=True)
class SeedData:
    """One seed: its labelled pairs, its backbones, and additional audited labels.

    `weight`: that of an audited label in a fit.
    """

    base: Policy
    against: CalibrationData
    seed: int
    biases: Biases = PLANTED["human"]
    n_pairs: int = N_PAIRS
    weight: float = WEIGHT

    @cached_property
    def labelled(self) -> LabelledPairs:
        """Biased labels that every reward model learns from: those of `proxy.seed_models` for this seed."""
        return pairs(self.base, self.n_pairs, self.biases, np.random.default_rng([self.seed, 0]))

    @cached_property
    def mined(self) -> LabelledPairs:
        """Audited labels of responses that a policy found on the first backbone."""
        return find_counterexamples(
            self.base, self.network(0), self.labelled, self.judge, self.against, self.seed, weight=self.weight
        )

    @cached_property
    def judge(self) -> RewardModel:
        """Audit judge: on another backbone, fitted to a few pairs without the bias."""
        return reward_model(self.network(5), pairs(self.base, N_JUDGE, AUDITOR, np.random.default_rng([self.seed, 15])))

    @cached_property
    def audited_base(self) -> LabelledPairs:
        """As many audited labels of the base policy's responses."""
        return weighted(audited_pairs(self.base, N_AUDITED, np.random.default_rng([self.seed, 12])), self.weight)

    @cached_property
    def audited_variants(self) -> LabelledPairs:
        """As many audited labels of pairs by variants of the base policy, which are further apart."""
        return weighted(pairs(self.base, N_AUDITED, AUDITOR, np.random.default_rng([self.seed, 14])), self.weight)

    def network(self, index: int) -> Backbone:
        """Backbone of a member."""
        return backbone([self.seed, index + 1])


def single_model(data: SeedData, labelled: LabelledPairs) -> RewardModels:
    """One model on the first backbone."""
    return one_model(MultiModelScorer({"reward": reward_model(data.network(0), labelled)}), data.against)


def multi_head(data: SeedData, labelled: LabelledPairs) -> RewardModels:
    """One model with several heads on the first backbone, each fitted to a bootstrap of the pairs."""
    rng, network = np.random.default_rng([data.seed, 13]), data.network(0)
    members = {f"head_{i}": reward_model(network, bootstrap(labelled, rng)) for i in range(N_MEMBERS)}
    return one_model(MultiModelScorer(members), data.against)


def multi_backbone(data: SeedData, labelled: LabelledPairs) -> RewardModels:
    """Several models on separate backbones, fitted to the same pairs."""
    members = {f"member_{i}": reward_model(data.network(i), labelled) for i in range(N_MEMBERS)}
    return several_models(MultiModelScorer(members), data.against)


class _TrueReward:
    """Gold in place of a reward model."""

    def scores_B(self, responses: Responses) -> FloatArray:
        return gold(responses)


REWARD_MODELS: Final[dict[str, Callable[[SeedData], RewardModels]]] = {
    "gold": lambda w: one_model(MultiModelScorer({"reward": _TrueReward()}), w.against),
    "one": lambda w: single_model(w, w.labelled),
    "heads": lambda w: multi_head(w, w.labelled),
    "backbones": lambda w: multi_backbone(w, w.labelled),
    "one, mined": lambda w: single_model(w, concatenate([w.labelled, w.mined])),
    "backbones, mined": lambda w: multi_backbone(w, concatenate([w.labelled, w.mined])),
    "one, audited base": lambda w: single_model(w, concatenate([w.labelled, w.audited_base])),
    "backbones, audited base": lambda w: multi_backbone(w, concatenate([w.labelled, w.audited_base])),
    "one, audited variants": lambda w: single_model(w, concatenate([w.labelled, w.audited_variants])),
    "backbones, audited variants": lambda w: multi_backbone(w, concatenate([w.labelled, w.audited_variants])),
}
