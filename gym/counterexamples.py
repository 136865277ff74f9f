"""Audited labels for a reward model: of what a policy finds when it climbs that model, or of what was there before.

The auditor makes the labeller's mistakes, but has none of the biases. Each round fits the model, lets a policy climb it
for a while through the reward pipeline, has pairs of that policy's responses labelled, and adds them to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from gym.labeller import PLANTED, Pairs, label
from gym.policy import Policy
from gym.proxy import Backbone, Panel, reward_model
from gym.responses import joined
from gym.rewards import Reference, by_pipeline, one_model
from gym.training import train
from rewardserve.model.reward import RewardSettings, build_pipeline

N_ROUNDS: Final = 3
PER_ROUND: Final = 300
N_AUDITED: Final = N_ROUNDS * PER_ROUND
# Steps of a round: half a run, by when exploits are in full swing. It matters. With seeds 0 to 3 the row `mined` ends at
# a gold of .9 for 40 steps (too little has been found), 1.6 for 80, 1.8 for 120, 1.3 for 240 (pairs have become alike).
CLIMB: Final = 120
AUDITOR: Final = PLANTED["none"]


def audited(policy: Policy, n: int, rng: np.random.Generator) -> Pairs:
    """`n` pairs of this policy's own responses, labelled without bias."""
    prompt_ids = np.zeros(n, dtype=np.int64)
    return label(policy.sample(rng, prompt_ids), policy.sample(rng, prompt_ids), AUDITOR, rng)


def mined(base: Policy, network: Backbone, labelled: Pairs, against: Reference, seed: int, climb: int = CLIMB) -> Pairs:
    """The counterexamples of all rounds, found by climbing this network's raw reward from `base`, again each time."""
    found: list[Pairs] = []
    for index in range(N_ROUNDS):
        policy = climbed(base, network, together([labelled, *found]), against, climb, seed=1_000 + 10 * seed + index)
        found.append(audited(policy, PER_ROUND, np.random.default_rng([seed, 11, index])))
    return together(found)


def climbed(base: Policy, network: Backbone, labelled: Pairs, against: Reference, steps: int, *, seed: int) -> Policy:
    """The policy at the end of a short run without KL on a model fitted to these pairs."""
    jury = one_model(Panel({"reward": reward_model(network, labelled)}), against)
    raw = build_pipeline(jury.ensemble_members, RewardSettings(shape="none"))
    *_, last = train(base, jury.models, by_pipeline(raw, jury.models.heads), steps, seed=seed)
    return last.policy


def together(parts: Sequence[Pairs]) -> Pairs:
    """Several sets of pairs as one, in order."""
    return Pairs(
        joined([part.left for part in parts]),
        joined([part.right for part in parts]),
        np.concatenate([part.left_won_N for part in parts]),
        np.concatenate([part.left_meant_N for part in parts]),
    )


def drawn(labelled: Pairs, rng: np.random.Generator) -> Pairs:
    """A bootstrap: as many pairs, drawn with replacement."""
    index_N = rng.integers(len(labelled.left), size=len(labelled.left))
    return Pairs(
        labelled.left.take(index_N),
        labelled.right.take(index_N),
        labelled.left_won_N[index_N],
        labelled.left_meant_N[index_N],
    )
