"""Watch all runs: O(1) a run, a bounded number of runs.

Samples are added to sums; when a window is full, its sums are smoothed (`windows`), and every wire is evaluated on them
(`evaluation`). An alert stays active until an operator acknowledges it. `run_table` bounds the runs. Pure: the time is passed in,
and no reward changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from rewardserve.service.tripwires.alert import CANARY, VOTE, Alert
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.evaluation import WireEvaluator
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_context import RunName
from rewardserve.service.tripwires.run_state import MonitorLimits, Run
from rewardserve.service.tripwires.run_table import CANARIES, RunTable
from rewardserve.service.tripwires.windows import WindowCounter
from rewardserve.service.tripwires.wires import WIRES, Wire

CANARY_THRESHOLD = 1.0
"""Multiples of the change of a score that kernels and batches may cause."""


class RunMonitor:
    """Monitor of all runs. Belongs to one event loop. `baseline_source` is for runs whose model is not given.

    `alerts_revision` grows with each alert and each acknowledgement.
    """

    def __init__(self, baseline_source: BaselineSource, limits: MonitorLimits, wires: Sequence[Wire] = WIRES) -> None:
        self.baseline_source = baseline_source
        self._limits = limits
        self.wires = tuple(wires)
        self.n_over_limit = 0
        self.n_inspected = 0
        self.n_skipped = 0
        self.alerts_revision = 0
        self._table = RunTable(limits)
        self._evaluator = WireEvaluator(limits, self.wires)
        self._counter = WindowCounter(limits, self._evaluator)

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of every wire, of the vote, and of the canaries."""
        known = {wire.name: wire.threshold for wire in self.wires}
        return {**known, VOTE: float(self._limits.votes_for_a_page), CANARY: CANARY_THRESHOLD}

    @property
    def runs(self) -> dict[str, Run]:
        """Runs by label, the one with the oldest latest sample first."""
        return dict(self._table.runs)

    @property
    def archived(self) -> dict[str, Run]:
        """Blocked runs whose state was evicted: their alerts and counters."""
        return dict(self._table.archived)

    def set_baseline_source(self, name: RunName, baseline_source: BaselineSource, now: float, owner: str = "") -> None:
        """Set the model that scores this run from now on. For another model a new baseline is learned; alerts stay."""
        run = self._table.current(name, owner, now)
        if run is not None and run.baseline_source is not baseline_source:
            run.change_model(baseline_source, now)
            run.revision += 1

    def observe(
        self,
        name: RunName,
        step: int | None,
        samples: Sequence[SampleFeatures],
        now: float,
        kl: float | None = None,
        source: BaselineSource | None = None,
        owner: str = "",
        prompts: Mapping[int, str] = MappingProxyType({}),
    ) -> list[Alert]:
        """Count the new samples of one request. Return the alerts that they raised. `prompts`: the given text of prompts by their
        hash, of samples without a task.

        Samples of another model than the run has now are left out: they were in flight when the model was replaced.
        """
        run = self._table.open(name, owner, now, source or self.baseline_source)
        if source is not None and run.baseline_source is not source:
            return []
        run.revision += 1
        run.step = step if step is not None else run.step
        run.kl = kl if kl is not None else run.kl
        new = self._counter.new_samples(run, samples)
        run.history.add(step, new, kl)
        if self._table.is_over_limit(name, owner):
            self.n_over_limit += len(new)
        alerts = self._counter.count(run, new, now, prompts)
        self.alerts_revision += len(alerts)
        return alerts

    def add_skipped(self, name: RunName, n: int, owner: str = "") -> None:
        """Count samples that are not inspected. A run without any inspected sample has no state to count them in."""
        self.n_skipped += n
        run = self._table.runs.get(self._table.label_of(name, owner))
        if run is not None:
            run.n_skipped += n
            run.revision += 1

    def add_audit(
        self,
        name: RunName,
        prompt_hash: int,
        score: float,
        audit: float,
        now: float,
        owner: str = "",
        task: str = "",
        source: BaselineSource | None = None,
    ) -> None:
        """Count the score of one sample, and that of the audit judge. A score of another model than the run has is left out."""
        run = self._table.open(name, owner, now, source or self.baseline_source)
        if source is None or run.baseline_source is source:
            run.revision += 1
            run.history.add_gap(score - audit)
            self._counter.count_audit(run, prompt_hash, PromptMeans(score, audit, task))

    def audits_every_prompt(self, name: RunName, owner: str = "") -> bool:
        """Whether a response to every prompt of this run is audited: to learn the start, or to decide about a divergence."""
        run = self._table.runs.get(self._table.label_of(name, owner))
        return run is None or run.audit_drift.wants_every_prompt

    def add_attributed(
        self, label: str, statistics: Mapping[str, float], now: float, source: BaselineSource
    ) -> list[Alert]:
        """Set the statistics of a periodic report of attribution, by wire. Return the alerts that they raised.

        None of a run that is forgotten, or has another model than that of the report by now.
        """
        run = self._table.runs.get(label)
        if run is None or run.baseline_source is not source or not (run.has_baseline and run.is_watched):
            return []
        run.attributed.update(statistics)
        run.revision += 1
        alerts = self._evaluator.evaluate(run, now)
        self.alerts_revision += len(alerts)
        return alerts

    def add_sample_ids(self, name: RunName, ids: Iterable[tuple[int, int]], now: float, owner: str = "") -> None:
        """Count ids, and those that stand for several samples. `ids`: the hash of each id, with the hash of its sample."""
        run = self._table.open(name, owner, now, self.baseline_source)
        run.revision += 1
        self._counter.count_ids(run, ids)

    def blocked_by(self, name: RunName, owner: str = "", *, is_bound: bool = False) -> str | None:
        """The wire whose active alert blocks this run, or every run.

        `is_bound`: the owner may send certain runs only. Then samples without a run, and unknown runs, are refused while any
        run of the owner is blocked: they would circumvent the block.
        """
        blocks = self._limits.blocks
        if not blocks:
            return None
        table = self._table
        runs = [table.runs[CANARIES]] if CANARIES in table.runs else []
        own = table.known(name, owner)
        if own is not None:
            runs.append(own)
        if is_bound and (own is None or not own.name):
            runs += [run for run in (*table.runs.values(), *table.archived.values()) if run.owner == owner]
        return next((wire for run in runs for wire in run.alerts if wire in blocks), None)

    def label_of(self, name: RunName, owner: str = "") -> str:
        """The label of a run; `other` where there are too many runs."""
        return self._table.label_of(name, owner)

    def evidence_of(self, label: str) -> set[str]:
        """The evidence that a future alert of this run could name. At most `limits.evidence` per wire."""
        run = self._table.runs.get(label)
        if run is None:
            return set()
        return {each for named in (run.recent_evidence, *run.wire_evidence.values()) for each in named}

    def has_ended(self, label: str, now: float) -> bool:
        """Whether this run has sent no samples for `ended_s`. Canaries are no run."""
        run = self._table.runs.get(label)
        return label != CANARIES and (run is None or now - run.seen_at > self._limits.ended_s)

    def report(self, label: str, alert: Alert, now: float) -> bool:
        """Activate an alert about a reserved label. Return whether it was not active already."""
        run = self._table.open_reserved(label, now, self.baseline_source)
        if alert.wire in run.alerts:
            return False
        run.statistics[alert.wire] = alert.statistic
        run.activate(alert, now)
        run.revision += 1
        self.alerts_revision += 1
        return True

    def restore(self, label: str, run: Run, now: float, *, is_archived: bool) -> None:
        """Put back a run of an earlier process, without alerts of wires that are off now."""
        run.alerts = {wire: active for wire, active in run.alerts.items() if wire in self.thresholds}
        self._table.restore(label, run, now, is_archived=is_archived)

    def acknowledge(self, label: str, wire: str) -> bool:
        """Acknowledge an alert, so that the wire can trip again on later samples. Return whether it was active."""
        run = self._table.find(label)
        if run is None or run.alerts.pop(wire, None) is None:
            return False
        run.restart_statistics(wire)
        run.revision += 1
        self.alerts_revision += 1
        self._table.delete_unblocked(label)
        return True
