"""The loop: from an alert to a better model, a step a line, with the next command or click."""

from __future__ import annotations

from typing import Any

from rewardserve.service.api.routes.review_access import Review
from rewardserve.service.console.pages.home import RunRow
from rewardserve.service.console.parts import Console
from rewardserve.service.review.agreement import Agreement

WANTED_LABELS = 300
"""Labels of a round, as in docs/how-to/counterexamples.md."""


def view(console: Console, rows: list[RunRow], review: Review | None, agreed: Agreement | None) -> dict[str, Any]:
    """The variables of the page."""
    alerted = [row for row in rows if row.colour in ("red", "amber")]
    status = console.active_models.admin().status
    return {
        "alerted": alerted,
        "capture": review.capture if review is not None else None,
        "agreement": agreed,
        "wanted": WANTED_LABELS,
        "database": review.store.name if review is not None else None,
        "deployment": status,
    }
