"""Which samples are captured. Pure, standard library only: settings read it."""

from __future__ import annotations

from typing import NamedTuple

FILE_NAME = "review.db"
"""File of the review store beside the state of runs."""


class CapturePolicy(NamedTuple):
    """Which samples are captured. `share`: of the prompts, with all their responses.

    Where capture is on, flagged samples are captured too, and at an alert the texts that attribution keeps of its run.
    """

    is_on: bool = False
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> CapturePolicy:
        """Read `off`, `flagged` or `share:0.01`. Raise ValueError with a remedy."""
        kind, separator, number = text.strip().partition(":")
        if not separator and kind in ("off", "flagged"):
            return cls(kind == "flagged")
        try:
            share = float(number) if kind == "share" else -1.0
        except ValueError:
            share = -1.0
        if not 0.0 < share <= 1.0:
            raise ValueError(
                f"{text!r} is none of off, flagged, and share:P with P above 0 and at most 1, such as share:0.01"
            )
        return cls(True, share)

    def __str__(self) -> str:
        if not self.is_on:
            return "off"
        return f"share:{self.share:g}" if self.share else "flagged"
