"""What a server is to this benchmark: how it is installed, started, asked and read. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Text = str | list[int]
"""One rendered conversation, or its token ids."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a start command is made of. `python` is the one of the peer's own environment."""

    python: Path
    model: Path
    port: int
    threads: int
    home: Path

    @property
    def scripts(self) -> Path:
        """Where the commands of that environment are."""
        return self.python.parent


def _nothing(launch: Launch) -> None:
    """No preparation."""


def _no_extras(launch: Launch) -> Mapping[str, str]:
    """No variables beyond everybody's."""
    return {}


@dataclass(frozen=True, slots=True)
class Peer:
    """One server. `requirements` empty: it runs in the environment of this project.

    `prepare` runs before each start, `finish` once after the installation. `takes_ids`: whether token ids can be sent.
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
    """How a server of `benchmarks.peers.servers` is started."""
    module = f"benchmarks.peers.servers.{name}"
    return [launch.python, "-m", module, "--model", launch.model, "--port", str(launch.port)]


def texts_body(texts: Sequence[Text]) -> dict[str, Any]:
    """What the servers of `benchmarks.peers.servers` are sent, in OpenRLHF's words."""
    return {"query": list(texts)}


def rewards(reply: Any) -> list[float]:
    """What they answer."""
    return [float(r) for r in reply["rewards"]]
