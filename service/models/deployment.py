"""The deployment state: the model in service, those on standby, and the pins of runs. Pure.

A model is identified by its version: the number that it got when this process loaded it. Every step returns a new state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rewardserve.service.inference.shadow import ShadowComparison

ModelState = Literal["serving", "standby", "shadow"]

_MAX_HISTORY = 32
"""Limit of versions in the history for rollbacks."""


@dataclass(frozen=True, slots=True)
class Source:
    """Model to load: one model, or several as `name=model,name=model`; without either, the default model."""

    model: str = ""
    ensemble: str = ""

    def __str__(self) -> str:
        """The model as an operator would write it."""
        return self.ensemble or self.model or "the default model"


@dataclass(frozen=True, slots=True)
class LoadStatus:
    """A model that is being loaded, with the time at which its load began."""

    source: str
    since: str


@dataclass(frozen=True, slots=True)
class RefusedLoad:
    """The latest model that could not be loaded, with the reason and the time."""

    source: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model in memory."""

    version: int
    state: ModelState
    source: str
    name: str
    contract: str
    calibration: str | None
    pipeline: str
    snapshot: str
    loaded_at: str
    requests_in_flight: int
    pinned_runs: tuple[str, ...]
    shadow: ShadowComparison | None


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """The reply of `GET /admin/models`."""

    serving: int
    previous: int | None
    loading: LoadStatus | None
    refused: RefusedLoad | None
    models: tuple[ModelStatus, ...]
    pins: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """`history` are the versions that were in service, the current one last. `standby` are loaded and get no
    requests but those of the runs in `pins`; the one that left service last is first. `shadow` scores beside the service.
    """

    history: tuple[int, ...]
    standby: tuple[int, ...] = ()
    shadow: int | None = None
    pins: Mapping[str, int] = field(default_factory=dict)

    @property
    def serving(self) -> int:
        """The version that answers requests that name no other."""
        return self.history[-1]

    @property
    def previous(self) -> int | None:
        """The version that a rollback goes to; it may be unloaded."""
        return self.history[-2] if len(self.history) > 1 else None

    @property
    def loaded(self) -> tuple[int, ...]:
        """All versions that are in memory, the one in service first."""
        return (self.serving, *self.standby, *(() if self.shadow is None else (self.shadow,)))

    def state_of(self, version: int) -> ModelState:
        """Role of a loaded version."""
        return "serving" if version == self.serving else "shadow" if version == self.shadow else "standby"

    def pinned_to(self, version: int) -> tuple[str, ...]:
        """The runs that are pinned to this version."""
        return tuple(run for run, pinned_version in self.pins.items() if pinned_version == version)

    def with_shadow(self, version: int) -> DeploymentState:
        """Make a newly loaded version the shadow, in place of the previous one."""
        return replace(self, shadow=version)

    def without_shadow(self) -> DeploymentState:
        """Remove the shadow."""
        return replace(self, shadow=None)

    def activated(self, version: int) -> DeploymentState:
        """Activate a loaded version; the previous one goes on standby."""
        if version == self.serving:
            return self
        return replace(self._after_activation(version), history=(*self.history, version)[-_MAX_HISTORY:])

    def rolled_back(self, version: int) -> DeploymentState:
        """Go back in the history. `version` is the current number of the previous model: another one if it was loaded again."""
        return replace(self._after_activation(version), history=(*self.history[:-2], version))

    def _after_activation(self, version: int) -> DeploymentState:
        standby = (self.serving, *(each for each in self.standby if each != version))
        return replace(self, standby=standby, shadow=None if version == self.shadow else self.shadow)

    def pinned(self, runs: Mapping[str, int]) -> DeploymentState:
        """Pin these runs to these versions, independently of the version in service."""
        return replace(self, pins={**self.pins, **runs})

    def unpinned(self, run: str) -> DeploymentState:
        """Remove the pin of a run."""
        return replace(self, pins={each: version for each, version in self.pins.items() if each != run})

    def to_unload(self, keep: int) -> tuple[int, ...]:
        """Versions to unload: those beyond the `keep` that left service last, and without a pinned run."""
        free = [version for version in self.standby if not self.pinned_to(version)]
        return tuple(free[keep:])

    def without(self, version: int) -> DeploymentState:
        """Remove a standby."""
        return replace(self, standby=tuple(each for each in self.standby if each != version))
