"""What the routes may serve from right now: nothing yet, one loaded model or several, or none because all is being closed.

Written by `app`, read by the routes. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol
from urllib.parse import quote

from rewardserve.model.backends import LoadedModel
from rewardserve.model.reward import Pipeline
from rewardserve.service.errors import DigestNotServed, Loading, ShuttingDown, VersionGone
from rewardserve.service.inference.numeric_noise import NumericNoise
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.watchdog import ScorerState
from rewardserve.service.models.deployment import Overview, Source
from rewardserve.service.scoring import Scoring
from rewardserve.service.tripwires.io.canaries import CanaryResult
from rewardserve.service.tripwires.io.run_watcher import RunContext
from rewardserve.service.tripwires.run_monitor import RunMonitor


@dataclass(frozen=True, slots=True)
class ResultFields:
    """What a result tells beside its reward: the values of these heads, and what each stage of the pipeline added.

    Whatever else the scorer says of a row is not the caller's business.
    """

    heads: frozenset[str]
    stages: tuple[str, ...]

    @classmethod
    def of(cls, loaded: LoadedModel, pipeline: Pipeline) -> ResultFields:
        """Nothing that the reward, the raw and the normalised score do not say already."""
        names = frozenset(name for name, _ in loaded.identity.heads)
        return cls(names if len(names) > 1 else frozenset(), pipeline.stage_names if pipeline.itemises else ())


@dataclass(frozen=True)  # no slots: they would leave no place for what is computed once
class ServedModel:
    """A model in service. `version` counts the models that this process has loaded.

    `scorer_state` is whether forwards come back, `n_failed_batches` how many batches in a row have failed, once that is alarming.
    `numeric_noise` is by how much a raw score may depend on the rest of its batch; None: not measured.
    """

    loaded: LoadedModel
    scoring: Scoring
    pipeline: Pipeline
    version: int
    numeric_noise: NumericNoise | None
    batching: Callable[[], BatchLimits]
    is_alive: Callable[[], bool]
    scorer_state: Callable[[], ScorerState]
    n_failed_batches: Callable[[], int]
    monitor: RunMonitor
    canaries: Callable[[], Sequence[CanaryResult]]

    @cached_property
    def credits(self) -> dict[str, str | int | None]:
        """Which model said it: a part of every reply. Digests cost as much as a request does, and do not change."""
        calibration = self.loaded.calibration
        return {
            "model": self.loaded.identity.name,
            "model_version": self.version,
            "contract": self.loaded.contract.digest,
            "calibration": None if calibration is None else calibration.digest,
            "pipeline": self.pipeline.digest,
        }

    @cached_property
    def headers(self) -> dict[str, str]:
        """The name (percent-encoded: any name of a folder can be that of a model) and the version, as headers of a reply."""
        name = quote(self.loaded.identity.name, safe=" /:+@,;=()[]!")
        return {"x-model-name": name, "x-model-version": str(self.version)}

    def has(self, digests: Sequence[str]) -> bool:
        """Whether each of these is the digest of its contract, calibration or pipeline."""
        credits = self.credits
        return all(digest in (credits["contract"], credits["calibration"], credits["pipeline"]) for digest in digests)

    @cached_property
    def details(self) -> ResultFields:
        """What its results tell."""
        return ResultFields.of(self.loaded, self.pipeline)


class ModelAdmin(Protocol):
    """What an operator can do with the models of a process; `rewardserve.service.models.registry` does it."""

    @property
    def overview(self) -> Overview:
        """Which are loaded, and what for."""
        ...

    async def load(self, source: Source, *, shadow: float = 0.0, pin: Collection[str] | None = ()) -> int:
        """Load beside the one in service, then switch or compare."""
        ...

    def cancel_load(self) -> None:
        """Give up the load that is going on."""
        ...

    def activate(self, version: int) -> None:
        """Put a loaded model into service."""
        ...

    async def roll_back(self) -> int:
        """Back to the one before."""
        ...

    def retire(self, version: int) -> None:
        """Let go of one that is not in service."""
        ...

    def pin(self, run: str, version: int | None) -> None:
        """Only this model answers the run."""
        ...


class ActiveModels:
    """Empty at first, then `open` with a model, in the end `close`d."""

    def __init__(self) -> None:
        self._served: ServedModel | None = None
        self._models: ModelAdmin | None = None
        self._by_version: Mapping[int, ServedModel] = {}
        self._pins: Mapping[str, int] = {}
        self._is_closing = asyncio.Event()

    def manage(self, models: ModelAdmin) -> None:
        """From now on an operator may change what is served."""
        self._models = models

    def models(self) -> ModelAdmin:
        """Those of this process. Raise `Loading` or `ShuttingDown`."""
        self.served()
        if self._models is None:
            raise Loading("the model is still loading; try again soon", retry_after_s=2.0)
        return self._models

    def open(
        self, served: ServedModel, others: Sequence[ServedModel] = (), pins: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Serve this model from now on, and others to those who ask for one of them. `pins`: versions of runs by name."""
        self._served = served
        self._by_version = {each.version: each for each in (served, *others)}
        self._pins = pins

    def close(self) -> None:
        """Refuse new work from now on."""
        self._is_closing.set()

    async def pause(self, seconds: float) -> None:
        """Return after so long, or at once when this closes."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_closing.wait(), seconds)

    @property
    def _closing(self) -> bool:
        return self._is_closing.is_set()

    @property
    def is_alive(self) -> bool:
        """False once the process cannot serve any more and should be started anew."""
        return self._served is None or self._closing or self._served.is_alive()

    @property
    def is_scorer_dead(self) -> bool:
        """Whether the model in service will never score again. While closing nobody asks any more."""
        if self._served is None or self._closing:
            return False
        return not self._served.loaded.scorer.is_alive or self._served.scorer_state() == "lost"

    def served_for(self, run: str | None, model_digests: Sequence[str] = ()) -> ServedModel:
        """The model that answers a request of this run. Raise as `served`, `DigestNotServed` and `VersionGone`.

        `model_digests` are those, as replies have them, of the one model that the client wants. No request is ever
        answered by a model that its caller or an operator has ruled out.
        """
        served = self.served()
        pinned = None if run is None else self._pins.get(run)
        if pinned is not None:
            if pinned not in self._by_version:
                raise VersionGone("the model that this run is pinned to is not loaded", pinned_version=pinned)
            served = self._by_version[pinned]
        if served.has(model_digests):
            return served
        same = [each for each in self._by_version.values() if each.has(model_digests)]
        if not same or pinned is not None:
            raise DigestNotServed(
                "the model that this request wants to be scored by is not in service; see GET /model",
                model_version=served.version,
            )
        return max(same, key=lambda each: each.version)

    def is_blocked(self, origin: RunContext) -> bool:
        """Whether a trip wire has ended the service of this run."""
        return self._served is not None and self._served.scoring.is_blocked(origin)

    def served(self) -> ServedModel:
        """The model in service. Raise `Loading` or `ShuttingDown`."""
        if self._closing:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if self._served is None:
            raise Loading("the model is still loading; try again soon", retry_after_s=2.0)
        return self._served
