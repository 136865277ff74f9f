"""From a raw score to the reward: a pure pipeline of stages. Standard library only."""

from model.reward.pipeline import Pipeline, PipelineError, RewardSettings, build_pipeline
from model.reward.record import Reward

__all__ = ["Pipeline", "PipelineError", "Reward", "RewardSettings", "build_pipeline"]
