"""Lists whose elements lie in a temporary file, and views of lists, so that data larger than memory can be trained on.

An element is read when it is asked for. Plain reads, no memory map: mapped pages count as memory of the process. The file has
no name, so that it goes with the process however that ends. Knows nothing of items or tokens.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TypeVar, overload

import numpy as np

T = TypeVar("T")
_BUFFER = 2**20
"""Bytes that are written at once."""


class LazyList(Sequence[T]):
    """A sequence that computes or reads an element each time it is asked for; a slice is a view."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The element at a place from 0 on."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """The element at a place, or a view."""
        if isinstance(place, slice):
            return View(self, np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.at(place % len(self))

    def __iter__(self) -> Iterator[T]:
        """The elements in order."""
        return map(self.at, range(len(self)))


class DiskList(LazyList[T]):
    """Elements in a temporary file, in the folder of `TMPDIR`; they can be appended."""

    def __init__(self, elements: Iterable[T] = ()) -> None:
        self._file, path = tempfile.mkstemp(prefix="rewardserve-")
        os.unlink(path)
        weakref.finalize(self, os.close, self._file)
        self._ends = array("q", [0])
        self._unwritten = bytearray()
        for element in elements:
            self.append(element)

    def append(self, element: T) -> None:
        """Add an element at the end."""
        data = pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL)
        self._unwritten += data
        self._ends.append(self._ends[-1] + len(data))
        if len(self._unwritten) > _BUFFER:
            self._write()

    def __len__(self) -> int:
        """Number of elements."""
        return len(self._ends) - 1

    def at(self, place: int) -> T:
        """Read an element."""
        if self._unwritten:
            self._write()
        first, last = self._ends[place], self._ends[place + 1]
        element: T = pickle.loads(os.pread(self._file, last - first, first))
        return element

    def _write(self) -> None:
        while self._unwritten:
            n = os.write(self._file, self._unwritten)  # a signal or a full disk may cut it short
            del self._unwritten[:n]


class View(LazyList[T]):
    """Elements of another list by their places."""

    def __init__(self, source: Sequence[T], places: Sequence[int] | np.ndarray) -> None:
        self._source: Sequence[T] = source
        self._places_N = np.asarray(places, dtype=np.int64)

    def __len__(self) -> int:
        """Number of elements."""
        return len(self._places_N)

    def at(self, place: int) -> T:
        """The element of the other list."""
        return self._source[int(self._places_N[place])]


class Joined(LazyList[T]):
    """Lists one after the other."""

    def __init__(self, parts: Iterable[Sequence[T]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = [0, *accumulate(map(len, self._parts))]

    def __len__(self) -> int:
        """Number of elements."""
        return self._starts[-1]

    def at(self, place: int) -> T:
        """The element of its part."""
        part = bisect_right(self._starts, place) - 1
        return self._parts[part][place - self._starts[part]]


class NumberRows(LazyList[tuple[int, ...]]):
    """Tuples of whole numbers, in two arrays."""

    def __init__(self, numbers_K: np.ndarray, ends_N: np.ndarray) -> None:
        self.numbers_K, self._ends_N = numbers_K, ends_N

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> NumberRows:
        """Copy rows."""
        numbers, ends = array("i"), array("q")
        for row in rows:
            numbers.extend(row)
            ends.append(len(numbers))
        return cls(np.array(numbers, dtype=np.int32), np.array(ends, dtype=np.int64))

    def renumbered(self, used_K: np.ndarray) -> NumberRows:
        """Places of the numbers among `used_K`, which are sorted and have all of them."""
        return NumberRows(np.searchsorted(used_K, self.numbers_K).astype(np.int32), self._ends_N)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ends_N)

    def at(self, place: int) -> tuple[int, ...]:
        """One row."""
        first = self._ends_N[place - 1] if place else 0
        return tuple(self.numbers_K[first : self._ends_N[place]].tolist())


def is_lazy(elements: Sequence[T]) -> bool:
    """Whether the elements are not in memory."""
    return isinstance(elements, LazyList)


def picked(elements: Sequence[T], places: Sequence[int] | np.ndarray) -> Sequence[T]:
    """The elements at these places: a tuple, or a view of a lazy list."""
    return View(elements, places) if is_lazy(elements) else tuple(elements[int(place)] for place in places)


def concatenated(*parts: Sequence[T]) -> Sequence[T]:
    """All elements: a tuple, or a lazy list if a part is one."""
    return Joined(parts) if any(map(is_lazy, parts)) else tuple(chain.from_iterable(parts))
