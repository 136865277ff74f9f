"""Which samples are captured. Pure, standard library only: settings read it."""

from __future__ import annotations

from typing import NamedTuple

FILE_NAME = "review.db"
"""File of the review store beside the state of runs."""

_MIX, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1
"""Fibonacci hashing (Knuth, "The Art of Computer Programming" 3, section 6.4)."""


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

    def draws(self, prompt: int) -> bool:
        """Whether all samples of the prompt with this hash are captured."""
        return (prompt * _MIX & _MASK) < self.share * 2.0**64
