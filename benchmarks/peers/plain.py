"""FastAPI and transformers like OpenRLHF's `serve_rm`, the reward server of most trainers today."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.install import same_libraries
from benchmarks.peers.record import Peer, rewards, script, texts_body

PEER = Peer(
    name="plain",
    requirements=(*same_libraries(), "fastapi", "uvicorn[standard]"),
    command=partial(script, "plain"),
    path="/get_reward",
    body=texts_body,
    scores=rewards,
)
