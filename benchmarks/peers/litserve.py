"""LitServe: its batching over requests, the same forward as `plain`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.install import same_libraries
from benchmarks.peers.record import Peer, rewards, script, texts_body

PEER = Peer(
    name="litserve",
    requirements=(*same_libraries(), "litserve==0.2.19"),
    command=partial(script, "lit"),
    path="/predict",
    body=texts_body,
    scores=rewards,
)
