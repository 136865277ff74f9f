"""Figures of a measurement, from the outcomes of its requests. Independent of clocks and connections."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardserve.bench.closed_loop import HttpOutcome

_OK = 200
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(slots=True)
class Counts:
    """Counts over the requests so far. Every request is answered, refused or failed; every answered sample scored or failed.

    Refused: the server asks for a later attempt (Retry-After). `latencies_s` are those of answered requests.
    """

    latencies_s: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    retry_after_s: list[float] = field(default_factory=list)
    failed_requests: Counter[str] = field(default_factory=Counter)
    failed_samples: Counter[str] = field(default_factory=Counter)
    n_scored: int = 0
    n_cached: int = 0
    n_tokens: int = 0
    n_tokens_computed: int = 0
    tokens: list[int] = field(default_factory=list)
    first_message: str = ""
    """Message of the first request or sample without a score."""

    @property
    def n_requests(self) -> int:
        """All requests that were sent."""
        return len(self.latencies_s) + self.refused.total() + self.failed_requests.total()

    @property
    def is_complete(self) -> bool:
        """Whether every sample that was sent has a score."""
        return not (self.refused or self.failed_requests or self.failed_samples)

    def add(self, outcome: HttpOutcome) -> None:
        """Count one request."""
        reply = _json_of(outcome.content)
        if outcome.status == _OK and isinstance(reply.get("results"), list):
            self.latencies_s.append(outcome.latency_s)
            self._add_results(reply)
            return
        error = reply.get("error")
        error = error if isinstance(error, dict) else {}
        code = outcome.error or f"{outcome.status} {error.get('code', 'without a code')}"
        self.first_message = self.first_message or str(error.get("message", code))
        if outcome.retry_after_s is None:
            self.failed_requests[code] += 1
        else:
            self.refused[code] += 1
            self.retry_after_s.append(outcome.retry_after_s)

    def _add_results(self, reply: Mapping[str, Any]) -> None:
        for result in reply["results"]:
            if error := result["error"]:
                self.failed_samples[error["code"]] += 1
                self.first_message = self.first_message or error["message"]
                continue
            self.n_scored += 1
            self.n_cached += result["cached"]
            self.tokens.append(result["tokens"])
        self.n_tokens += reply["usage"]["tokens"]
        self.n_tokens_computed += reply["usage"]["tokens_computed"]


def figures(counts: Counts, wall_s: float) -> dict[str, Any]:
    """Throughput, latency and counts of a measurement of this duration."""
    return {
        "seconds": wall_s,
        "samples_per_s": counts.n_scored / wall_s,
        "tokens_per_s": counts.n_tokens / wall_s,
        "tokens_computed_per_s": counts.n_tokens_computed / wall_s,
        "latency_s": _summary(counts.latencies_s),
        "requests": {
            "sent": counts.n_requests,
            "answered": len(counts.latencies_s),
            "refused": dict(counts.refused),
            "retry_after_s": [min(counts.retry_after_s), max(counts.retry_after_s)] if counts.retry_after_s else None,
            "failed": dict(counts.failed_requests),
        },
        "samples": {
            "scored": counts.n_scored,
            "from_cache": counts.n_cached,
            "failed": dict(counts.failed_samples),
        },
        "tokens_per_sample": _summary(counts.tokens),
        "first_message": counts.first_message,
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, quantiles and maximum; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    quantiles = {name: quantile(ordered, share) for name, share in QUANTILES.items()}
    return {"mean": sum(ordered) / len(ordered), **quantiles, "max": ordered[-1]}


def _json_of(content: bytes) -> dict[str, Any]:
    """The object in a reply; empty if there is none."""
    try:
        reply = json.loads(content)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}
