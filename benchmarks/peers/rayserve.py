"""Ray Serve with `@serve.batch`, the same forward as `plain`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from benchmarks.peers.install import same_libraries
from benchmarks.peers.record import Launch, Peer, rewards, script, texts_body


def _quiet(launch: Launch) -> Mapping[str, str]:
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


PEER = Peer(
    name="ray",
    requirements=(*same_libraries(), "ray[serve]==2.60.0"),
    command=partial(script, "on_ray"),
    path="/score",
    body=texts_body,
    scores=rewards,
    ready="/-/healthz",
    extras=_quiet,
)
