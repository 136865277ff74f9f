"""RL loop of the gym: sample, score, reward, update; one record of all figures for each step.

The reward is a callable, so that a whole reward pipeline can stand between the raw scores and the policy. The gold
reward is computed beside the loop and recorded; it reaches the policy only if the caller's reward is gold.

`B` responses, `H` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from gym.gold import gold
from gym.policy import Policy, new_adam, normalised, reinforce_gradient_V
from gym.proxy import MultiModelScorer
from gym.responses import FloatArray, Responses

LEARNING_RATE: Final = 0.027
STEPS: Final = 240
BATCH: Final = 128
GROUP: Final = 8  # responses to one prompt

RewardOf = Callable[[Responses, FloatArray], FloatArray]
"""From responses and their raw scores_BH to rewards_B, before any KL penalty."""


@dataclass(frozen=True)
class Step:
    """Record of one step. All figures are those of the policy that sampled, before its update."""

    index: int
    policy: Policy
    responses: Responses
    heads: tuple[str, ...]
    scores_BH: FloatArray
    rewards_B: FloatArray
    gold_B: FloatArray
    log_ratio_B: FloatArray
    kl: float


def train(
    base: Policy,
    models: MultiModelScorer,
    reward_of: RewardOf,
    steps: int = STEPS,
    *,
    seed: int,
    batch: int = BATCH,
    group: int = GROUP,
    learning_rate: float = LEARNING_RATE,
    kl_coefficient: float = 0.0,
    group_advantages: bool = False,
) -> Iterator[Step]:
    """REINFORCE from the base policy, one record a step. Equal arguments give equal bits.

    The KL coefficient is in the unit of the rewards, a nat. Advantages are normalised over the batch, or over each group
    of responses to one prompt as in GRPO.
    """
    if batch % group:
        raise ValueError(f"batch={batch} is not a multiple of group={group}")
    rng = np.random.default_rng([seed, 1])
    policy, optimiser = base, new_adam(learning_rate)
    for index in range(steps):
        step = _evaluate(index, policy, base, models, reward_of, policy.sample(rng, _prompt_ids_B(index, batch, group)))
        yield step
        penalised_B = step.rewards_B - kl_coefficient * step.log_ratio_B
        advantages_B = normalised(penalised_B, group if group_advantages else batch)
        change_V, optimiser = optimiser.step(reinforce_gradient_V(policy, step.responses, advantages_B))
        policy = Policy(policy.logits_V + change_V, policy.cap)


def _prompt_ids_B(index: int, batch: int, group: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """New prompts at every step, each repeated `group` times."""
    first = index * batch // group
    return np.repeat(np.arange(first, first + batch // group, dtype=np.int64), group)


def _evaluate(
    index: int, policy: Policy, base: Policy, models: MultiModelScorer, reward_of: RewardOf, responses: Responses
) -> Step:
    """Score, reward and measure one batch."""
    scores_BH = models.scores_BH(responses)
    rewards_B = np.asarray(reward_of(responses, scores_BH), dtype=np.float64)
    if rewards_B.shape != (len(responses),) or not np.isfinite(rewards_B).all():
        raise ValueError(f"step {index}: rewards must be finite, one for each of {len(responses)} responses")
    return Step(
        index=index,
        policy=policy,
        responses=responses,
        heads=models.heads,
        scores_BH=scores_BH,
        rewards_B=rewards_B,
        gold_B=gold(responses),
        log_ratio_B=policy.log_prob_B(responses) - base.log_prob_B(responses),
        kl=policy.kl(base),
    )


def gold_reward(responses: Responses, scores_BH: FloatArray) -> FloatArray:
    """Reward of a healthy run: gold."""
    return gold(responses)
