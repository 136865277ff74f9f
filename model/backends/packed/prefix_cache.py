"""Cache of keys and values of repeated prefixes, carried from one batch to the next, in a bounded number of bytes.

A prefix is cached when it has been seen twice: in several rows of one batch, or in a row of this batch and one of an earlier
batch. So a prompt costs no memory until it is repeated, and a row without a common prefix never costs any.
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
"""Tokens. A shorter prefix is cheaper to compute than to cache."""

_REMEMBERED_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """A prefix of some rows, and its keys and values for each layer."""

    key: bytes
    layers: tuple[KeysAndValues, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the key, the keys and the values."""
        return len(self.key) + int(sum(k.nbytes + v.nbytes for k, v in self.layers))


class PrefixCache:
    """LRU cache of prefixes. Not thread-safe.

    Keys and values differ between `length_class`es (see `LengthClasses`), so nothing is shared between classes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[int, bytes], CachedPrefix] = OrderedDict()
        self._sorted: defaultdict[int, list[bytes]] = defaultdict(list)
        self._seen: defaultdict[int, list[bytes]] = defaultdict(list)
        self._seen_order: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        """Number of cached prefixes."""
        return len(self._kept)

    def find(self, key: bytes, length_class: int = 0) -> tuple[CachedPrefix, int] | None:
        """The cached prefix with the longest match to this row, and the tokens of the match: at most all but one of the row."""
        best, most = _nearest(self._sorted[length_class], key)
        most = min(most, len(key) // ID_BYTES - 1)
        if best is None or most < MIN_PREFIX_TOKENS:
            return None
        self._kept.move_to_end((length_class, best))
        return self._kept[length_class, best], most

    def observe(self, key: bytes, length_class: int = 0) -> int:
        """Remember the row, and return the length of its longest common prefix with an earlier row, in tokens."""
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
        """Cache a prefix in place of those that it begins with, and evict the least recently used beyond the limit."""
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
        """Evict a prefix, if it is cached."""
        if (cached_prefix := self._kept.pop((length_class, key), None)) is not None:
            self.n_bytes -= cached_prefix.n_bytes
            del self._sorted[length_class][bisect_left(self._sorted[length_class], key)]

    def clear(self) -> None:
        """Evict everything, and forget the rows that were seen."""
        self._kept.clear()
        self._sorted.clear()
        self._seen.clear()
        self._seen_order.clear()
        self.n_bytes = 0


def _nearest(keys: Sequence[bytes], key: bytes) -> tuple[bytes | None, int]:
    """The one of sorted keys with the longest common prefix with `key`, which is one of its two neighbours."""
    at = bisect_left(keys, key)
    best, most = None, 0
    for other in keys[max(0, at - 1) : at + 1]:
        n = common_prefix_length(other, key)
        if n > most:
            best, most = other, n
    return best, most
