"""The training run of a request. A pure record, passed from the API through scoring to the trip wires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class RunContext(NamedTuple):
    """The run as its client gives it. `kl`: of the policy from its start, in nats. `ids` and `tasks`: of the samples; None for one
    without, empty where no sample has one.

    `owner`: the name of the API key, "" without keys; `is_bound`: that key may send certain runs only.
    """

    run: str | None = None
    step: int | None = None
    kl: float | None = None
    ids: Sequence[str | None] = ()
    owner: str = ""
    is_bound: bool = False
    tasks: Sequence[str | None] = ()
