"""Split the samples of a call into requests of bounded size, one preferred server each. Pure.

Samples of one group stay together as long as one request can hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rewardserve_client.routing import Order, order_of
from rewardserve_client.samples import Item


class Chunk(NamedTuple):
    """Items of one request, and the servers to try in order."""

    order: Order
    items: tuple[Item, ...]


def chunks_of(
    items: Sequence[Item], urls: Sequence[str], is_available: Callable[[str], bool], *, max_weight: int, max_bytes: int
) -> list[Chunk]:
    """Assign every item to exactly one chunk. A group whose server is down goes to the next server of its order."""
    groups: dict[bytes, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    by_server: dict[str, list[tuple[Order, list[Item]]]] = {}
    for group, members in groups.items():
        order = order_of(group, urls)
        preferred = next(filter(is_available, order), order[0])
        by_server.setdefault(preferred, []).append((order, members))
    return [chunk for each in by_server.values() for chunk in _packed(each, max_weight, max_bytes)]


def halves(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split into two non-empty parts, between two groups if possible, as near to the middle as possible."""
    middle = len(items) // 2
    boundaries = [i for i in range(1, len(items)) if items[i - 1].group != items[i].group]
    cut = min(boundaries, key=lambda i: abs(i - middle), default=middle)
    return tuple(items[:cut]), tuple(items[cut:])


def _packed(groups: Iterable[tuple[Order, list[Item]]], max_weight: int, max_bytes: int) -> Iterator[Chunk]:
    """Pack in the order of the groups. A new chunk begins where the next group would not fit whole."""
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
    """Yield the group whole, or in parts where it exceeds one request. A single item is never cut."""
    part: list[Item] = []
    for item in members:
        if part and not _fits([*part, item], max_weight, max_bytes):
            yield part
            part = []
        part.append(item)
    yield part


def _fits(items: Sequence[Item], max_weight: int, max_bytes: int) -> bool:
    return sum(i.weight for i in items) <= max_weight and sum(len(i.json) + 1 for i in items) <= max_bytes
