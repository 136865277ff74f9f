"""Definition of a peer: how to install and start it, its request format and its reply format. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Text = str | list[int]
"""One rendered conversation, or its token ids."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Parameters of a start command. `python` is the one of the peer's environment."""

    python: Path
    model: Path
    port: int
    threads: int
    home: Path

    @property
    def scripts(self) -> Path:
        """Folder of the commands of that environment."""
        return self.python.parent


def _nothing(launch: Launch) -> None:
    """No preparation."""


def _no_extras(launch: Launch) -> Mapping[str, str]:
    """Return no additional variables."""
    return {}


@dataclass(frozen=True, slots=True)
class Peer:
    """One server. Empty `requirements`: it runs in the environment of this project.

    `prepare` runs before each start, `finish` once after the installation. `takes_ids`: whether the server accepts token
    ids.
    """

    name: str
    requirements: tuple[str, ...]
    command: Callable[[Launch], Sequence[str | Path]]
    path: str
    body: Callable[[Sequence[Text]], Any]
    scores: Callable[[Any], list[float]]
    ready: str = "/health"
    takes_ids: bool = True
    prepare: Callable[[Launch], None] = _nothing
    finish: Callable[[Path], None] | None = None
    extras: Callable[[Launch], Mapping[str, str]] = _no_extras
    unset: tuple[str, ...] = field(default=())


def script(name: str, launch: Launch) -> list[str | Path]:
    """Start command of a server of `benchmarks.peers.servers`."""
    module = f"benchmarks.peers.servers.{name}"
    return [launch.python, "-m", module, "--model", launch.model, "--port", str(launch.port)]


def texts_body(texts: Sequence[Text]) -> dict[str, Any]:
    """Request body for the servers of `benchmarks.peers.servers`, in OpenRLHF's format."""
    return {"query": list(texts)}


def rewards(reply: Any) -> list[float]:
    """Rewards in their reply."""
    return [float(r) for r in reply["rewards"]]
