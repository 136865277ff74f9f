"""The models that may answer requests now: none yet, one or several, or none because the server is closing.

Written by `registry` and `app`, read by the routes. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from rewardserve.service.errors import DigestNotServed, Loading, ShuttingDown, VersionGone
from rewardserve.service.models.deployment import DeploymentStatus, Source
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.tripwires.run_context import RunContext


class ModelAdmin(Protocol):
    """Operations on the models of a process; `rewardserve.service.models.registry` implements them."""

    @property
    def status(self) -> DeploymentStatus:
        """The loaded models, and the role of each."""
        ...

    async def load(self, source: Source, *, shadow: float = 0.0, pin: Collection[str] | None = ()) -> int:
        """Load a model beside the one in service, then switch or compare."""
        ...

    def cancel_load(self) -> None:
        """Abort the load in progress."""
        ...

    def activate(self, version: int) -> None:
        """Put a loaded model into service."""
        ...

    async def roll_back(self) -> int:
        """Go back to the previous model."""
        ...

    def retire(self, version: int) -> None:
        """Unload a model that is not in service."""
        ...

    def pin(self, run: str, version: int | None) -> None:
        """Pin a run to this model."""
        ...


class ActiveModels:
    """Models for requests: empty at first, then filled by `set_models`, finally closed by `close`."""

    def __init__(self) -> None:
        self._current: ModelRuntime | None = None
        self._admin: ModelAdmin | None = None
        self._by_version: Mapping[int, ModelRuntime] = {}
        self._pins: Mapping[str, int] = {}
        self._is_closing = asyncio.Event()

    def attach_admin(self, admin: ModelAdmin) -> None:
        """Let operators change the models from now on."""
        self._admin = admin

    def admin(self) -> ModelAdmin:
        """The operations of this process. Raise `Loading` or `ShuttingDown`."""
        self.current()
        if self._admin is None:
            raise Loading("the model is still loading; try again soon", retry_after_s=2.0)
        return self._admin

    def set_models(
        self, current: ModelRuntime, others: Sequence[ModelRuntime] = (), pins: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Serve this model from now on, and others to requests that name one of them. `pins`: versions by the names of runs."""
        self._current = current
        self._by_version = {each.version: each for each in (current, *others)}
        self._pins = pins

    def close(self) -> None:
        """Refuse new requests from now on."""
        self._is_closing.set()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until `close`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_closing.wait(), seconds)

    @property
    def _closing(self) -> bool:
        return self._is_closing.is_set()

    @property
    def is_alive(self) -> bool:
        """False once the process cannot serve any more and should be restarted."""
        return self._current is None or self._closing or self._current.batcher.is_alive

    @property
    def is_scorer_dead(self) -> bool:
        """Whether the model in service will never score again. False while the server is closing."""
        if self._current is None or self._closing:
            return False
        return not self._current.loaded.scorer.is_alive or self._current.batcher.scorer_state == "lost"

    def for_request(self, run: str | None, model_digests: Sequence[str] = ()) -> ModelRuntime:
        """The model that answers a request of this run. Raise as `current`, `DigestNotServed` and `VersionGone`.

        `model_digests` are digests from a reply, of the one model that the client wants. No request is ever
        answered by a model that its client or an operator has ruled out.
        """
        current = self.current()
        pinned = None if run is None else self._pins.get(run)
        if pinned is not None:
            if pinned not in self._by_version:
                raise VersionGone("the model that this run is pinned to is not loaded", pinned_version=pinned)
            current = self._by_version[pinned]
        if current.has(model_digests):
            return current
        same = [each for each in self._by_version.values() if each.has(model_digests)]
        if not same or pinned is not None:
            raise DigestNotServed(
                "the model that this request wants to be scored by is not in service; see GET /model",
                model_version=current.version,
            )
        return max(same, key=lambda each: each.version)

    def with_snapshot(self, snapshot: str) -> ModelRuntime | None:
        """The loaded model with this snapshot: the one in service, else the latest. Raise as `current`."""
        current = self.current()
        same = [each for each in self._by_version.values() if each.snapshot == snapshot]
        return current if current in same else max(same, key=lambda each: each.version, default=None)

    def scores_run(self, runtime: ModelRuntime, run: str | None) -> bool:
        """Whether this model would answer a request for scores of this run."""
        pinned = None if run is None else self._pins.get(run)
        return runtime.version == pinned if pinned is not None else runtime is self._current

    def is_blocked(self, context: RunContext) -> bool:
        """Whether a trip wire blocks this run."""
        return self._current is not None and self._current.scoring.is_blocked(context)

    def current(self) -> ModelRuntime:
        """The model in service. Raise `Loading` or `ShuttingDown`."""
        if self._closing:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if self._current is None:
            raise Loading("the model is still loading; try again soon", retry_after_s=2.0)
        return self._current
