"""Export the state of runs and canaries as metrics: read at a scrape, so nothing is copied while samples are scored.

Alerts need only sums that never fall, and sums over the samples of the baseline: those of all replicas, added up, equal
those of one replica that scored all samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rewardserve.service.clock import Clock
from rewardserve.service.tripwires.baseline import BaselineStat, component
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import Run
from rewardserve.service.tripwires.run_table import OTHER
from rewardserve.service.tripwires.running_sums import COMPONENT_ENTRIES, ENTRIES
from rewardserve.service.tripwires.wires import cause_of


class _Samples:
    """Samples of metrics that share some labels."""

    def __init__(self, rows: list[tuple[str, dict[str, str], float]], **labels: str) -> None:
        self._rows, self._labels = rows, labels

    def add(self, name: str, value: float, **labels: str) -> None:
        """Append one sample of the metric `name`."""
        self._rows.append((name, {**labels, **self._labels}, float(value)))


class CollectorFailures(Protocol):
    """Receiver of failures of a scrape."""

    def collector_failed(self, part: str, error: Exception) -> None:
        """A part of the metrics could not be read."""
        ...


class MetricDescription(Protocol):
    """A row of the table of metrics."""

    @property
    def kind(self) -> str:
        """counter or gauge."""
        ...

    @property
    def help(self) -> str:
        """Description of the metric."""
        ...


NAMES = (
    "tripwire_statistic", "tripwire_threshold", "tripwire_tripped", "tripwire_trips_total", "run_sum_total", "run_baseline_moment",
    "run_baseline_clustered", "run_audits",
    "run_component_sum_total", "run_component_baseline_moment", "run_model_age_seconds", "run_step", "run_kl",
    "runs_over_limit_total", "samples_inspected_total",
)  # fmt: skip
"""The rows of the table that are read from the run monitor."""


class RunsCollector(Collector):
    """Collector of the state of every run that has not ended; the monitor bounds their number. A run that cannot be read is left
    out, and reported to `failures`.
    """

    def __init__(
        self,
        rows: Mapping[str, MetricDescription],
        prefix: str,
        monitor: RunMonitor,
        clock: Clock,
        failures: CollectorFailures,
    ) -> None:
        self._rows, self._prefix, self._monitor, self._clock, self._failures = rows, prefix, monitor, clock, failures

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        prefix, monitor = self._prefix, self._monitor
        families = {
            name: Metric(prefix + name.removesuffix("_total"), row.help, row.kind) for name, row in self._rows.items()
        }

        samples: list[tuple[str, dict[str, str], float]] = []

        common = _Samples(samples)
        for wire, threshold in monitor.thresholds.items():
            common.add("tripwire_threshold", threshold, wire=wire)
        common.add("runs_over_limit_total", monitor.n_over_limit)
        common.add("samples_inspected_total", monitor.n_inspected, outcome="inspected")
        common.add("samples_inspected_total", monitor.n_skipped, outcome="skipped")
        now = self._clock.now()
        for run, state in monitor.runs.items():
            if monitor.has_ended(run, now):
                continue  # its alerts resolve
            n_before = len(samples)
            try:
                of_run = _Samples(samples, run=run, model=state.baseline_source.model)
                if run == OTHER:  # a rule would take a change of the mixture for one of a run
                    of_run.add("run_sum_total", state.all_sums["samples"], of="samples")
                else:
                    self._add_run(of_run, state, now)
            except Exception as error:
                del samples[n_before:]
                self._failures.collector_failed("run", error)
        for name, labels, value in samples:
            families[name].add_sample(prefix + name, labels, value)
        yield from families.values()

    def _add_run(self, samples: _Samples, state: Run, now: float) -> None:
        _add_wires(samples, state, self._monitor)
        _add_sums(samples, state)
        _add_baseline(samples, state)
        if state.model_changed_at is not None:
            samples.add("run_model_age_seconds", now - state.model_changed_at)
        if state.step is not None:
            samples.add("run_step", state.step)
        if state.kl is not None:
            samples.add("run_kl", state.kl)


def _add_wires(samples: _Samples, state: Run, monitor: RunMonitor) -> None:
    for wire in monitor.thresholds:
        samples.add("tripwire_tripped", float(wire in state.alerts), wire=wire, cause=cause_of(wire))
    for wire, statistic in state.statistics.items():
        samples.add("tripwire_statistic", statistic, wire=wire)
    if "audit_gap" in state.statistics:
        samples.add("run_audits", state.compared["audited"])
    for wire, n in state.trips.items():
        samples.add("tripwire_trips_total", n, wire=wire)


def _add_sums(samples: _Samples, state: Run) -> None:
    sums = iter(state.all_sums.sums)
    for of in ENTRIES:
        samples.add("run_sum_total", next(sums), of=of)
    for name in state.baseline_source.components:
        for of in COMPONENT_ENTRIES:
            samples.add("run_component_sum_total", next(sums), component=name, of=of)


def _add_baseline(samples: _Samples, state: Run) -> None:
    named = {component(i): name for i, name in enumerate(state.baseline_source.components)}
    for of, stat in state.exported_baseline.stats.items():
        for order, value in enumerate(_powers(stat)):
            if of in named:
                samples.add("run_component_baseline_moment", value, component=named[of], order=str(order))
            else:
                samples.add("run_baseline_moment", value, of=of, order=str(order))
        if of not in named:
            samples.add("run_baseline_clustered", (stat.n * stat.error) * (stat.n * stat.error), of=of)


def _powers(stat: BaselineStat) -> tuple[float, float, float]:
    """Sums of the powers 0, 1 and 2 over the samples of the baseline."""
    return stat.n, stat.n * stat.mean, stat.n * (stat.mean * stat.mean + stat.std * stat.std)


class CanarySource(Protocol):
    """Source of the latest results of the canaries."""

    @property
    def canary_margins(self) -> Mapping[str, float]:
        """Raw score of each honest answer above that of its exploit, by canary."""
        ...


class CanaryCollector(Collector):
    """Collector of the latest margins of the canaries."""

    def __init__(self, row: MetricDescription, name: str, source: CanarySource) -> None:
        self._row, self._name, self._source = row, name, source

    def collect(self) -> Iterator[Metric]:
        """One gauge per canary."""
        family = Metric(self._name, self._row.help, self._row.kind)
        for canary, margin in self._source.canary_margins.items():
            family.add_sample(self._name, {"canary": canary}, margin)
        yield family
