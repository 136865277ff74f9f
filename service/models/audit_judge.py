"""Load the audit judge and start it: one by name for all models, or the one that lies beside each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewardserve.model.backends import LoadedModel, LoadError, load
from rewardserve.model.backends.audit_judge import find_audit_judge
from rewardserve.model.reward import RewardSettings, build_pipeline
from rewardserve.service.clock import Clock
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.outcomes import BatchResult
from rewardserve.service.inference.watchdog import ScorerState
from rewardserve.service.models.batcher_factory import create_batcher
from rewardserve.service.observability import logs
from rewardserve.service.settings import AUTO_AUDIT_MODEL, ModelSettings
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.canaries import CanarySet
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.run_texts import RunTexts
from rewardserve.service.tripwires.run_monitor import RunMonitor

_NO_VERSION = 0
"""Model version of the audit judge, which serves no requests."""


class AuditJudgeError(LoadError):
    """The audit judge cannot be served; the message names it and the setting."""


@dataclass(frozen=True, slots=True)
class LoadedJudge:
    """A loaded audit judge that is not started. `canary_margins`: its raw scores of honest answers above those of exploits."""

    loaded: LoadedModel
    canary_margins: Mapping[str, float] = field(default_factory=dict)


def load_named_judge(settings: ModelSettings) -> LoadedJudge | None:
    """Load the judge that the settings name, for all models. None: they name none, or the one beside each model.

    Raise `AuditJudgeError`.
    """
    if settings.audit_model in ("", AUTO_AUDIT_MODEL):
        return None
    return _load(settings, settings.audit_model)


def load_own_judge(settings: ModelSettings) -> LoadedJudge | None:
    """Load the judge that lies beside the model, where the settings ask for it and there is one. Raise `AuditJudgeError`."""
    if settings.audit_model != AUTO_AUDIT_MODEL or settings.ensemble or settings.backend == "echo":
        return None
    folder = find_audit_judge(settings.model)
    return None if folder is None else _load(settings, str(folder))


def _load(settings: ModelSettings, model: str) -> LoadedJudge:
    try:
        audit = load(settings.backend, settings.model_spec(model))
    except LoadError as error:
        beside = f": {model}, beside the model," if model != settings.audit_model else ""
        raise AuditJudgeError(
            f"REWARD_AUDIT_MODEL={settings.audit_model}{beside} cannot be served as the audit judge: {error}"
        ) from error
    try:
        if audit.calibration is None:
            raise AuditJudgeError(
                f"the audit judge {model} has no fitted statistics, so its scores cannot be compared with those of another model. "
                "Fit them with `rewardserve calibrate`."
            )
        return LoadedJudge(audit, _canary_margins(settings, audit))
    except BaseException:
        audit.scorer.close()
        raise


def _canary_margins(settings: ModelSettings, audit: LoadedModel) -> dict[str, float]:
    """Score the canaries once, before the judge has a batcher. Takes a forward; a backend without weights has none."""
    known = settings.read_canaries() if audit.identity.n_parameters else []
    canaries = CanarySet(known, audit.encode, audit.identity, tolerance=1.0)
    canaries.score_first(audit.scorer)
    return {each.name: each.margin for each in canaries.first}


def start_judge(
    settings: ModelSettings,
    judge: LoadedJudge,
    clock: Clock,
    monitor: RunMonitor,
    events: TripwireEvents,
    texts: RunTexts | None,
) -> AuditJudge:
    """Start a loaded judge, with its own batcher. Needs a running event loop."""
    audit = judge.loaded
    audit_report = _AuditReport(logs.logger("audit"))
    batcher = create_batcher(settings, audit, clock, audit_report, _NO_VERSION)
    batcher.start()
    return AuditJudge(
        audit.scorer,
        EncodePool(audit.encode, 1, audit_report),
        batcher,
        build_pipeline(audit.ensemble_members, RewardSettings(shape="none")),
        share=settings.tripwires.audit_share,
        block=settings.tripwires.window,
        monitor=monitor,
        clock=clock,
        events=events,
        texts=texts,
        description=describe_judge(audit),
        canary_margins=judge.canary_margins,
    )


def describe_judge(audit: LoadedModel) -> dict[str, Any]:
    """The fields that identify a judge, for `GET /model` and the log."""
    identity = audit.identity
    return {"name": identity.name, "n_parameters": identity.n_parameters, "contract": audit.contract.digest}


@dataclass(frozen=True, slots=True)
class _AuditReport:
    """Receiver of events that logs the failures of the audit judge; its batches are not counted."""

    log: logs.Logger

    def on_batch(self, result: BatchResult) -> None:
        if result.outcome != "ok":
            self.log.error(f"batch_{result.outcome}", rows=result.n_rows, tokens=result.n_tokens)

    def on_scorer_state(self, state: ScorerState) -> None:
        self.log.error("scorer_state", state=state)

    def on_encode_bug(self, error: BaseException) -> None:
        self.log.error("encoder_bug", exc_info=error)
