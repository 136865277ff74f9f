"""Spread the bits of a hash, so that its parts can draw. Pure."""

from __future__ import annotations

_FACTOR, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def spread(key: int) -> int:
    """A number from 0 to 2**64 - 1 by Fibonacci hashing (Knuth, "The Art of Computer Programming" 3, section 6.4)."""
    return key * _FACTOR & _MASK
