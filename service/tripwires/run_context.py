"""The training run of a request. A pure record, passed from the API through scoring to the trip wires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class UnnamedClient(NamedTuple):
    """A client that sends samples without a run: the address of its connection, and its user agent with the route."""

    address: str
    detail: str


RunName = str | UnnamedClient | None
"""Name of a run, or the client that sends it where it has none. None: neither is known."""


class RunContext(NamedTuple):
    """The run as its client gives it. `kl`: of the policy from its start, in nats. `ids` and `tasks`: of the samples; None for one
    without, empty where no sample has one.

    `owner`: the name of the API key, "" without keys; `is_bound`: that key may send certain runs only.
    `client`: of samples without a run.
    """

    run: str | None = None
    step: int | None = None
    kl: float | None = None
    ids: Sequence[str | None] = ()
    owner: str = ""
    is_bound: bool = False
    tasks: Sequence[str | None] = ()
    client: UnnamedClient | None = None

    @property
    def name(self) -> RunName:
        """The run, for the monitor."""
        return self.run or self.client
