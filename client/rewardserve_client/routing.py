"""Which server a prompt belongs to, by rendezvous hashing. Pure; the same in every process and on every machine.

Every server gets a weight for every prompt, and the heaviest is its home (Thaler & Ravishankar 1998, highest random
weight). A server more takes over only the prompts that it is heaviest for; nothing else moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

Order = tuple[str, ...]


def order_of(group: bytes, urls: Sequence[str]) -> Order:
    """All servers, home first, then those to turn to when the ones before do not answer."""
    if len(urls) == 1:
        return tuple(urls)
    return tuple(sorted(urls, key=lambda url: (_weight(group, url), url), reverse=True))


def _weight(group: bytes, url: str) -> bytes:
    # Keyed by the server, so that no choice of group can stand for another pair of group and server.
    return blake2b(group, digest_size=8, key=blake2b(url.encode(), digest_size=16).digest()).digest()
