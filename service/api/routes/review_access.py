"""What the routes of `/review` share: the store of the server, its errors, and which runs a key may see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from rewardserve.service.auth.api_keys import RunPermissions
from rewardserve.service.errors import ReviewOff, ReviewUnavailable, RunNotAllowed
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.writer import CaptureWriter, Store

_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Review:
    """The review store of a server. `capture`: which samples it gets, in the words of the setting."""

    store: Store
    writer: CaptureWriter
    capture: str


def store_of(review: Review | None) -> Review:
    """The review store. Raise `ReviewOff` where the server has none."""
    if review is None:
        raise ReviewOff("this server has no review store: set REWARD_CAPTURE to flagged, or to share:0.01")
    return review


@contextmanager
def store_errors() -> Iterator[None]:
    """Reply with a failure of the store. Its message may name the host of the database, so only the log has it."""
    try:
        yield
    except ReviewStoreError:
        raise ReviewUnavailable("the review store cannot be read or written: see the log of the server") from None


def permissions_of(request: Request) -> RunPermissions | None:
    """The runs of the key of a request; None on a server without keys."""
    found: RunPermissions | None = request.scope["state"].get("permissions")
    return found


def may_see(request: Request, run: str) -> bool:
    """Whether the key of a request is bound to no runs, or to this one."""
    permissions = permissions_of(request)
    return permissions is None or permissions.may_see(run)


def allowed_run(request: Request, run: str) -> str:
    """The run, if the key of the request may see it. Raise `RunNotAllowed`."""
    if not may_see(request, run):
        raise RunNotAllowed("this key is bound to other runs")
    return run


def number_of(text: str) -> int:
    """The number of a record of the store; 0, which no record has, for a text that is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0


def annotator_of(request: Request) -> str:
    """The name by which labels of this client are stored: that of its key, or `local` on a server without keys."""
    return str(request.scope["state"].get("key", "local"))
