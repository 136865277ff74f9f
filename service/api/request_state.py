"""Fields that a route sets in the state of its request, for the request log and the idempotency store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import Request

from rewardserve.service.scoring import ComparisonResult, SampleResult


def set_log_fields(request: Request, **fields: Any) -> None:
    """Set fields of the request's line in the request log."""
    request.scope["state"]["log_fields"] = fields


def is_admin(request: Request) -> bool:
    """Whether the client may read texts of runs: it has a key with the scope admin, or a server without keys trusts it."""
    return bool(request.scope["state"].get("is_admin"))


def set_is_final(request: Request, results: Iterable[SampleResult | ComparisonResult]) -> None:
    """Record whether the reply may be replayed for the same idempotency key, which needs all failures in it to be final."""
    request.scope["state"]["is_final"] = all(r.failure is None or r.failure.is_final for r in results)
