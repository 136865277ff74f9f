"""From raw scores to the reward: a pure pipeline of stages. Standard library only."""

from model.reward.members import COMBINATIONS, How
from model.reward.pipeline import Opinion, Pipeline, PipelineError, build_pipeline
from model.reward.record import Batch, Reward, repetition
from model.reward.settings import SHAPES, CombineSettings, PenaltySettings, RewardSettings, Shape

__all__ = [
    "COMBINATIONS",
    "SHAPES",
    "Batch",
    "CombineSettings",
    "How",
    "Opinion",
    "PenaltySettings",
    "Pipeline",
    "PipelineError",
    "Reward",
    "RewardSettings",
    "Shape",
    "build_pipeline",
    "repetition",
]
