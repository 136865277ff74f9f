"""One client a process, made from the environment when it is first asked for: for adapters that a trainer loads by path.

A forked child makes its own. The asynchronous one keeps connections of its own for every event loop.
"""

from __future__ import annotations

import os
import threading

from rewardserve_client.asyncclient import AsyncRewardClient
from rewardserve_client.client import RewardClient
from rewardserve_client.configuration import deadline_from

_lock = threading.Lock()
_clients: dict[int, RewardClient] = {}
_async_clients: dict[int, AsyncRewardClient] = {}


def client() -> RewardClient:
    """The blocking one. Raise `Misconfigured` if the environment names no server."""
    with _lock:
        return _clients.setdefault(os.getpid(), _clients.get(os.getpid()) or RewardClient(deadline_s=_deadline_s()))


def async_client() -> AsyncRewardClient:
    """The asynchronous one. Raise `Misconfigured` if the environment names no server."""
    with _lock:
        return _async_clients.setdefault(
            os.getpid(), _async_clients.get(os.getpid()) or AsyncRewardClient(deadline_s=_deadline_s())
        )


def _deadline_s() -> float:
    return deadline_from() or 300.0
