"""Reward pipeline: pure stages from raw scores to the reward. Standard library only."""

from rewardserve.model.reward.lookahead import LookaheadReward, combine_lookahead
from rewardserve.model.reward.members import CombineMethod, sigmoid
from rewardserve.model.reward.pipeline import EnsembleMember, Pipeline, PipelineError, build_pipeline, check_settings
from rewardserve.model.reward.record import Reward, RewardBatch, repetition
from rewardserve.model.reward.settings import CombineSettings, PenaltySettings, RewardSettings, Shape

__all__ = [
    "CombineMethod",
    "CombineSettings",
    "EnsembleMember",
    "LookaheadReward",
    "PenaltySettings",
    "Pipeline",
    "PipelineError",
    "Reward",
    "RewardBatch",
    "RewardSettings",
    "Shape",
    "build_pipeline",
    "check_settings",
    "combine_lookahead",
    "repetition",
    "sigmoid",
]
