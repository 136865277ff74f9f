"""Building blocks of PromQL for the statistics of trip wires: sums of all replicas over windows of time, means, baselines.

Defines the names of recorded series; `prometheus` records them, `statistics` reads them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewardserve.service.tripwires.running_sums import CLUSTERED, count_of, is_signed

WINDOWS = ("2m", "15m", "2h")
ENOUGH_SAMPLES = 1_280
"""Samples that the smoothing of the run monitor covers: ten windows of 128."""

REPLICA = "instance, pod, container, endpoint, node"
"""Labels that differ between replicas; all others, such as `job` and `namespace`, differ between services."""

SUMS, COMPONENT_SUMS = "rewardserve_run_sum_total", "rewardserve_run_component_sum_total"
RECENT_SUM, RECENT_COMPONENT_SUM = "rewardserve:run_sum:recent", "rewardserve:run_component_sum:recent"
BASELINE_ERROR = "rewardserve:run_baseline_moment:error"
BASELINE_MEAN, BASELINE_STD = "rewardserve:run_baseline_moment:mean", "rewardserve:run_baseline_moment:std"
COMPONENT_VARIANCE = "rewardserve:run_component_variance:recent"
COMPONENT_BASELINE_VARIANCE = "rewardserve:run_component_baseline_moment:variance"


@dataclass(frozen=True, slots=True)
class Windows:
    """`spans` of time, the shortest first; a run is evaluated over the first that has so many `samples`."""

    spans: tuple[str, ...] = WINDOWS
    samples: int = ENOUGH_SAMPLES


SHIPPED_WINDOWS = Windows()


def seconds_of(span: str) -> int:
    """`15m` -> 900."""
    return {"s": 1, "m": 60, "h": 3600}[span[-1]] * int(span[:-1])


def over_replicas(expression: str, how: str = "sum") -> str:
    """Aggregate an expression over all replicas."""
    return f"{how} without ({REPLICA}) ({expression})"


def largest_of_replicas(wire: str) -> str:
    """A statistic that does not add up: that of the replica where it is largest."""
    return f'max without ({REPLICA}, wire) (rewardserve_tripwire_statistic{{wire="{wire}"}})'


def mean_of_replicas(wire: str, n: str) -> str:
    """A statistic that each replica has of its samples: the mean of all replicas, each with the weight `n`."""
    weighted = f'rewardserve_tripwire_statistic{{wire="{wire}"}} * ignoring (wire) {n}'
    return f"{over_replicas(weighted)}\n  / {over_replicas(n)}"


def without(label: str, expression: str) -> str:
    """Remove a label that no longer distinguishes series."""
    return f"sum without ({label}) ({expression})"


def added(metric: str, span: str, of: str | None = None) -> str:
    """Increase of a sum over a span, unless the model of the run was replaced within it: the sum would mix two models."""
    only = f'{{of="{of}"}}' if of else ""
    return (
        f"({over_replicas(f'increase({metric}{only}[{span}])')} "
        f"unless ignoring (of, component) {got_model_within(seconds_of(span))})"
    )


def got_model_within(seconds: int) -> str:
    """Runs whose model was replaced within so many seconds, at one of their replicas."""
    return f"({over_replicas('rewardserve_run_model_age_seconds', 'min')} < {seconds})"


def recent(of: str) -> str:
    """A sum over the shortest window with enough samples."""
    return f'{RECENT_SUM}{{of="{of}"}}'


def recent_mean(name: str, min_samples: int) -> str:
    """Mean over the samples that have the number, where there are at least `min_samples`: a single sample must raise no alert."""
    n = f"({recent(count_of(name))} >= {min_samples})"
    positive, negative = recent(f"{name}_positive"), recent(f"{name}_negative")
    total = f"({positive} - ignoring (of) {negative})" if is_signed(name) else recent(name)
    return f"({total} / ignoring (of) {n})"


def recent_error(name: str) -> str:
    """Standard error of the mean, clustered by prompt."""
    return f"(sqrt({recent(f'{name}_clustered')}) / ignoring (of) {recent(count_of(name))})"


def recent_low(name: str, min_samples: int, n_errors: float) -> str:
    """The mean less so many standard errors; the mean where the error is not known."""
    mean = recent_mean(name, min_samples)
    return f"({mean}\n  - ignoring (of) {n_errors:g} * {recent_error(name)})" if name in CLUSTERED else mean


def baseline_error() -> str:
    """Standard errors of the means of baselines, over all replicas."""
    of_order = over_replicas('rewardserve_run_baseline_moment{order="0"}')
    return f"sqrt({over_replicas('rewardserve_run_baseline_clustered')}) / ignoring (order) {of_order}"


def moments(metric: str) -> tuple[str, str]:
    """Mean and mean square over all replicas."""
    of_order = [over_replicas(f'{metric}{{order="{order}"}}') for order in range(3)]
    return tuple(f"{moment} / ignoring (order) {of_order[0]}" for moment in of_order[1:])  # type: ignore[return-value]
