"""Pipelines over one head called `score`, as most tests want them."""

from __future__ import annotations

from rewardserve.model.reward import Opinion, RewardSettings, build_pipeline
from rewardserve.model.traits import Lexicon
from rewardserve.service.tripwires.board import Board, BoardLimits
from rewardserve.service.tripwires.reference import Reference, Yardstick
from rewardserve.service.watch import Allowance, Watch


def sole(calibration, heads=(("score", 1.0),)):
    """One opinion: a model with these heads."""
    return [Opinion("model", tuple(heads), calibration)]


def pipeline_of(calibration, **settings):
    """The pipeline of one model."""
    return build_pipeline(sole(calibration), RewardSettings(**settings))


def reward_of(pipeline, raw, **columns):
    """What becomes of one raw score."""
    return pipeline.one({"score": raw}, **columns)


def watching(clock, reference=None, *, share=1.0, found=None, **limits):
    """Eyes on every sample. Findings go to `found`, as (run, finding)."""
    yardstick = Yardstick(reference or Reference())
    board = Board(yardstick, BoardLimits(**limits))
    tell = (lambda *each: found.append(each)) if found is not None else (lambda *_: None)
    return Watch(board, yardstick, Lexicon.read(), clock, tell, allowance=Allowance(share, clock.now()))
