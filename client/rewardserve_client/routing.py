"""Order the servers for a prompt by rendezvous hashing. Pure; the same in every process and on every machine.

Every pair of server and prompt has a weight, and the server with the largest weight is preferred (Thaler & Ravishankar
1998, highest random weight). A new server takes over only the prompts for which its weight is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

Order = tuple[str, ...]


def order_of(group: bytes, urls: Sequence[str]) -> Order:
    """All servers, the preferred one first, then the fallbacks in order."""
    if len(urls) == 1:
        return tuple(urls)
    return tuple(sorted(urls, key=lambda url: (_weight(group, url), url), reverse=True))


def _weight(group: bytes, url: str) -> bytes:
    # Keyed by the server, so that no two pairs of group and server hash the same input.
    return blake2b(group, digest_size=8, key=blake2b(url.encode(), digest_size=16).digest()).digest()
