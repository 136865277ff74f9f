"""Every metric of the service, in one table, and the one place where each is counted.

Names and labels are binding (DESIGN, section 4). Knows no HTTP framework and no settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from model.calibration import Calibration
from model.reward import Pipeline, Reward

PREFIX = "reward_"
CONTENT_TYPE = CONTENT_TYPE_LATEST

Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COUNTS = tuple(float(2**k) for k in range(0, 11))
_TOKENS = tuple(float(2**k) for k in range(4, 19))
_Z_EDGES = tuple(-5.0 + 0.25 * k for k in range(41))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. The buckets of a histogram that has none here come from the calibration."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)


TABLE: tuple[Row, ...] = (
    Row("requests_total", "counter", "Requests answered.", ("route", "code")),
    Row("request_seconds", "histogram", "From the first byte of a request to the last of its answer.", ("route",), _SECONDS),
    Row("samples_total", "counter", "Samples by outcome: ok, or the code of the error.", ("outcome",)),
    Row("tokens_total", "counter", "Tokens by what became of them.", ("kind",)),
    Row("queue_samples", "gauge", "Rows that wait for a batch."),
    Row("queue_tokens", "gauge", "Tokens that wait for a batch."),
    Row("queue_seconds", "histogram", "How long a row waited for its batch.", (), _SECONDS),
    Row("batch_samples", "histogram", "Rows in a batch.", (), _COUNTS),
    Row("batch_tokens", "histogram", "Real tokens in a batch.", (), _TOKENS),
    Row("forward_seconds", "histogram", "One forward through the network.", (), _SECONDS),
    Row("batch_failures_total", "counter", "Forwards that gave no scores: out_of_memory, failed, or bug.", ("reason",)),
    Row("raw_score", "histogram", "Raw scores."),
    Row("value", "histogram", "Rewards as sent."),
    Row("capped_total", "counter", "Rewards that a cap has changed.", ("side",)),
    Row("model_info", "gauge", "What is loaded; the value is always 1.",
        ("name", "architecture", "backend", "engine", "dtype", "device", "contract", "calibration", "pipeline")),
    Row("model_epoch", "gauge", "How often a model was put into service."),
)  # fmt: skip

_CAPS: Mapping[str, str] = {
    "capped_low": "low",
    "softcapped_low": "low",
    "capped_high": "high",
    "softcapped_high": "high",
}


class Metrics:
    """A registry of our own with every row of the table, and one method for each kind of event."""

    def __init__(self) -> None:
        # Otherwise there is one more series for each, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._counters = {r.name: self._counter(r) for r in TABLE if r.kind == "counter"}
        self._gauges = {r.name: self._gauge(r) for r in TABLE if r.kind == "gauge"}
        # The buckets of the scores are known when the model is.
        self._histograms = {r.name: self._histogram(r, r.buckets) for r in TABLE if r.kind == "histogram" and r.buckets}

    def render(self) -> bytes:
        """The text that `GET /metrics` answers."""
        return generate_latest(self._registry)

    def model_ready(
        self, info: Mapping[str, str], epoch: int, calibration: Calibration | None, pipeline: Pipeline
    ) -> None:
        """A model is in service: name it, and give the score histograms their buckets. Once a process."""
        self._gauges["model_info"].labels(**info).set(1)
        self._gauges["model_epoch"].set(epoch)
        raw_edges = score_buckets(calibration)
        for row in TABLE:
            if row.kind == "histogram" and not row.buckets:
                edges = _Z_EDGES if row.name == "value" and pipeline.normalizes else raw_edges
                self._histograms[row.name] = self._histogram(row, edges)

    def watch_queue(self, n_samples: Callable[[], int], n_tokens: Callable[[], int]) -> None:
        """Read the length of the queue whenever somebody looks."""
        self._gauges["queue_samples"].set_function(n_samples)
        self._gauges["queue_tokens"].set_function(n_tokens)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._counters["requests_total"].labels(route=route, code=str(status)).inc()
        self._histograms["request_seconds"].labels(route=route).observe(seconds)

    def observe_sample(self, outcome: str, n_tokens: int | None, reward: Reward | None) -> None:
        """A sample has its reward, or an error."""
        self._counters["samples_total"].labels(outcome=outcome).inc()
        self._tokens("received", n_tokens or 0)
        if reward is not None:
            self._histograms["raw_score"].observe(reward.raw)
            self._histograms["value"].observe(reward.value)
            for side in {_CAPS[note] for note in reward.notes if note in _CAPS}:
                self._counters["capped_total"].labels(side=side).inc()

    def observe_batch(self, n_samples: int, n_tokens: int, n_computed: int, n_padding: int, seconds: float) -> None:
        """A batch went through the network."""
        self._histograms["batch_samples"].observe(n_samples)
        self._histograms["batch_tokens"].observe(n_tokens)
        self._histograms["forward_seconds"].observe(seconds)
        self._tokens("computed", n_computed)
        self._tokens("padding", n_padding)
        self._tokens("shared", max(0, n_tokens - n_computed))

    def observe_failure(self, reason: str) -> None:
        """A forward gave no scores. Its rows may have been tried again in smaller batches."""
        self._counters["batch_failures_total"].labels(reason=reason).inc()

    def observe_queue(self, seconds: Sequence[float]) -> None:
        """Rows left the queue for a batch."""
        for each in seconds:
            self._histograms["queue_seconds"].observe(each)

    def _tokens(self, kind: str, n: int) -> None:
        self._counters["tokens_total"].labels(kind=kind).inc(n)

    def _counter(self, row: Row) -> Counter:
        return Counter(PREFIX + row.name, row.help, row.labels, registry=self._registry)

    def _gauge(self, row: Row) -> Gauge:
        return Gauge(PREFIX + row.name, row.help, row.labels, registry=self._registry)

    def _histogram(self, row: Row, buckets: Sequence[float]) -> Histogram:
        return Histogram(PREFIX + row.name, row.help, row.labels, buckets=buckets, registry=self._registry)


def score_buckets(calibration: Calibration | None) -> tuple[float, ...]:
    """41 edges, a quarter of a standard deviation apart, five to each side of the mean; plain z without one."""
    mean, std = (calibration.mean, calibration.std) if calibration else (0.0, 1.0)
    return tuple(mean + std * z for z in _Z_EDGES)
