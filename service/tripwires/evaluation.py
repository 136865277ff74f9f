"""Evaluate every wire on the sums of a run, and the votes of all. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewardserve.service.tripwires.alert import VOTE, Alert, Severity
from rewardserve.service.tripwires.run_state import MonitorLimits, Run
from rewardserve.service.tripwires.statistics import MAX_WINDOWS, MIN_AUDITED, RELATIVE, RunSnapshot
from rewardserve.service.tripwires.strata import Stratum, audit_gap_growth, mixed_baseline
from rewardserve.service.tripwires.wires import Wire


class WireEvaluator:
    """Evaluator of the wires of runs. Stateless: statistics and alerts belong to the runs."""

    def __init__(self, limits: MonitorLimits, wires: Sequence[Wire]) -> None:
        self._limits = limits
        self._wires = wires

    def evaluate(self, run: Run, now: float) -> list[Alert]:
        """Evaluate every wire on all samples, then on each task by itself, and the votes of each."""
        statistics = self._statistics(self._snapshot(run))
        tasks = dict.fromkeys(statistics, "")
        votes, voting_task = self._votes(statistics), ""
        for each in _comparable(run):
            of_task = self._statistics_of_task(run, each, statistics)
            if (n := self._votes(of_task)) > votes:
                votes, voting_task = n, each.task
            for name, statistic in of_task.items():
                if name not in statistics or statistic > statistics[name]:
                    statistics[name], tasks[name] = statistic, each.task
        run.statistics = {**statistics, VOTE: votes}
        alerts = [
            self._trip(run, wire.name, wire.severity, wire.threshold, now, tasks[wire.name])
            for wire in self._wires
            if statistics.get(wire.name, wire.threshold) > wire.threshold
        ]
        if votes >= self._limits.votes_for_a_page:
            alerts.append(self._trip(run, VOTE, "page", self._limits.votes_for_a_page, now, voting_task))
        return [alert for alert in alerts if alert is not None]

    def _snapshot(self, run: Run) -> RunSnapshot:
        """The snapshot of all samples; sets the baseline of the run."""
        strata = [each for each in run.strata.values() if each.has_baseline]
        compared = run.compared
        if len(run.strata) == 1 and strata:
            run.baseline = strata[0].baseline
        elif strata:
            run.baseline = mixed_baseline(strata, run.run_wide)
        return RunSnapshot(
            run.smooth,
            run.baseline,
            (len(run.honeypots), sum(run.honeypots)),
            run.kl,
            self._limits.window,
            run.audit_drift.e_value if run.audit_drift.start is not None else None,
            run.audit_drift.divergence(),
            compared,
            audit_gap_growth(strata, min(MIN_AUDITED, MAX_WINDOWS * self._limits.window)),
            run.n_windows,
            run.prompts.n_changes,
            run.attributed,
        )

    def _statistics(self, snapshot: RunSnapshot) -> dict[str, float]:
        return {w.name: s for w in self._wires if (s := w.statistic(snapshot)) is not None}

    def _statistics_of_task(self, run: Run, stratum: Stratum, of_all: Mapping[str, float]) -> dict[str, float]:
        """The statistics of one task: those that compare with a baseline. The others are those of all samples."""
        snapshot = RunSnapshot(stratum.smooth, stratum.baseline, window=self._limits.window)
        relative = {w.name: w.statistic(snapshot) for w in self._wires if isinstance(w.statistic, RELATIVE)}
        others = {name: statistic for name, statistic in of_all.items() if name not in relative}
        return others | {name: statistic for name, statistic in relative.items() if statistic is not None}

    def _votes(self, statistics: Mapping[str, float]) -> float:
        return float(sum(wire.weight(statistics.get(wire.name)) for wire in self._wires))

    def _trip(self, run: Run, wire: str, severity: Severity, threshold: float, now: float, task: str) -> Alert | None:
        """Activate the alert of a wire and return it; None where it is active already."""
        if wire in run.alerts:
            return None
        evidence = tuple(run.wire_evidence.get(wire) or run.recent_evidence)
        alert = Alert(wire, severity, run.statistics[wire], threshold, run.step, evidence, task)
        run.activate(alert, now)
        return alert


def _comparable(run: Run) -> list[Stratum]:
    """The tasks that are compared by themselves too; none where all samples are of one."""
    return [each for each in run.strata.values() if each.is_comparable] if len(run.strata) > 1 else []
