"""Audited labels for a reward model: of responses that a policy finds by climbing that model, or of earlier responses.

The auditor makes the labeller's mistakes, but has none of the biases. Each round fits the model, trains a policy on it
for a while through the reward pipeline, mines that policy's responses with `rewardserve mine`, labels the queue, and adds
the pairs that `rewardserve train --counterexamples` reads to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from gym.labeller import PLANTED, LabelledPairs, label
from gym.mining import WEIGHT, label_queue, mine_round, read_labelled
from gym.policy import Policy
from gym.proxy import Backbone, MultiModelScorer, RewardModel, reward_model
from gym.responses import joined
from gym.rewards import CalibrationData, one_model, pipeline_reward
from gym.training import train
from rewardserve.model.reward import RewardSettings, build_pipeline

N_ROUNDS: Final = 3
PER_ROUND: Final = 300
N_AUDITED: Final = N_ROUNDS * PER_ROUND
# Steps of a round: half a run, when exploits are frequent. The value matters: too few find few exploits, and with too many
# pairs have become alike.
CLIMB: Final = 120
AUDITOR: Final = PLANTED["none"]


def audited_pairs(policy: Policy, n: int, rng: np.random.Generator) -> LabelledPairs:
    """`n` pairs of this policy's responses, labelled without bias."""
    prompt_ids = np.zeros(n, dtype=np.int64)
    return label(policy.sample(rng, prompt_ids), policy.sample(rng, prompt_ids), AUDITOR, rng)


def find_counterexamples(
    base: Policy,
    network: Backbone,
    labelled: LabelledPairs,
    judge: RewardModel,
    against: CalibrationData,
    seed: int,
    *,
    climb: int = CLIMB,
    per_round: int = PER_ROUND,
    weight: float = WEIGHT,
) -> LabelledPairs:
    """Counterexamples of all rounds; each round trains from `base` on the raw reward of this network.

    Of the `per_round` labels of a round, those that training holds out are left out.
    """
    found: list[LabelledPairs] = []
    for index in range(N_ROUNDS):
        known = concatenate([labelled, *found])
        policy = climb_policy(base, network, known, against, climb, seed=1_000 + 10 * seed + index)
        rng = np.random.default_rng([seed, 11, index])
        with TemporaryDirectory() as folder:
            queue = mine_round(policy, reward_model(network, known), judge, per_round, rng, Path(folder))
            label_queue(queue, AUDITOR, rng)
            found.append(read_labelled(queue, weight))
    return concatenate(found)


def climb_policy(
    base: Policy, network: Backbone, labelled: LabelledPairs, against: CalibrationData, steps: int, *, seed: int
) -> Policy:
    """Policy at the end of a short run without KL on a model fitted to these pairs."""
    reward_models = one_model(MultiModelScorer({"reward": reward_model(network, labelled)}), against)
    raw = build_pipeline(reward_models.ensemble_members, RewardSettings(shape="none"))
    *_, last = train(base, reward_models.models, pipeline_reward(raw, reward_models.models.heads), steps, seed=seed)
    return last.policy


def weighted(labelled: LabelledPairs, weight: float) -> LabelledPairs:
    """The same pairs, of this weight each."""
    return replace(labelled, given_weight_N=np.full(len(labelled.left), weight))


def concatenate(parts: Sequence[LabelledPairs]) -> LabelledPairs:
    """Concatenate several sets of pairs, in order."""
    return LabelledPairs(
        joined([part.left for part in parts]),
        joined([part.right for part in parts]),
        np.concatenate([part.left_won_N for part in parts]),
        np.concatenate([part.left_meant_N for part in parts]),
        np.concatenate([part.weight_N for part in parts]),
    )


def bootstrap(labelled: LabelledPairs, rng: np.random.Generator) -> LabelledPairs:
    """Draw a bootstrap sample: as many pairs, with replacement."""
    index_N = rng.integers(len(labelled.left), size=len(labelled.left))
    return LabelledPairs(
        labelled.left.take(index_N),
        labelled.right.take(index_N),
        labelled.left_won_N[index_N],
        labelled.left_meant_N[index_N],
        labelled.weight_N[index_N],
    )
