"""Start of a monitored run: the base policy, the reward models of its seed, and the data of its calibrations.

The same for runs within one process and for runs through a server, so that both optimise the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gym.labeller import PLANTED
from gym.policy import Policy, base_policy
from gym.proxy import MultiModelScorer, seed_models
from gym.responses import Responses
from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import EnsembleMember, Pipeline, RewardSettings, build_pipeline
from rewardserve.model.scorer import HeadScores, TokenBatch

N_REFERENCE: Final = 4_000


@dataclass(frozen=True)
class RunSetup:
    """`reference` are responses of the base policy, `heads` their raw scores."""

    base: Policy
    models: MultiModelScorer
    reference: Responses
    heads: tuple[HeadScores, ...]

    def calibration(self, name: str) -> Calibration:
        """Mean and deviation of one head over the reference."""
        raw = np.array([scores[name] for scores in self.heads])
        return Calibration(mean=float(raw.mean()), std=float(raw.std()), n=len(raw))

    def pipeline(self, name: str) -> Pipeline:
        """Pipeline that only standardises the raw scores of one head."""
        return build_pipeline(
            [EnsembleMember(name, ((name, 1.0),), self.calibration(name))], RewardSettings(shape="none")
        )


def set_up_run(seed: int, bias: str) -> RunSetup:
    """Create the setup of one seed, for the labeller with this bias of `PLANTED`."""
    base = base_policy()
    models = seed_models(base, seed, PLANTED[bias])
    reference = base.sample(np.random.default_rng([seed, 99]), np.arange(N_REFERENCE))
    return RunSetup(base, models, reference, score_responses(models, reference))


def score_responses(models: MultiModelScorer, responses: Responses) -> tuple[HeadScores, ...]:
    """Score as in requests: ragged ids in, named scores out."""
    return models.score(TokenBatch(responses.rows())).rows
