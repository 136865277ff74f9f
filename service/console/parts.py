"""The parts of the server that the pages of the console show."""

from __future__ import annotations

from dataclasses import dataclass

from rewardserve.service.api.routes.review_access import Review
from rewardserve.service.clock import Clock
from rewardserve.service.console.session import Sessions
from rewardserve.service.models.active_models import ActiveModels


@dataclass(frozen=True, slots=True)
class Console:
    """The parts of one server. `review` None: it has no review store."""

    active_models: ActiveModels
    review: Review | None
    sessions: Sessions
    clock: Clock
    version: str
    started_at: float
