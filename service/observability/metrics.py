"""All metrics of the service in one table, and the only place that counts them.

Names and labels are binding (DESIGN, section 4). Knows no HTTP framework and no settings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from types import MappingProxyType
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Pipeline, Reward
from rewardserve.service.clock import Clock
from rewardserve.service.observability import logs
from rewardserve.service.observability.runs import NAMES as RUNS
from rewardserve.service.observability.runs import CanaryCollector, RunsCollector
from rewardserve.service.tripwires.run_monitor import RunMonitor

PREFIX = "rewardserve_"
CONTENT_TYPE = CONTENT_TYPE_LATEST

Kind = Literal["counter", "gauge", "histogram"]

SCORING_KIND, OTHER_KIND = "scoring", "other"
"""Kinds of routes: those that score, whatever the wire format, and all others."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COUNTS = tuple(float(2**k) for k in range(0, 11))
_TOKENS = tuple(float(2**k) for k in range(4, 19))
_Z_EDGES = tuple(-5.0 + 0.25 * k for k in range(41))


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table. The buckets of a histogram without buckets here come from the calibration."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)


TABLE: tuple[MetricSpec, ...] = (
    MetricSpec("requests_total", "counter", "Requests answered; the kind is scoring for every route that scores.",
        ("route", "kind", "code")),
    MetricSpec("request_seconds", "histogram", "Seconds from the first byte of a request to the last byte of its reply.",
        ("route", "kind"), _SECONDS),
    MetricSpec("connections_ended_total", "counter",
        "Connections that the server ended before the client did, by reason.", ("reason",)),
    MetricSpec("samples_total", "counter", "Samples by outcome: ok, or the code of the error.", ("outcome",)),
    MetricSpec("tokens_total", "counter", "Tokens by kind: received, cached, shared, computed or padding.", ("kind",)),
    MetricSpec("encode_seconds", "histogram", "Seconds of the encoding of a few samples.", (), _SECONDS),
    MetricSpec("queue_samples", "gauge", "Queued rows."),
    MetricSpec("queue_tokens", "gauge", "Queued tokens."),
    MetricSpec("queue_seconds", "histogram", "Seconds of a row in the queue.", (), _SECONDS),
    MetricSpec("batch_samples", "histogram", "Rows in a batch.", (), _COUNTS),
    MetricSpec("batch_tokens", "histogram", "Real tokens in a batch.", (), _TOKENS),
    MetricSpec("batch_budget_tokens", "gauge", "Current budget of a batch, in tokens."),
    MetricSpec("forward_seconds", "histogram", "Seconds of one forward.", (), _SECONDS),
    MetricSpec("batch_failures_total", "counter", "Forwards without scores: out_of_memory, failed, or bug.", ("reason",)),
    MetricSpec("scorer_hanging", "gauge", "1 while a forward hangs and all requests are refused."),
    MetricSpec("raw_score", "histogram", "Raw scores, by model.", ("version",)),
    MetricSpec("value", "histogram", "Rewards as sent, by model.", ("version",)),
    MetricSpec("capped_total", "counter", "Rewards that a cap has changed.", ("side",)),
    MetricSpec("tripwire_statistic", "gauge", "Latest statistic of a wire, of this replica.", ("wire", "run", "model")),
    MetricSpec("tripwire_threshold", "gauge", "Threshold of a wire.", ("wire",)),
    MetricSpec("tripwire_tripped", "gauge", "1 after a wire has tripped, until it is acknowledged or the run has ended.",
        ("wire", "run", "model", "cause")),
    MetricSpec("tripwire_trips_total", "counter", "Alerts of a wire.", ("wire", "run", "model")),
    MetricSpec("run_sum_total", "counter", "Sums over the watched samples of a run; of replicas they add up.",
        ("run", "model", "of")),
    MetricSpec("run_audits", "gauge", "Audits of the statistic `audit_gap`, the weight of this replica in the rule.",
        ("run", "model")),
    MetricSpec("run_baseline_moment", "gauge", "Baseline of a run: number of samples, sum of their values, sum of squares.",
        ("run", "model", "of", "order")),
    MetricSpec("run_baseline_clustered", "gauge",
        "Squared standard error of the sum over the samples of the baseline, clustered by prompt.", ("run", "model", "of")),
    MetricSpec("run_component_sum_total", "counter", "The same sums of each part of a reward that has several.",
        ("run", "model", "component", "of")),
    MetricSpec("run_component_baseline_moment", "gauge",
        "The same for each part of a reward.", ("run", "model", "component", "order")),
    MetricSpec("run_model_age_seconds", "gauge",
        "Seconds since the model of a run was replaced, where it was.",
        ("run", "model")),
    MetricSpec("run_step", "gauge", "Latest step of a run.", ("run", "model")),
    MetricSpec("run_kl", "gauge", "KL divergence of the policy from its start in nats, as its trainer reported it last.",
        ("run", "model")),
    MetricSpec("samples_inspected_total", "counter", "Samples of runs: inspected by trip wires, or skipped for want of CPU budget.",
        ("outcome",)),
    MetricSpec("runs_over_limit_total", "counter", "Watched samples of named runs beyond the limit of runs."),
    MetricSpec("canary_margin", "gauge", "Raw score of an honest answer above that of an exploit.", ("canary",)),
    MetricSpec("collector_failures_total", "counter", "Parts of the metrics that a scrape could not read and left out.", ("part",)),
    MetricSpec("alerts_lost_total", "counter", "Alerts that the webhook could not deliver."),
    MetricSpec("audit_skipped_total", "counter", "Samples that the audit judge skipped because its queue was full."),
    MetricSpec("captured_samples_total", "counter",
        "Samples for the review store: stored, known to it already, or dropped because it could not keep up.", ("outcome",)),
    MetricSpec("policy_requests_total", "counter",
        "Requests to the policy for turns: ok, timeout, unreachable, status, too_large or invalid.", ("outcome",)),
    MetricSpec("device_memory_bytes", "gauge", "Memory of the device that the model is on.", ("kind",)),
    MetricSpec("model_info", "gauge", "Loaded models with their roles; the value is always 1.",
        ("name", "architecture", "backend", "engine", "dtype", "device", "contract", "calibration", "pipeline",
         "version", "state")),
    MetricSpec("model_version", "gauge", "Version of the model in service, counted from the start of the process."),
    MetricSpec("model_loads_total", "counter", "Loads of models after the first, by outcome.", ("outcome",)),
    MetricSpec("shadow_samples_total", "counter",
        "Samples that the shadow scored, or skipped because its queue was full.", ("outcome",)),
    MetricSpec("shadow_pairs_total", "counter", "Pairs of responses to one prompt, by whether shadow and service order them alike.",
        ("order",)),
    MetricSpec("shadow_agreement", "gauge", "Share of the pairs that the shadow orders as the service does.", ("version",)),
    MetricSpec("shadow_shift", "gauge", "Mean reward of the shadow above that of the service.", ("version",)),
    MetricSpec("shadow_correlation", "gauge", "Pearson's, of the rewards of shadow and service.", ("version",)),
)  # fmt: skip

