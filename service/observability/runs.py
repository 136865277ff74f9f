"""The state of runs and canaries as metrics: read at a scrape, so nothing is copied while samples pass.

Everything that an alert needs is a sum that only grows, or a sum over the samples of the baseline: those of replicas are
added up, and say what one replica would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rewardserve.service.tripwires.baseline import BaselineStat, component
from rewardserve.service.tripwires.run_monitor import Run, RunMonitor
from rewardserve.service.tripwires.running_sums import COMPONENT_ENTRIES, ENTRIES
from rewardserve.service.tripwires.wires import cause_of

Add = Callable[..., None]


class MetricDescription(Protocol):
    """A line of the table of metrics."""

    @property
    def kind(self) -> str:
        """counter or gauge."""
        ...

    @property
    def help(self) -> str:
        """In words."""
        ...


NAMES = (
    "tripwire_statistic", "tripwire_threshold", "tripwire_tripped", "tripwire_trips_total", "run_sum_total", "run_baseline_moment",
    "run_component_sum_total", "run_component_baseline_moment", "run_model_age_seconds", "run_step", "run_kl",
    "runs_over_limit_total", "samples_inspected_total",
)  # fmt: skip
"""The lines of the table that are read from the run monitor."""


class RunsCollector(Collector):
    """The state of every run that has not ended. The monitor bounds how many there are. `failed(part, error)` is called for a run
    that is left out.
    """

    def __init__(
        self,
        rows: Mapping[str, MetricDescription],
        prefix: str,
        monitor: RunMonitor,
        now: Callable[[], float],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._rows, self._prefix, self._monitor, self._now, self._failed = rows, prefix, monitor, now, failed

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        prefix, monitor = self._prefix, self._monitor
        families = {
            name: Metric(prefix + name.removesuffix("_total"), row.help, row.kind) for name, row in self._rows.items()
        }

        samples: list[tuple[str, dict[str, str], float]] = []

        def add(name: str, value: float, **labels: str) -> None:
            samples.append((name, labels, float(value)))

        for wire, threshold in monitor.thresholds.items():
            add("tripwire_threshold", threshold, wire=wire)
        add("runs_over_limit_total", monitor.n_over_limit)
        add("samples_inspected_total", monitor.n_inspected, outcome="inspected")
        add("samples_inspected_total", monitor.n_skipped, outcome="skipped")
        now = self._now()
        for run, state in monitor.runs.items():
            if monitor.has_ended(run, now):
                continue  # its alerts resolve
            n_before = len(samples)
            try:
                self._add_run(partial(add, run=run, model=state.baseline_source.model), state, now)
            except Exception as error:
                del samples[n_before:]
                self._failed("run", error)
        for name, labels, value in samples:
            families[name].add_sample(prefix + name, labels, value)
        yield from families.values()

    def _add_run(self, add: Add, state: Run, now: float) -> None:
        _add_wires(add, state, self._monitor)
        _add_sums(add, state)
        _add_baseline(add, state)
        if state.model_changed_at is not None:
            add("run_model_age_seconds", now - state.model_changed_at)
        if state.step is not None:
            add("run_step", state.step)
        if state.kl is not None:
            add("run_kl", state.kl)


def _add_wires(add: Add, state: Run, monitor: RunMonitor) -> None:
    for wire in monitor.thresholds:
        add("tripwire_tripped", float(wire in state.alerts), wire=wire, cause=cause_of(wire))
    for wire, statistic in state.statistics.items():
        add("tripwire_statistic", statistic, wire=wire)
    for wire, n in state.trips.items():
        add("tripwire_trips_total", n, wire=wire)


def _add_sums(add: Add, state: Run) -> None:
    sums = iter(state.all_sums.sums)
    for of in ENTRIES:
        add("run_sum_total", next(sums), of=of)
    for name in state.baseline_source.components:
        for of in COMPONENT_ENTRIES:
            add("run_component_sum_total", next(sums), component=name, of=of)


def _add_baseline(add: Add, state: Run) -> None:
    named = {component(i): name for i, name in enumerate(state.baseline_source.components)}
    for of, stat in state.baseline.stats.items():
        for order, value in enumerate(_powers(stat)):
            if of in named:
                add("run_component_baseline_moment", value, component=named[of], order=str(order))
            else:
                add("run_baseline_moment", value, of=of, order=str(order))


def _powers(stat: BaselineStat) -> tuple[float, float, float]:
    """Sums of the powers 0, 1 and 2 over the samples of the baseline."""
    return stat.n, stat.n * stat.mean, stat.n * (stat.mean * stat.mean + stat.std * stat.std)


class CanaryCollector(Collector):
    """The latest margins of the canaries, read at a scrape."""

    def __init__(self, row: MetricDescription, name: str, margins: Callable[[], Mapping[str, float]]) -> None:
        self._row, self._name, self._margins = row, name, margins

    def collect(self) -> Iterator[Metric]:
        """One gauge a canary."""
        family = Metric(self._name, self._row.help, self._row.kind)
        for canary, margin in self._margins().items():
            family.add_sample(self._name, {"canary": canary}, margin)
        yield family
