"""Pipelines over one head called `score`, as most tests want them."""

from __future__ import annotations

from model.reward import Opinion, RewardSettings, build_pipeline


def sole(calibration, heads=(("score", 1.0),)):
    """One opinion: a model with these heads."""
    return [Opinion("model", tuple(heads), calibration)]


def pipeline_of(calibration, **settings):
    """The pipeline of one model."""
    return build_pipeline(sole(calibration), RewardSettings(**settings))


def reward_of(pipeline, raw, **columns):
    """What becomes of one raw score."""
    return pipeline.one({"score": raw}, **columns)
