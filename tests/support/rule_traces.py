"""Traces of runs for the rules of Prometheus: features through real run monitors, scraped every few seconds of a made-up clock."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from rewardserve.model.traits import TRAITS
from rewardserve.service.observability.metrics import PREFIX, TABLE
from rewardserve.service.observability.runs import NAMES as RUNS
from rewardserve.service.observability.runs import RunsCollector
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from tests.support.service_fakes import StillClock

ATTRIBUTED = (
    "judge_contradicts", "artefact_share", "paid_novelty", "rejected_novelty", "prompt_relevance", "mode_collapse"
)  # fmt: skip
SCRAPE_S = 15
PER_SCRAPE = 256
JOB = {"job": "rewardserve"}
RUN = "ppo-7"


def healthy(rng, i, **fields):
    """A typical sample: responses to one prompt come eight at a time. `fields` are traits or those of the record."""
    usual = {"length": rng.gauss(4.0, 0.5), "repetition": max(0.0, rng.gauss(0.05, 0.03)), "markup": abs(rng.gauss(0, 0.2)),
             "flattery": float(rng.random() < 0.02), "refusal": float(rng.random() < 0.02)}  # fmt: skip
    traits = dict.fromkeys(TRAITS, 0.0) | usual
    traits |= {name: fields.pop(name) for name in TRAITS if name in fields}
    known = {"prompt_hash": i // 8, "retry_key": None, "reward": rng.random(), "score": rng.gauss(0, 1), "is_capped": False,
             "text_digest": rng.getrandbits(60), "spread": abs(rng.gauss(0.3, 0.1)), "audit": rng.gauss(0, 1),
             "components": (rng.gauss(0, 1), rng.gauss(0, 2))}  # fmt: skip
    if i % 10 == 0:
        known["is_honeypot_hit"] = False
    return SampleFeatures(**(known | {"traits": tuple(traits.values())} | fields))


@dataclass
class Phase:
    """So many scrapes of samples that `make(rng, i, t)` makes, t from 0 to 1."""

    scrapes: int
    make: Callable[[random.Random, int, float], SampleFeatures]
    kl: float | None = None
    id_reuse: bool = False
    attributed: dict[str, float] | None = None
    model: int = 0


def trace(phases, *, replicas=1, seed=0, baseline=None, per_scrape=PER_SCRAPE):
    """Every series of every replica, by its labels: one value a scrape, None before the first.

    The monitor of each replica gets the requests of 32 samples that it was sent at random.
    """
    rng, router = random.Random(seed), random.Random(seed)
    models = {phase.model: BaselineSource(baseline or Baseline(), ("one", "two")) for phase in phases}
    monitors = [RunMonitor(models[phases[0].model], MonitorLimits()) for _ in range(replicas)]
    series: dict[str, list[float | None]] = {}
    n, at = 0, 0
    for phase in phases:
        for scrape in range(phase.scrapes):
            for request in range(per_scrape // 32):
                samples = [phase.make(rng, n + j, scrape / phase.scrapes) for j in range(32)]
                n += 32
                monitor, now = router.choice(monitors), float(at * SCRAPE_S)
                monitor.set_baseline_source(RUN, models[phase.model], now)
                for content in range(2 if phase.id_reuse else 1):
                    monitor.add_sample_ids(RUN, [(hash((at, request, j)), content) for j in range(32)], now)
                monitor.observe(RUN, at, samples, now, phase.kl)
                if RUN in monitor.runs:
                    monitor.add_attributed(
                        RUN, phase.attributed or dict.fromkeys(ATTRIBUTED, 0.0), now, models[phase.model]
                    )
            for replica, monitor in enumerate(monitors):
                for labels, value in scraped(monitor, replica, float(at * SCRAPE_S)).items():
                    series.setdefault(labels, [None] * at).append(value)
            at += 1
            for values in series.values():
                values.extend([None] * (at - len(values)))
    return series


def scraped(monitor, replica, now):
    """The monitor's series of `/metrics`."""
    registry = CollectorRegistry()
    registry.register(
        RunsCollector(
            {row.name: row for row in TABLE if row.name in RUNS},
            PREFIX,
            monitor,
            StillClock(now),
            SimpleNamespace(collector_failed=print),
        )
    )
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = {**sample.labels, **JOB, "instance": f"replica-{replica}"}
            pairs = ",".join(f"{k}={json.dumps(v)}" for k, v in sorted(labels.items()))
            found[f"{sample.name}{{{pairs}}}"] = sample.value
    return found


def case(name, series, questions):
    """A test of promtool. `questions` are (seconds, PromQL, [labels of what is there then])."""
    return {
        "name": name,
        "interval": f"{SCRAPE_S}s",
        "input_series": [
            {"series": labels, "values": " ".join("_" if v is None else repr(float(v)) for v in values)}
            for labels, values in series.items()
        ],
        "promql_expr_test": [
            {
                "eval_time": f"{seconds}s",
                "expr": expr,
                "exp_samples": [{"labels": _text(each), "value": 1} for each in there],
            }
            for seconds, expr, there in questions
        ],
    }


def firing(alert=None, **labels):
    """PromQL for the alerts that fire, or for one of them with these labels."""
    only = {"alertstate": "firing", **({"alertname": alert} if alert else {}), **labels}
    return f"ALERTS{_text(only).removeprefix('ALERTS')}"


def _text(labels):
    return "ALERTS{" + ",".join(f"{k}={json.dumps(v)}" for k, v in labels.items()) + "}"


def promtool(folder, rules, cases):
    """Run `promtool test rules`: return its output where it fails, else None."""
    (folder / "rules.yml").write_text(rules)
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": f"{SCRAPE_S}s", "tests": cases}
    (folder / "tests.yml").write_text(json.dumps(tests))  # which is YAML, and written in no time
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    return None if done.returncode == 0 else done.stdout + done.stderr
