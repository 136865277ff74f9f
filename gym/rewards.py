"""Reward models of the gym as input of the reward pipeline, and the pipeline as the reward of a run.

Calibrations are fitted by the trainer's code, on responses of the base policy and on held-out pairs of the same
labeller; the stages are those of the service. Independent of gold and of the policy.

`B` responses, `H` heads, `N` reference responses, `P` held-out pairs, `T` traits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gym.features import traits_of
from gym.labeller import PLANTED, Biases, LabelledPairs, pairs
from gym.policy import Policy
from gym.proxy import MultiModelScorer
from gym.responses import FloatArray, Responses
from gym.training import RewardOf
from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import EnsembleMember, Pipeline, RewardBatch
from rewardserve.model.traits import Lexicon
from rewardserve.training.evaluation import calibrate

N_REFERENCE: Final = 4_000
N_HELD_OUT: Final = 2_000


@dataclass(frozen=True)
class CalibrationData:
    """Data for calibrations: responses of the base policy, their traits, and held-out pairs."""

    responses: Responses
    traits_NT: FloatArray
    lexicon: str
    held_out: LabelledPairs


def calibration_data(base: Policy, biases: Biases = PLANTED["human"], n: int = N_REFERENCE) -> CalibrationData:
    """Calibration data for all seeds, so that seeds differ in the reward model alone."""
    rng = np.random.default_rng(0)
    responses = base.sample(rng, np.zeros(n, dtype=np.int64))
    lexicon = Lexicon.read()
    traits_NT = np.array(traits_of(responses, lexicon))
    return CalibrationData(responses, traits_NT, lexicon.version, pairs(base, N_HELD_OUT, biases, rng))


@dataclass(frozen=True)
class RewardModels:
    """Scorer over several reward models, and the ensemble members that the pipeline makes of their heads."""

    models: MultiModelScorer
    ensemble_members: tuple[EnsembleMember, ...]


def one_model(models: MultiModelScorer, against: CalibrationData) -> RewardModels:
    """One ensemble member of all heads; its raw score is the mean of its normalised heads."""
    return RewardModels(models, (ensemble_member("reward", models, against),))


def several_models(models: MultiModelScorer, against: CalibrationData) -> RewardModels:
    """One ensemble member per reward model."""
    return RewardModels(
        models, tuple(ensemble_member(name, MultiModelScorer({name: m}), against) for name, m in models.models.items())
    )


def ensemble_member(name: str, models: MultiModelScorer, against: CalibrationData) -> EnsembleMember:
    """Ensemble member of one model with its calibration. The raw score of a single head is the score of that head."""
    scores_NH = models.scores_BH(against.responses)
    n_heads = len(models.heads)
    weights_H = (1.0,) if n_heads == 1 else calibrate.head_weights(scores_NH, [1.0 / n_heads] * n_heads)
    return EnsembleMember(
        name, tuple(zip(models.heads, weights_H, strict=True)), _calibration(models, scores_NH, weights_H, against)
    )


def _calibration(
    models: MultiModelScorer, scores_NH: FloatArray, weights_H: tuple[float, ...], against: CalibrationData
) -> Calibration:
    """Fit the calibration as `rewardserve calibrate` does."""
    labelled, responses = against.held_out, against.responses
    won_P1 = np.where(labelled.left_won_N, 1.0, -1.0)[:, None]
    diff_PH = won_P1 * (models.scores_BH(labelled.left) - models.scores_BH(labelled.right))
    held_out = calibrate.HeldOut(
        raw_N=scores_NH @ np.asarray(weights_H),
        tokens_N=(responses.lengths_B + responses.ended_B).astype(np.float64),
        diff_P=diff_PH @ np.asarray(weights_H),
        head_names=models.heads,
        heads_NH=scores_NH,
        head_diffs=[*diff_PH.T],
        traits_NT=against.traits_NT,
        lexicon=against.lexicon,
    )
    return calibrate.fit(held_out, data_digest="gym")


def pipeline_reward(pipeline: Pipeline, heads: tuple[str, ...]) -> RewardOf:
    """Reward of a run: the service's rewards for the same raw scores, with frozen references."""
    return lambda responses, scores_BH: np.array([r.value for r in pipeline(batch_of(responses, scores_BH, heads))])


def batch_of(responses: Responses, scores_BH: FloatArray, heads: tuple[str, ...]) -> RewardBatch:
    """Columns for a pipeline, without the repetition: a stage that reads it fails."""
    return RewardBatch(
        heads=[dict(zip(heads, row, strict=True)) for row in scores_BH.tolist()],
        lengths=(responses.lengths_B + responses.ended_B).tolist(),
        missing_end=(~responses.ended_B).tolist(),
        references=[()] * len(responses),
    )
