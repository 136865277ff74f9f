"""Score samples with one model after the other, each loaded and freed in turn."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardserve.model.backends import LoadError
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.conversation import Sample
from rewardserve.model.default import DEFAULT_MODEL
from rewardserve.model.reward import PipelineError
from rewardserve.service.offline.score_file import load_model, open_scoring, progress_bar, score_windows
from rewardserve.service.settings import ModelSettings

_READ_CHECKPOINTS = ("torch", "vllm")
"""Backends whose models are checkpoints in a folder or on the hub."""


class NotServable(Exception):
    """One of the models cannot be served: `which` names it, `reason` is the error."""

    def __init__(self, which: str, model: str, reason: Exception) -> None:
        super().__init__(str(reason))
        self.which = f"{which} ({model or DEFAULT_MODEL})"
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Scores:
    """The raw scores of one model, NaN for a response without one, and the number of failures by code."""

    model: str
    contract: str
    raw: tuple[float, ...]
    failed: Mapping[str, int]


def find_model(which: str, model: str, settings: ModelSettings) -> None:
    """Find the folder of a model, or download it. Raise `NotServable`."""
    if settings.backend in _READ_CHECKPOINTS and model not in ("", DEFAULT_MODEL):
        from rewardserve.model.checkpoint import CheckpointError
        from rewardserve.model.checkpoint.reading import resolve

        try:
            resolve(model, allow_pickle=settings.allow_pickle)
        except CheckpointError as error:
            raise NotServable(which, model, error) from error


def score_samples(settings: ModelSettings, which: str, model: str, samples: Sequence[Sample]) -> Scores:
    """Score samples with one model, which is freed afterwards. Raise `NotServable` or `RequestRefused`."""
    of_model = settings.model_copy(update={"model": model, "ensemble": ""})
    try:
        loaded, pipeline = load_model(of_model)
    except (LoadError, PipelineError, CalibrationError) as error:
        raise NotServable(which, model, error) from error

    async def score_all() -> Scores:
        with progress_bar() as progress:
            bar = progress.add_task(loaded.identity.name, total=len(samples))
            async with open_scoring(of_model, loaded, pipeline) as scoring:
                scored = []
                async for results in score_windows(scoring, samples):
                    scored += results
                    progress.advance(bar, len(results))
        raw = tuple(math.nan if each.reward is None else each.reward.raw for each in scored)
        failed = Counter(each.failure.code for each in scored if each.failure is not None)
        return Scores(model, loaded.contract.digest, raw, failed)

    return asyncio.run(score_all())
