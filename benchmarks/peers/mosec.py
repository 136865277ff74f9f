"""mosec: HTTP front end in Rust, its batching over requests, the same forward as `plain`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from benchmarks.peers.install import same_libraries
from benchmarks.peers.record import Launch, Peer, rewards, script, texts_body


def _place(launch: Launch) -> Mapping[str, str]:
    # Its default of 3 s leads to status 408 under load.
    return {"MOSEC_PORT": str(launch.port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_TIMEOUT": "600000"}


PEER = Peer(
    name="mosec",
    requirements=(*same_libraries(), "mosec==0.9.8"),
    command=partial(script, "mos"),
    path="/inference",
    body=texts_body,
    scores=rewards,
    ready="/metrics",
    extras=_place,
)
