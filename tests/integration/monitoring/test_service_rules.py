"""Alerts about the server itself, by promtool: silent while all is well, there while it is not, gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from service.observability.metrics import PREFIX, TABLE
from tests.integration.monitoring.test_tripwire_rules import needs_promtool
from tests.support.rule_traces import SCRAPE_S, case, firing, promtool

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "monitoring/prometheus/rules/service.yml"
SPAN = 160
"""Scrapes of each phase: forty minutes that are well, forty that are not, and forty that are well again."""

AT = 'job="rewardserve",instance="a"'


def gauge(name, well, ill, labels=""):
    """A series with one value while all is well and another while it is not; None: it is not there."""
    return {f"{name}{{{AT}{labels}}}": [well] * SPAN + [ill] * SPAN + [well] * SPAN}


def counter(name, well, ill, labels=""):
    """A series that grows by this much a scrape."""
    values, total = [], 0.0
    for step in [well] * SPAN + [ill] * SPAN + [well] * SPAN:
        values.append(total)
        total += step
    return {f"{name}{{{AT}{labels}}}": values}


def outcomes(**ill):
    known = {"ok": 100, **dict.fromkeys(ill, 0)}
    return {
        k: v
        for outcome, n in known.items()
        for k, v in counter("reward_samples_total", n, ill.get(outcome, n), f',outcome="{outcome}"').items()
    }


def answers(**ill):
    """Requests a scrape, by code."""
    return {
        k: v
        for code, n in {"200": 100, **dict.fromkeys(ill, 0)}.items()
        for k, v in counter("reward_requests_total", n, ill.get(code, n), f',route="/score",code="{code}"').items()
    }


def request_seconds():
    buckets = {"1": (100, 0), "10": (100, 0), "30": (100, 100), "+Inf": (100, 100)}
    return {
        k: v
        for le, (well, ill) in buckets.items()
        for k, v in counter("reward_request_seconds_bucket", well, ill, f',route="/score",le="{le}"').items()
    }


def starts():
    return {f"process_start_time_seconds{{{AT}}}": [0] * SPAN + [i // 8 for i in range(SPAN)] + [SPAN] * SPAN}


def two_replicas():
    labels = ',state="serving",contract="c",calibration="d",pipeline="e"'
    other = {
        f'reward_model_info{{job="rewardserve",instance="b",state="serving",contract="c",calibration="d",pipeline="{pipeline}"}}': [
            1 if there else None
        ]
        * SPAN
        + [None if there else 1] * SPAN
        + [1 if there else None] * SPAN
        for pipeline, there in (("e", True), ("f", False))
    }
    return gauge("reward_model_info", 1, 1, labels) | other


UP = gauge("up", 1, 1) | gauge("reward_model_epoch", 1, 1)
ILL = {
    "RewardServiceDown": gauge("up", 1, 0),
    "RewardServiceAbsent": gauge("up", 1, None),
    "RewardModelNotLoaded": gauge("reward_model_epoch", 1, 0),
    "RewardServerErrors": answers(**{"500": 5}),
    "RewardOverloaded": answers(**{"503": 20}),
    "RewardSlow": request_seconds(),
    "RewardSamplesFailing": outcomes(input_too_long=5),
    "RewardScoreNotFinite": outcomes(score_not_finite=0.1),
    "RewardRunBlocked": outcomes(run_blocked=1),
    "RewardScorerHanging": gauge("reward_scorer_hanging", 0, 1),
    "RewardBatchFailures": counter("reward_batch_failures_total", 0, 1, ',reason="failed"'),
    "RewardOutOfMemory": counter("reward_batch_failures_total", 0, 1, ',reason="out_of_memory"'),
    "RewardQueueGrowing": gauge("reward_queue_tokens", 100, 10**6) | gauge("reward_batch_budget_tokens", 8192, 8192),
    "RewardMemoryHigh": gauge("reward_device_memory_bytes", 50, 99, ',kind="used"')
    | gauge("reward_device_memory_bytes", 100, 100, ',kind="total"'),
    "RewardModelRefused": counter("reward_model_loads_total", 0, 1, ',outcome="refused"'),
    "RewardReplicasDiffer": two_replicas(),
    "RewardRestarting": starts(),
    "RewardAlarmsLost": counter("reward_alarms_lost_total", 0, 1),
    "RewardRunsWithoutRoom": counter("reward_runs_without_room_total", 0, 5),
    "RewardAuditSkipped": counter("reward_audit_skipped_total", 0, 5),
    "RewardWatchedThinly": counter("reward_looks_total", 50, 1, ',looked="yes"')
    | counter("reward_looks_total", 50, 99, ',looked="no"'),
}
"""What goes wrong in the middle phase, by the alert that it is about."""

ALERTS = {r["alert"]: r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]}


def test_every_alert_has_a_case():
    assert set(ILL) == set(ALERTS)


@pytest.mark.parametrize("alert", sorted(ILL))
def test_it_names_metrics_that_there_are_and_says_what_to_do(alert):
    rule = ALERTS[alert]
    known = {PREFIX + row.name for row in TABLE}
    for name in {word for word in _words(rule["expr"]) if word.startswith(PREFIX)}:
        assert name.removesuffix("_bucket") in known
    assert {"summary", "description", "action", "runbook_url"} == set(rule["annotations"])
    assert "How sure: " in rule["annotations"]["description"]


@needs_promtool
@pytest.mark.parametrize("alert", sorted(ILL))
def test_it_fires_while_something_is_wrong_and_not_before_and_clears_after(alert, tmp_path):
    series = UP | ILL[alert]
    well, ill, again = (SCRAPE_S * SPAN * n - 5 for n in (1, 2, 3))
    test = case(alert, series, [(well, firing(), []), (again, firing(), [])])
    test["promql_expr_test"].append(
        {"eval_time": f"{ill}s", "expr": f"count({firing(alert)})", "exp_samples": [{"labels": "{}", "value": 1}]}
    )
    assert promtool(tmp_path, RULES.read_text(), [test]) is None


def _words(expression):
    return "".join(c if c.isalnum() or c in "_:" else " " for c in expression).split()
