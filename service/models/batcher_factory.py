"""Create the batcher of a loaded model from the settings."""

from __future__ import annotations

from rewardserve.model.backends import LoadedModel
from rewardserve.service.clock import Clock
from rewardserve.service.inference.batch_size import BUDGETS, BatchSizeController
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.events import InferenceEvents
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.inference.watchdog import Watchdog
from rewardserve.service.settings import ModelSettings

INITIAL_BUDGETS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a batch by device, until forwards have been measured; for a scorer that streams, always."""
MAX_BATCH_TOKENS = BUDGETS[-1]


def create_batcher(
    settings: ModelSettings,
    loaded: LoadedModel,
    clock: Clock,
    events: InferenceEvents,
    version: int,
    watchdog: Watchdog | None = None,
) -> Batcher:
    """Create the batcher of a loaded model; its budget is fixed where the settings have one, or where the scorer streams."""
    fixed, first = settings.batching.max_tokens, _initial_budget(loaded.identity.device)
    keeps_budget = bool(fixed) or loaded.scorer.streams
    return Batcher(
        loaded.scorer,
        BatchLimits(fixed or MAX_BATCH_TOKENS, settings.batching.linger_ms / 1000, target_tokens=fixed or first),
        clock,
        events,
        batch_size=None if keeps_budget else BatchSizeController.starting_at(first),
        cache=ScoreCache(settings.cache.scores, version),
        watchdog=watchdog,
    )


def _initial_budget(device: str) -> int:
    return INITIAL_BUDGETS.get(device.partition(":")[0], INITIAL_BUDGETS["cpu"])
