"""RewardServe, as `make serve` starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.record import Launch, Peer, Text


def _command(launch: Launch) -> list[str | Path]:
    place = ["--host", "127.0.0.1", "--port", str(launch.port)]
    return [launch.python, "-m", "rewardserve", "serve", launch.model, *place, "--log-level", "warning"]


def _body(texts: Sequence[Text]) -> dict[str, Any]:
    return {"samples": [{"text": t} if isinstance(t, str) else {"input_ids": t} for t in texts]}


def _scores(reply: Any) -> list[float]:
    return [float(result["raw"]) for result in reply["results"]]


PEER = Peer(
    name="ours",
    requirements=(),
    command=_command,
    path="/score",
    body=_body,
    scores=_scores,
    ready="/readyz",
)
