"""Keys and values of beginnings that come again, carried from one batch to the next, in a bounded number of bytes.

A beginning is kept when it has been seen twice: by several rows of one batch, or by a row of this batch and one of
those before. So a prompt costs no memory until somebody returns to it, and a row that nobody resembles costs none ever.
Knows keys (see `rewardserve.model.common_prefix`) and tensors, no network.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from rewardserve.model.backends.allocator import copy_to_own_pages
from rewardserve.model.backends.packed.attention import KeysAndValues
from rewardserve.model.common_prefix import ID_BYTES, common_prefix_length

MIN_PREFIX_TOKENS = 32
"""Tokens. A shorter beginning is cheaper to compute than to look after."""

_REMEMBERED_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The first tokens of some rows, and for each layer their keys and values."""

    key: bytes
    layers: tuple[KeysAndValues, ...]

    @property
    def n_bytes(self) -> int:
        """What it holds."""
        return len(self.key) + int(sum(k.nbytes + v.nbytes for k, v in self.layers))


class PrefixCache:
    """The least recently used one goes first. Belongs to one thread.

    Keys of different `length_class`es (see `LengthClasses`) are of different numbers: nothing is shared between classes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[int, bytes], CachedPrefix] = OrderedDict()
        self._sorted: defaultdict[int, list[bytes]] = defaultdict(list)
        self._seen: defaultdict[int, list[bytes]] = defaultdict(list)
        self._seen_order: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        """How many beginnings are kept."""
        return len(self._kept)

    def find(self, key: bytes, length_class: int = 0) -> tuple[CachedPrefix, int] | None:
        """The kept beginning that has most in common with this row, and how many tokens; at least one is left over."""
        best, most = _nearest(self._sorted[length_class], key)
        most = min(most, len(key) // ID_BYTES - 1)
        if best is None or most < MIN_PREFIX_TOKENS:
            return None
        self._kept.move_to_end((length_class, best))
        return self._kept[length_class, best], most

    def observe(self, key: bytes, length_class: int = 0) -> int:
        """How many tokens this row begins with as some earlier row did; remembers the row."""
        seen = self._seen[length_class]
        _, n = _nearest(seen, key)
        at = bisect_left(seen, key)
        if not (at < len(seen) and seen[at] == key):
            seen.insert(at, key)
            self._seen_order.append((length_class, key))
            if len(self._seen_order) > _REMEMBERED_ROWS:
                its_class, oldest = self._seen_order.popleft()
                del self._seen[its_class][bisect_left(self._seen[its_class], oldest)]
        return n

    def keep(self, key: bytes, layers: Sequence[KeysAndValues], length_class: int = 0) -> None:
        """Keep a beginning, in place of those that are the beginning of it, and let go of what is then too much."""
        if (length_class, key) in self._kept or CachedPrefix(key, tuple(layers)).n_bytes > self.max_bytes:
            return
        copies = iter(copy_to_own_pages([x for layer in layers for x in layer]))
        cached_prefix = CachedPrefix(key, tuple(zip(copies, copies, strict=True)))
        kept = self._sorted[length_class]
        at = bisect_left(kept, key)
        while at > 0 and key.startswith(kept[at - 1]):
            at -= 1
            self.drop(kept[at], length_class)
        insort(kept, key)
        self._kept[length_class, key] = cached_prefix
        self.n_bytes += cached_prefix.n_bytes
        while self.n_bytes > self.max_bytes:
            oldest_class, oldest = next(iter(self._kept))
            self.drop(oldest, oldest_class)

    def drop(self, key: bytes, length_class: int = 0) -> None:
        """Let go of a beginning, if it is kept."""
        if (cached_prefix := self._kept.pop((length_class, key), None)) is not None:
            self.n_bytes -= cached_prefix.n_bytes
            del self._sorted[length_class][bisect_left(self._sorted[length_class], key)]

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._sorted.clear()
        self._seen.clear()
        self._seen_order.clear()
        self.n_bytes = 0


def _nearest(keys: Sequence[bytes], key: bytes) -> tuple[bytes | None, int]:
    """Of sorted keys, the one that has most in common with `key` is one of its two neighbours."""
    at = bisect_left(keys, key)
    best, most = None, 0
    for other in keys[max(0, at - 1) : at + 1]:
        n = common_prefix_length(other, key)
        if n > most:
            best, most = other, n
    return best, most
