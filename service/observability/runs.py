"""What the board knows of its runs, as metrics: read when somebody scrapes, so nothing is copied while samples pass.

Everything that an alert needs is a sum that only grows, or a sum over the samples that say what is usual: those of replicas are
added up, and say what one replica would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.tripwires.board import Board, Run
from service.tripwires.reference import Usual, part
from service.tripwires.tally import ENTRIES, PART_ENTRIES

Add = Callable[..., None]


class Described(Protocol):
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
    "tripwire_statistic", "tripwire_threshold", "tripwire_tripped", "tripwire_trips_total", "run_sum_total", "run_usual",
    "run_part_sum_total", "run_part_usual", "run_measured_seconds", "run_step", "run_kl", "runs_without_room_total",
    "looks_total",
)  # fmt: skip
"""The lines of the table that are read from the board."""


class Runs(Collector):
    """The state of every run. The board bounds how many there are. `failed(part, error)` is called for a run that is left out."""

    def __init__(
        self,
        rows: Mapping[str, Described],
        prefix: str,
        board: Board,
        now: Callable[[], float],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._rows, self._prefix, self._board, self._now, self._failed = rows, prefix, board, now, failed

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees."""
        prefix, board = self._prefix, self._board
        families = {
            name: Metric(prefix + name.removesuffix("_total"), row.help, row.kind) for name, row in self._rows.items()
        }

        samples: list[tuple[str, dict[str, str], float]] = []

        def add(name: str, value: float, **labels: str) -> None:
            samples.append((name, labels, float(value)))

        for wire, threshold in board.thresholds.items():
            add("tripwire_threshold", threshold, wire=wire)
        add("runs_without_room_total", board.n_without_room)
        add("looks_total", board.n_looked_at, looked="yes")
        add("looks_total", board.n_left_out, looked="no")
        for run, state in board.runs.items():
            n_before = len(samples)
            try:
                self._add_run(add, run, state)
            except Exception as error:
                del samples[n_before:]
                self._failed("run", error)
        for name, labels, value in samples:
            families[name].add_sample(prefix + name, labels, value)
        yield from families.values()

    def _add_run(self, add: Add, run: str, state: Run) -> None:
        _add_wires(add, run, state, self._board)
        _add_sums(add, run, state)
        _add_usual(add, run, state)
        if state.measured_at is not None:
            add("run_measured_seconds", self._now() - state.measured_at, run=run)
        if state.step is not None:
            add("run_step", state.step, run=run)
        if state.kl is not None:
            add("run_kl", state.kl, run=run)


def _add_wires(add: Add, run: str, state: Run, board: Board) -> None:
    for wire in board.thresholds:
        add("tripwire_tripped", float(wire in state.alarms), wire=wire, run=run)
    for wire, statistic in state.statistics.items():
        add("tripwire_statistic", statistic, wire=wire, run=run)
    for wire, n in state.trips.items():
        add("tripwire_trips_total", n, wire=wire, run=run)


def _add_sums(add: Add, run: str, state: Run) -> None:
    sums = iter(state.counted.sums)
    for of in ENTRIES:
        add("run_sum_total", next(sums), run=run, of=of)
    for name in state.yardstick.parts:
        for of in PART_ENTRIES:
            add("run_part_sum_total", next(sums), run=run, part=name, of=of)


def _add_usual(add: Add, run: str, state: Run) -> None:
    named = {part(i): name for i, name in enumerate(state.yardstick.parts)}
    for of, usual in state.reference.usual.items():
        for power, value in enumerate(_powers(usual)):
            if of in named:
                add("run_part_usual", value, run=run, part=named[of], power=str(power))
            else:
                add("run_usual", value, run=run, of=of, power=str(power))


def _powers(usual: Usual) -> tuple[float, float, float]:
    """Sums of the powers 0, 1 and 2 over the samples that say what is usual."""
    return usual.n, usual.n * usual.mean, usual.n * (usual.mean * usual.mean + usual.std * usual.std)


class Margins(Collector):
    """What canaries sang last, read when somebody scrapes."""

    def __init__(self, row: Described, name: str, margins: Callable[[], Mapping[str, float]]) -> None:
        self._row, self._name, self._margins = row, name, margins

    def collect(self) -> Iterator[Metric]:
        """One gauge a canary."""
        family = Metric(self._name, self._row.help, self._row.kind)
        for canary, margin in self._margins().items():
            family.add_sample(self._name, {"canary": canary}, margin)
        yield family
