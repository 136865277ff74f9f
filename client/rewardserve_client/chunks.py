"""Many samples -> requests of bounded size, one home server each. Pure.

Samples of one group stay together as long as one request can hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rewardserve_client.routing import Order, order_of
from rewardserve_client.samples import Item


class Chunk(NamedTuple):
    """What one request asks for, and the servers to ask, best first."""

    order: Order
    items: tuple[Item, ...]


def chunks_of(
    items: Sequence[Item], urls: Sequence[str], is_available: Callable[[str], bool], *, max_weight: int, max_bytes: int
) -> list[Chunk]:
    """Every item in exactly one chunk. While a server is down its groups are planned for the next of their own."""
    groups: dict[bytes, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    homes: dict[str, list[tuple[Order, list[Item]]]] = {}
    for group, members in groups.items():
        order = order_of(group, urls)
        home = next(filter(is_available, order), order[0])
        homes.setdefault(home, []).append((order, members))
    return [chunk for each in homes.values() for chunk in _packed(each, max_weight, max_bytes)]


def halves(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Two parts, neither empty: between two groups, as near to the middle as there is such a place."""
    middle = len(items) // 2
    boundaries = [i for i in range(1, len(items)) if items[i - 1].group != items[i].group]
    cut = min(boundaries, key=lambda i: abs(i - middle), default=middle)
    return tuple(items[:cut]), tuple(items[cut:])


def _packed(groups: Iterable[tuple[Order, list[Item]]], max_weight: int, max_bytes: int) -> Iterator[Chunk]:
    """In the order of the groups. A new chunk begins where the next group would not fit whole."""
    order: Order = ()
    packed: list[Item] = []
    for group_order, members in groups:
        for part in _parts(members, max_weight, max_bytes):
            if packed and not _fits([*packed, *part], max_weight, max_bytes):
                yield Chunk(order, tuple(packed))
                packed = []
            order = order if packed else group_order
            packed.extend(part)
    if packed:
        yield Chunk(order, tuple(packed))


def _parts(members: Sequence[Item], max_weight: int, max_bytes: int) -> Iterator[list[Item]]:
    """A group as it is, or in pieces where it is too large for one request. One item is never cut."""
    part: list[Item] = []
    for item in members:
        if part and not _fits([*part, item], max_weight, max_bytes):
            yield part
            part = []
        part.append(item)
    yield part


def _fits(items: Sequence[Item], max_weight: int, max_bytes: int) -> bool:
    return sum(i.weight for i in items) <= max_weight and sum(len(i.json) + 1 for i in items) <= max_bytes
