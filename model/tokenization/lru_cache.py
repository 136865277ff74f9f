"""LRU cache bounded by the sizes of its values. Knows nothing of keys and values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The most recently used values; the sum of their sizes is at most `max_size`. Thread-safe."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._size = 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, which becomes the most recently used; None where there is none."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Store a value, and evict the least recently used ones. One larger than `max_size` only replaces the old value by none."""
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self._size -= old[1]
            if size > self._max_size:
                return
            self._kept[key] = value, size
            self._size += size
            while self._size > self._max_size:
                _, (_, freed) = self._kept.popitem(last=False)
                self._size -= freed
