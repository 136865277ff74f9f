"""The resources that all models of a process share: admission, metrics, run monitor, CPU budget, audit judge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rewardserve.model.traits import Lexicon
from rewardserve.service.admission import Admission
from rewardserve.service.clock import Clock
from rewardserve.service.inference.policy_client import PolicyClient, PolicyLimits
from rewardserve.service.models.audit_judge import LoadedJudge, start_judge
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.observability.tripwire_report import TripwireReport
from rewardserve.service.review.policy import CapturePolicy
from rewardserve.service.review.writer import CaptureWriter
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.baseline import BaselineSource, LearnedBaselines
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.honeypots import Honeypots
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.attribution import Attribution
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.evidence import EvidenceStore
from rewardserve.service.tripwires.io.run_texts import RunTexts
from rewardserve.service.tripwires.io.state_keeper import StateKeeper
from rewardserve.service.tripwires.io.webhook import Webhook
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits


class Capture(NamedTuple):
    """Which samples are written to the review store, and their writer."""

    policy: CapturePolicy
    writer: CaptureWriter


@dataclass(frozen=True, slots=True)
class SharedResources:
    """The resources that all models of a process share, however many are loaded. `judge`: one that the settings name; a judge
    beside a model belongs to that model's runtime.
    """

    settings: ModelSettings
    admission: Admission
    metrics: Metrics
    clock: Clock
    monitor: RunMonitor
    tripwire_events: TripwireReport
    alert_sender: AlertSender
    cpu_budget: CpuBudget
    lexicon: Lexicon
    honeypots: Honeypots | None = None
    evidence_store: EvidenceStore | None = None
    judge: AuditJudge | None = None
    attribution: Attribution | None = None
    scorer_timeout_s: float = 0.0
    learned: LearnedBaselines | None = None
    state_keeper: StateKeeper | None = None
    capture: Capture | None = None
    policy: PolicyClient | None = None

    async def close(self) -> None:
        """Close all parts that run, after the last model has stopped, and save the state of runs."""
        if self.attribution is not None:
            await self.attribution.stop()
        if self.judge is not None:
            await self.judge.stop()
        if self.evidence_store is not None:
            self.evidence_store.close()
        if self.policy is not None:
            await self.policy.close()
        await self.save_state()

    async def save_state(self) -> None:
        """Save the state of runs for the last time."""
        if self.state_keeper is not None:
            await self.state_keeper.stop()


def create_shared_resources(
    settings: ModelSettings,
    admission: Admission,
    metrics: Metrics,
    clock: Clock,
    webhook: Webhook | None = None,
    audit: LoadedJudge | None = None,
    scorer_timeout_s: float = 0.0,
    state_folder: Path | None = None,
    own_judge: LoadedJudge | None = None,
    capture: Capture | None = None,
) -> SharedResources:
    """Create the shared resources, once per process. `scorer_timeout_s` 0: a forward may take any time. `state_folder` is for the
    state of runs, and belongs to this process alone. `own_judge` lies beside the first model, where `audit` is None.

    Raise `SettingsError`.
    """
    config = settings.wire_config()
    limits = MonitorLimits(
        window=settings.tripwires.window,
        votes_for_a_page=config.votes_for_a_page,
        ended_s=settings.tripwires.run_ends_s,
        blocks=frozenset(config.block),
    )
    monitor = RunMonitor(BaselineSource(), limits, config.wires)
    metrics.watch_runs(monitor, clock)
    events = TripwireReport(metrics)
    attribution, cpu_budget = None, CpuBudget(settings.tripwires.cpu_share, clock.now())
    if settings.tripwires.attribution and settings.tripwires.cpu_share > 0.0:
        attribution = Attribution(monitor, RunTexts(), clock, cpu_budget, events)
    sender = AlertSender(monitor, events, webhook, holds=state_folder is not None)
    honeypots, learned, state_keeper = settings.read_honeypots(), None, None
    if state_folder is not None:
        learned = LearnedBaselines()
        digest = _settings_digest(limits, audit or own_judge, settings, honeypots)
        state_keeper = StateKeeper(state_folder, monitor, sender, learned, digest, clock, events)
    texts = attribution.texts if attribution is not None else None
    judge = start_judge(settings, audit, clock, monitor, events, texts) if audit is not None else None
    if attribution is not None and judge is not None:
        attribution.judge = judge.edit_scorer
    return SharedResources(
        settings,
        admission,
        metrics,
        clock,
        monitor,
        events,
        sender,
        cpu_budget,
        settings.read_lexicon(),
        honeypots,
        _build_evidence_store(settings, events),
        judge,
        attribution,
        scorer_timeout_s,
        learned,
        state_keeper,
        capture,
        _create_policy(settings, metrics),
    )


def _create_policy(settings: ModelSettings, metrics: Metrics) -> PolicyClient | None:
    asked = settings.lookahead
    if not asked.policy_url:
        return None
    limits = PolicyLimits(asked.timeout_s, asked.max_tokens, asked.max_bytes, asked.max_requests)
    return PolicyClient(asked.policy_url, asked.policy_model, limits, metrics, key=settings.read_policy_key())


def _settings_digest(
    limits: MonitorLimits, judge: LoadedJudge | None, settings: ModelSettings, honeypots: Honeypots | None
) -> str:
    """The digest of all that statistics depend on besides the numbers of samples: windows, audit judge, honeypots."""
    audited_by = None if judge is None else (judge.loaded.contract.digest, judge.loaded.calibration_digest)
    audits = settings.audit_model, audited_by, settings.tripwires.audit_share
    planted = None if honeypots is None else sorted(honeypots.by_prompt)
    parts = limits.window, limits.smoothing, limits.warm_up, audits, planted
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _build_evidence_store(settings: ModelSettings, events: TripwireReport) -> EvidenceStore | None:
    folder = settings.tripwires.evidence_dir
    return EvidenceStore(folder, events) if folder else None
