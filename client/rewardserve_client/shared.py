"""One client per process, created from the environment at its first use, for adapters that a trainer loads by path.

A forked child creates a new client. The asynchronous client keeps separate connections for every event loop.
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
    """Return the blocking client. Raise `Misconfigured` if the environment names no server."""
    pid = os.getpid()
    with _lock:
        if pid not in _clients:
            _clients[pid] = RewardClient(deadline_s=deadline_from())
        return _clients[pid]


def async_client() -> AsyncRewardClient:
    """Return the asynchronous client. Raise `Misconfigured` if the environment names no server."""
    pid = os.getpid()
    with _lock:
        if pid not in _async_clients:
            _async_clients[pid] = AsyncRewardClient(deadline_s=deadline_from())
        return _async_clients[pid]


def close_clients() -> None:
    """Close the clients; the next call reads the environment again. Asynchronous connections end with their event loop."""
    with _lock:
        old = _clients.pop(os.getpid(), None)
        _async_clients.pop(os.getpid(), None)
    if old is not None:
        old.close()


def _new_lock() -> None:
    global _lock  # another thread may have held it at the fork
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)