_CAPS: Mapping[str, str] = {
    "capped_low": "low",
    "softcapped_low": "low",
    "capped_high": "high",
    "softcapped_high": "high",
}


class _FastHistogram(Collector):
    """Histogram for values that are counted once a sample: a tenth of the CPU time of `Histogram`. Its labels are fixed.

    The library's histogram takes two locks for every value; this one belongs to the event loop, as do its readers.
    """

    def __init__(
        self, row: MetricSpec, edges: Sequence[float], labels: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._row, self._edges, self._labels = row, tuple(edges), dict(labels)
        self._counts = [0] * (len(self._edges) + 1)
        self._sum = 0.0

    def observe_all(self, values: Iterable[float]) -> None:
        """Count each value in the bucket of the first edge that it does not exceed."""
        edges, counts, total = self._edges, self._counts, self._sum
        for value in values:
            counts[bisect_left(edges, value)] += 1
            total += value
        self._sum = total

    def collect(self) -> Iterator[Metric]:
        """The metric for a scrape."""
        family = Metric(PREFIX + self._row.name, self._row.help, "histogram")
        self.add_to(family)
        yield family

    def add_to(self, family: Metric) -> None:
        """The samples that `Histogram` has, which leaves out a sum that may fall."""
        name, labels = family.name, self._labels
        for edge, n in zip((*self._edges, inf), accumulate(self._counts), strict=True):
            le = floatToGoString(edge)  # type: ignore[no-untyped-call]
            family.add_sample(f"{name}_bucket", {**labels, "le": le}, n)
        family.add_sample(f"{name}_count", labels, sum(self._counts))
        if self._edges[0] >= 0:
            family.add_sample(f"{name}_sum", labels, self._sum)


class _VersionHistograms(Collector):
    """Histograms of scores, one for each loaded model, with the buckets of its calibration."""

    def __init__(self, row: MetricSpec) -> None:
        self._row = row
        self.histograms: dict[int, _FastHistogram] = {}

    def collect(self) -> Iterator[Metric]:
        """The metric family for a scrape."""
        family = Metric(PREFIX + self._row.name, self._row.help, "histogram")
        for histogram in self.histograms.values():
            histogram.add_to(family)
        yield family

    def begin(self, version: int, edges: Sequence[float]) -> None:
        """Add the histogram of a model."""
        self.histograms[version] = _FastHistogram(self._row, edges, {"version": str(version)})


class _Registry(CollectorRegistry):
    """Registry that keeps its collectors in order, so that each can be read separately."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Register a collector."""
        super().register(collector)
        self.collectors.append(collector)


class _SingleCollector(CollectorRegistry):
    """A registry of one collector, for `generate_latest`."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        """Its families."""
        return self._collector.collect()


def _part_of(collector: Collector) -> str:
    """The metric's name, or the class of a collector that has several."""
    row = getattr(collector, "_row", None)
    return PREFIX + row.name if row is not None else str(getattr(collector, "_name", type(collector).__name__))


_READ_ON_SCRAPE = (*RUNS, "canary_margin")
"""Rows of the table that are read from other components at a scrape."""


_INITIALIZED_AT_ZERO = (
    *(("samples_total", (outcome,)) for outcome in ("score_not_finite", "run_blocked")),
    *(("batch_failures_total", (reason,)) for reason in ("out_of_memory", "failed", "bug")),
    *(("model_loads_total", (outcome,)) for outcome in ("ok", "refused")),
)
"""Counters that start at 0: alerts need the first increase, which a series that begins with 1 does not show."""


class ModelStats(Protocol):
    """State of the loaded models, as metrics show it."""

    @property
    def n_queued_samples(self) -> int:
        """Queued rows of all models."""
        ...

    @property
    def n_queued_tokens(self) -> int:
        """Queued tokens of all models."""
        ...

    @property
    def batch_budget_tokens(self) -> int:
        """Batch budget of the model in service, in tokens."""
        ...

    @property
    def is_scorer_hanging(self) -> bool:
        """Whether a forward of the model in service hangs."""
        ...

    @property
    def device_memory(self) -> tuple[int, int]:
        """Used and total bytes of the device's memory."""
        ...

    @property
    def canary_margins(self) -> Mapping[str, float]:
        """Raw score of each honest answer above that of its exploit, by canary."""
        ...


class Metrics:
    """The metrics of the table in a separate registry, and one method for each kind of event."""

    def __init__(self) -> None:
        self._scoring_routes: frozenset[str] = frozenset()
        self._seconds: dict[str, Histogram] = {}
        # Otherwise the library adds one more series for each.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = _Registry()
        self._failing: set[str] = set()
        self._failed_before: set[str] = set()
        ProcessCollector(registry=self._registry)
        self._counters = {
            r.name: self._counter(r) for r in TABLE if r.kind == "counter" and r.name not in _READ_ON_SCRAPE
        }
        self._children: dict[tuple[str, tuple[str, ...]], Counter] = {}
        self._gauges = {r.name: self._gauge(r) for r in TABLE if r.kind == "gauge" and r.name not in _READ_ON_SCRAPE}
        self._by_route = {
            r.name: self._histogram(r) for r in TABLE if r.kind == "histogram" and r.labels == ("route", "kind")
        }
        self._by_version = {
            r.name: self._scores(r) for r in TABLE if r.kind == "histogram" and r.labels == ("version",)
        }
        for name, labels in _INITIALIZED_AT_ZERO:
            self._count(name, 0, *labels)
        self._fast_histograms = {
            r.name: self._fast_histogram(r, r.buckets) for r in TABLE if r.kind == "histogram" and not r.labels
        }

    def render(self) -> bytes:
        """Render the text of `GET /metrics`. A collector that fails is left out, counted, and logged at its first failure."""
        failures = self._counters["collector_failures_total"]
        self._failed_before, self._failing = self._failing, set()
        parts = [self._render_part(each) for each in self._registry.collectors if each is not failures]
        return b"".join([*parts, generate_latest(_SingleCollector(failures))])

    def _render_part(self, collector: Collector) -> bytes:
        try:
            return generate_latest(_SingleCollector(collector))
        except Exception as error:
            self.collector_failed(_part_of(collector), error)
            return b""

    def collector_failed(self, part: str, error: Exception) -> None:
        """Count a part that this scrape leaves out; log it where the previous scrape could read it."""
        self._count("collector_failures_total", 1, part)
        is_new = part not in self._failing and part not in self._failed_before
        self._failing.add(part)
        if is_new:
            logs.logger("metrics").error("collector_failed", part=part, exc_info=error)

    def model_loaded(self, version: int, calibration: Calibration | None, pipeline: Pipeline) -> None:
        """Add the histograms of a model that may score, with their buckets."""
        raw_edges = score_buckets(calibration)
        for name, scores in self._by_version.items():
            scores.begin(version, _Z_EDGES if name == "value" and pipeline.normalizes else raw_edges)

    def model_unloaded(self, version: int) -> None:
        """Remove the histograms of a model that will not score again."""
        for scores in self._by_version.values():
            del scores.histograms[version]

    def set_models(self, serving: int, infos: Iterable[Mapping[str, str]]) -> None:
        """Set the loaded models and the version in service."""
        self._gauges["model_info"].clear()
        for info in infos:
            self._gauges["model_info"].labels(**info).set(1)
        self._gauges["model_version"].set(serving)

    def observe_load(self, outcome: str) -> None:
        """Count a load of a model: ok, or refused."""
        self._count("model_loads_total", 1, outcome)

    def observe_shadow(self, outcome: str, n_samples: int, pairs: Mapping[str, int]) -> None:
        """Count samples that the shadow scored or skipped; `pairs` by their order."""
        self._count("shadow_samples_total", n_samples, outcome)
        for order, n in pairs.items():
            self._count("shadow_pairs_total", n, order)

    def set_shadow(self, version: int, figures: Mapping[str, float | None]) -> None:
        """Set the comparison of the shadow with the model in service so far; a statistic that is None is left out."""
        for name, value in figures.items():
            if value is not None:
                self._gauges[f"shadow_{name}"].labels(version=str(version)).set(value)

    def clear_shadow(self) -> None:
        """Remove the comparison of a shadow."""
        for name in ("agreement", "shift", "correlation"):
            self._gauges[f"shadow_{name}"].clear()

    def watch_models(self, stats: ModelStats) -> None:
        """Read the state of the models at every scrape. Call once per process."""
        self._gauges["queue_samples"].set_function(lambda: stats.n_queued_samples)
        self._gauges["queue_tokens"].set_function(lambda: stats.n_queued_tokens)
        self._gauges["batch_budget_tokens"].set_function(lambda: stats.batch_budget_tokens)
        self._gauges["scorer_hanging"].set_function(lambda: stats.is_scorer_hanging)
        self._gauges["device_memory_bytes"].labels(kind="used").set_function(lambda: stats.device_memory[0])
        self._gauges["device_memory_bytes"].labels(kind="total").set_function(lambda: stats.device_memory[1])
        row = next(row for row in TABLE if row.name == "canary_margin")
        self._registry.register(CanaryCollector(row, PREFIX + row.name, stats))

    def watch_runs(self, monitor: RunMonitor, clock: Clock) -> None:
        """Read the state of runs at every scrape; `clock` is that of the monitor. Call once per process."""
        rows = {row.name: row for row in TABLE if row.name in RUNS}
        self._registry.register(RunsCollector(rows, PREFIX, monitor, clock, self))

    def set_scoring_routes(self, routes: Iterable[str]) -> None:
        """Set the routes whose requests have the kind `scoring`. Call once, before the first request."""
        self._scoring_routes = frozenset(routes)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        kind = SCORING_KIND if route in self._scoring_routes else OTHER_KIND
        self._count("requests_total", 1, route, kind, str(status))
        child = self._seconds.get(route)
        if child is None:
            child = self._seconds[route] = self._by_route["request_seconds"].labels(route=route, kind=kind)
        child.observe(seconds)

    def observe_policy_request(self, outcome: str) -> None:
        """Count a request to the policy."""
        self._count("policy_requests_total", 1, outcome)

    def observe_connection_ended(self, why: str) -> None:
        """Count a connection that the server closed: too slow, too many, or not HTTP."""
        self._count("connections_ended_total", 1, why)

    def observe_samples(
        self, version: int, outcomes: Mapping[str, int], n_tokens: int, n_cached_tokens: int, rewards: Sequence[Reward]
    ) -> None:
        """Count the samples of a request: rewards of one model, and errors of samples without a reward; `outcomes` counts both."""
        for outcome, n in outcomes.items():
            self._count("samples_total", n, outcome)
        self._tokens("received", n_tokens)
        self._tokens("cached", n_cached_tokens)
        self._by_version["raw_score"].histograms[version].observe_all([reward.raw for reward in rewards])
        self._by_version["value"].histograms[version].observe_all([reward.value for reward in rewards])
        sides = [{_CAPS[note] for note in reward.notes if note in _CAPS} for reward in rewards if reward.notes]
        for side in set().union(*sides):
            self._count("capped_total", sum([side in each for each in sides]), side)

    def observe_batch(
        self, n_rows: int, n_row_tokens: int, n_tokens: int, n_computed: int, n_padding: int, seconds: float
    ) -> None:
        """Count a batch: `n_rows` with `n_row_tokens`, for samples that have `n_tokens` together."""
        self._fast_histograms["batch_samples"].observe_all([n_rows])
        self._fast_histograms["batch_tokens"].observe_all([n_row_tokens])
        self._fast_histograms["forward_seconds"].observe_all([seconds])
        self._tokens("computed", n_computed)
        self._tokens("padding", n_padding)
        self._tokens("shared", max(0, n_tokens - n_computed))

    def observe_encoding(self, seconds: float) -> None:
        """Observe the encoding of a few samples."""
        self._fast_histograms["encode_seconds"].observe_all([seconds])

    def observe_alert_lost(self) -> None:
        """Count an alert that could not be delivered."""
        self._count("alerts_lost_total", 1)

    def observe_audit_skipped(self, n_samples: int) -> None:
        """Count samples that the audit judge skipped, because its queue was full."""
        self._count("audit_skipped_total", n_samples)

    def observe_captured(self, n: int, outcome: str) -> None:
        """Count samples for the review store, by outcome. On any thread."""
        if n:
            self._count("captured_samples_total", n, outcome)

    def observe_failure(self, reason: str) -> None:
        """Count a forward without scores. Its rows may be scored again in smaller batches."""
        self._count("batch_failures_total", 1, reason)

    def observe_queue(self, seconds: Sequence[float]) -> None:
        """Observe the seconds of rows in the queue."""
        self._fast_histograms["queue_seconds"].observe_all(seconds)

    def _tokens(self, kind: str, n: int) -> None:
        self._count("tokens_total", n, kind)

    def _count(self, name: str, n: int, *labels: str) -> None:
        """Add to a counter. The child is cached here, because the library takes longer to find it than to count."""
        child = self._children.get((name, labels))
        if child is None:
            counter = self._counters[name]
            child = self._children[name, labels] = counter.labels(*labels) if labels else counter
        child.inc(n)

    def _counter(self, row: MetricSpec) -> Counter:
        return Counter(PREFIX + row.name, row.help, row.labels, registry=self._registry)

    def _gauge(self, row: MetricSpec) -> Gauge:
        return Gauge(PREFIX + row.name, row.help, row.labels, registry=self._registry)

    def _histogram(self, row: MetricSpec) -> Histogram:
        return Histogram(PREFIX + row.name, row.help, row.labels, buckets=row.buckets, registry=self._registry)

    def _scores(self, row: MetricSpec) -> _VersionHistograms:
        scores = _VersionHistograms(row)
        self._registry.register(scores)
        return scores

    def _fast_histogram(self, row: MetricSpec, edges: Sequence[float]) -> _FastHistogram:
        histogram = _FastHistogram(row, edges)
        self._registry.register(histogram)
        return histogram


def score_buckets(calibration: Calibration | None) -> tuple[float, ...]:
    """41 edges, a quarter of a standard deviation apart, five to each side of the mean; plain z without one."""
    mean, std = (calibration.mean, calibration.std) if calibration else (0.0, 1.0)
    return tuple(mean + std * z for z in _Z_EDGES)
