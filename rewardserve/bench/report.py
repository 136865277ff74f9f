"""The record of a measurement as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rewardserve.model.text.printable import printable

_BUSY = 0.8
"""Share of a core from which the clients, which are one thread, may be what limits the figures."""


def text_of(record: Mapping[str, Any]) -> str:
    """Format a record as lines: what was measured, and the figures."""
    lines = [*_about(record), "", *_results(record)]
    return "\n".join(f"{name:13} {printable(said)}".rstrip() for name, said in (line or ("", "") for line in lines))


def _about(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    server, workload, machine = record["server"], record["workload"], record["machine"]
    model, backend = server["model"], server["model"]["backend"]
    engine = f"{backend['name']}, {backend['engine']}, {backend['dtype']} on {backend['device']}"
    here = (
        "started for this measurement"
        if server["started_here"]
        else "running; the machine below is that of the clients"
    )
    gpus = ", ".join(f"{machine['gpus'].count(name)} x {name}" for name in dict.fromkeys(machine["gpus"])) or "no GPU"
    cpu = f"{machine['cpu']} ({machine['instructions']})"
    run = f", run {workload['run']}" if workload["run"] else ""
    load = (
        f"{_count(workload['clients'], 'client')}, {_count(workload['samples_per_request'], 'sample')} a request{run}"
    )
    return [
        ("model", f"{model['model']} ({engine})"),
        ("server", f"{server['url']}, {here}"),
        ("machine", f"{cpu}, {machine['cores']} cores, {gpus}; load average {machine['load']:.1f} before"),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version != "none"),
        ),
        ("samples", workload["samples"]),
        ("load", f"{load}; after one request of each client that is not counted"),
    ]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _results(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    requests, samples, seconds = record["requests"], record["samples"], record["seconds"]
    cut = ", interrupted" if record["interrupted"] else ""
    lines = [
        ("samples/s", f"{_number(record['samples_per_s'])}  ({samples['scored']:,} scored in {seconds:.1f} s{cut})"),
        (
            "tokens/s",
            f"{_number(record['tokens_per_s'])}  ({_number(record['tokens_computed_per_s'])} computed){_lengths(record)}",
        ),
        ("latency", _latency(record["latency_s"], requests["answered"])),
        (
            "refused",
            _codes(requests["refused"], requests["sent"], "requests") + _retry_after(requests["retry_after_s"]),
        ),
        ("failed", _codes(requests["failed"], requests["sent"], "requests")),
        ("no score", _codes(samples["failed"], samples["scored"] + sum(samples["failed"].values()), "samples")),
    ]
    if samples["from_cache"]:
        lines += [
            ("cached", f"{samples['from_cache']:,} of the scored samples came from the score cache of the server")
        ]
    if record["workload"]["left_out"]:
        lines += [("left out", f"lines of the file that are no samples: {_listed(record['workload']['left_out'])}")]
    if record["first_message"]:
        lines += [("first message", record["first_message"])]
    lines += [("CPU", _cpu(record))]
    if record["warnings"]:
        lines += [("NOT TRUSTED", f"{'; '.join(record['warnings'])}. Measure again on a quiet machine")]
    return lines


def _lengths(record: Mapping[str, Any]) -> str:
    tokens = record["tokens_per_sample"]
    return f"; a sample has {tokens['mean']:.0f} tokens, p50 {tokens['p50']}, max {tokens['max']}" if tokens else ""


def _latency(latency_s: Mapping[str, float] | None, n_answered: int) -> str:
    if latency_s is None:
        return "no request was answered"
    figures = ", ".join(f"{name} {_duration(latency_s[name])}" for name in ("p50", "p95", "p99", "max"))
    return f"{figures}  ({n_answered:,} requests)"


def _codes(found: Mapping[str, int], n: int, what: str) -> str:
    return f"{sum(found.values()):,} of {n:,} {what}: {_listed(found)}" if found else "none"


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {n:,}" for code, n in sorted(found.items()))


def _retry_after(seconds: list[float] | None) -> str:
    if seconds is None:
        return ""
    low, high = seconds
    return f"; Retry-After {low:g} s" if low == high else f"; Retry-After {low:g} to {high:g} s"


def _cpu(record: Mapping[str, Any]) -> str:
    clients, server, seconds = record["cpu"]["clients_s"], record["cpu"]["server_s"], record["seconds"]
    parts = []
    if server:
        per_cpu_s = _number(record["samples"]["scored"] / server)
        parts.append(f"server {server / seconds:.2f} cores, {per_cpu_s} samples a CPU second")
    parts.append(f"clients {clients / seconds:.2f} cores")
    if clients > _BUSY * seconds:
        parts.append("which is one thread at its limit: the server may be faster; raise --per-request")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _number(value: float) -> str:
    """Three significant digits, all digits above 1,000."""
    if value >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
