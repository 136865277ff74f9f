"""Keys of token rows as bytes: in sorted order, rows with a common prefix are neighbours. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct

ID_BYTES = 4
"""Bytes of an id in a key."""


def row_key(ids: Sequence[int]) -> bytes:
    """The ids of a row as little-endian 32-bit words, so that common prefixes of rows are common prefixes of bytes."""
    return _pack_of(len(ids))(*ids)


@lru_cache(maxsize=4096)
def _pack_of(n_ids: int) -> Callable[..., bytes]:
    """Packing function for a number of ids; cached, because creating it takes as long as using it."""
    return Struct(f"<{n_ids}I").pack


def common_prefix_length(a: bytes, b: bytes) -> int:
    """Number of ids in the common prefix of two keys; a bisection, because comparing slices is one call of memcmp."""
    same, most = 0, min(len(a), len(b)) // ID_BYTES
    while same < most:
        middle = (same + most + 1) // 2
        start, end = same * ID_BYTES, middle * ID_BYTES
        if a[start:end] == b[start:end]:
            same = middle
        else:
            most = middle - 1
    return same
