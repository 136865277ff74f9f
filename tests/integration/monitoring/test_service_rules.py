"""Alerts about the server itself, by promtool: silent while all is well, there while it is not, gone afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rewardserve.service.observability.metrics import PREFIX, TABLE
from tests.integration.monitoring.test_tripwire_rules import needs_promtool
from tests.support.rule_traces import SCRAPE_S, case, firing, promtool

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "monitoring/prometheus/rules/service.yml"
SPAN = 160
"""Scrapes of each phase: forty minutes that are well, forty that are not, and forty that are well again."""

AT = 'job="any-name",instance="a"'


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
        for k, v in counter("rewardserve_samples_total", n, ill.get(outcome, n), f',outcome="{outcome}"').items()
    }


def answers(route="/get_reward", **ill):
    """Requests a scrape to a route that scores, by code."""
    return {
        k: v
        for code, n in {"200": 100, **dict.fromkeys(ill, 0)}.items()
        for k, v in counter(
            "rewardserve_requests_total", n, ill.get(code, n), f',route="{route}",kind="scoring",code="{code}"'
        ).items()
    }


def request_seconds():
    buckets = {"1": (100, 0), "10": (100, 0), "30": (100, 100), "+Inf": (100, 100)}
    return {
        k: v
        for le, (well, ill) in buckets.items()
        for k, v in counter(
            "rewardserve_request_seconds_bucket", well, ill, f',route="/classify",kind="scoring",le="{le}"'
        ).items()
    }


def failures(reason, ill, forwards=20):
    """Forwards that fail, beside those that give scores."""
    return counter("rewardserve_batch_failures_total", 0, ill, f',reason="{reason}"') | counter(
        "rewardserve_forward_seconds_count", forwards, forwards
    )


def starts():
    return {f"process_start_time_seconds{{{AT}}}": [0] * SPAN + [i // 8 for i in range(SPAN)] + [SPAN] * SPAN}


def two_replicas():
    def info(instance, pipeline, *there):
        labels = f'job="any-name",instance="{instance}",name="n",contract="c",calibration="d",pipeline="{pipeline}"'
        values = [1 if each else None for each in there for _ in range(SPAN)]
        return {f'rewardserve_model_info{{{labels},state="serving"}}': values}

    return info("a", "e", True, True, True) | info("b", "e", True, False, True) | info("b", "f", False, True, False)


UP = gauge("up", 1, 1) | gauge("rewardserve_model_version", 1, 1)
ILL = {
    "RewardServiceDown": gauge("up", 1, 0),
    "RewardServiceAbsent": gauge("up", 1, None) | gauge("rewardserve_model_version", 1, None),
    "RewardModelNotLoaded": gauge("rewardserve_model_version", 1, 0),
    "RewardServerErrors": answers(**{"500": 5}),
    "RewardOverloaded": answers(**{"503": 20}),
    "RewardSlow": request_seconds() | answers(),
    "RewardSamplesFailing": outcomes(input_too_long=5),
    "RewardScoreNotFinite": outcomes(score_not_finite=2),
    "RewardScoreSometimesNotFinite": outcomes(score_not_finite=0.1),
    "RewardRunBlocked": outcomes(run_blocked=1),
    "RewardScorerHanging": gauge("rewardserve_scorer_hanging", 0, 1),
    "RewardBatchFailures": failures("failed", 1),
    "RewardOutOfMemory": failures("out_of_memory", 1),
    "RewardQueueGrowing": gauge("rewardserve_queue_tokens", 100, 10**6)
    | gauge("rewardserve_batch_budget_tokens", 8192, 8192),
    "RewardMemoryHigh": gauge("rewardserve_device_memory_bytes", 50, 99, ',kind="used"')
    | gauge("rewardserve_device_memory_bytes", 100, 100, ',kind="total"'),
    "RewardModelRefused": counter("rewardserve_model_loads_total", 0, 1, ',outcome="refused"'),
    "RewardCanariesFailing": gauge("rewardserve_canary_margin", 0.5, -0.5, ',canary="opener"'),
    "RewardReplicasDiffer": two_replicas(),
    "RewardRestarting": starts(),
    "RewardAlertsLost": counter("rewardserve_alerts_lost_total", 0, 1),
    "RewardRunsOverLimit": counter("rewardserve_runs_over_limit_total", 0, 5),
    "RewardAuditSkipped": counter("rewardserve_audit_skipped_total", 0, 5),
    "RewardSamplesNotInspected": counter("rewardserve_samples_inspected_total", 50, 1, ',outcome="inspected"')
    | counter("rewardserve_samples_inspected_total", 50, 99, ',outcome="skipped"'),
    "RewardMetricsIncomplete": counter("rewardserve_collector_failures_total", 0, 1, ',part="runs"'),
}
"""What goes wrong in the middle phase, by the alert that it is about."""

ALERTS = {r["alert"]: r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"] if "alert" in r}


def test_every_alert_has_a_case():
    assert set(ILL) == set(ALERTS)


@pytest.mark.parametrize("alert", sorted(ILL))
def test_it_names_metrics_that_there_are_and_says_what_to_do(alert):
    rule = ALERTS[alert]
    known = {PREFIX + row.name for row in TABLE}
    for name in {word for word in _words(rule["expr"]) if word.startswith(PREFIX)}:
        assert name.removesuffix("_bucket").removesuffix("_count") in known
    assert {"summary", "description", "action", "runbook_url"} == set(rule["annotations"])
    assert "Confidence: " in rule["annotations"]["description"]


@pytest.mark.sweep(8)
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


# -- alerts that must not fire, and similar cases -------------------------------------------------------------------------


def fired(folder, alert, series, *at_s):
    """Whether an alert fires at one of these times."""
    test = case(alert, series, [(seconds, firing(alert), []) for seconds in at_s])
    return promtool(folder, RULES.read_text(), [test]) is not None


ILL_S = SCRAPE_S * SPAN * 2 - 5


@needs_promtool
def test_deadlines_that_callers_have_set_do_not_page_however_many(tmp_path):
    assert not fired(tmp_path, "RewardServerErrors", UP | answers(**{"504": 100}), ILL_S)


@needs_promtool
def test_one_error_in_fifteen_hundred_requests_does_not_page_on_any_route(tmp_path):
    """The error is the only request of its route: its share of that route would be infinite or all."""
    once = [0] * SPAN + [1] * 2 * SPAN
    before = {**counter("rewardserve_requests_total", 75, 75, ',route="/score",kind="scoring",code="200"'),
              f'rewardserve_requests_total{{{AT},route="/compare",kind="scoring",code="500"}}': once}  # fmt: skip
    at_s = [SCRAPE_S * at for at in (SPAN + 1, SPAN + 4, SPAN + 12, SPAN + 40)]
    assert not fired(tmp_path, "RewardServerErrors", UP | before, *at_s)


@needs_promtool
def test_errors_of_routes_that_do_not_score_are_not_the_scorers(tmp_path):
    series = counter("rewardserve_requests_total", 0, 50, ',route="/admin/models",kind="other",code="500"')
    assert not fired(tmp_path, "RewardServerErrors", UP | series | answers(), ILL_S)


@needs_promtool
def test_a_trainer_with_few_large_requests_is_not_below_the_floor(tmp_path):
    """One request in five minutes, and each of them fails."""
    failing = [i // 20 for i in range(3 * SPAN)]
    series = {f'rewardserve_requests_total{{{AT},route="/get_reward",kind="scoring",code="500"}}': failing}
    assert fired(tmp_path, "RewardServerErrors", UP | series, ILL_S)


@needs_promtool
def test_a_second_model_in_the_same_job_is_no_difference_of_replicas(tmp_path):
    series = {}
    for instance, name, digest in (("a", "kind", "1"), ("b", "kind", "1"), ("c", "strict", "2")):
        labels = (
            f'job="j",instance="{instance}",name="{name}",state="serving",contract="{digest}",calibration="{digest}"'
        )
        series[f"rewardserve_model_info{{{labels}}}"] = [1] * SPAN
    assert not fired(tmp_path, "RewardReplicasDiffer", series, SCRAPE_S * SPAN - 15)
    differs = {key.replace('name="strict"', 'name="kind"'): values for key, values in series.items()}
    assert fired(tmp_path, "RewardReplicasDiffer", differs, SCRAPE_S * SPAN - 15)


@needs_promtool
def test_targets_of_others_in_a_job_are_not_taken_for_servers(tmp_path):
    """A job of all pods of a cluster: one is a server, one is something else and down, one restarts again and again."""
    series = {
        **gauge("up", 1, 1), **gauge("rewardserve_model_version", 1, 1),
        'up{job="any-name",instance="database"}': [0] * 3 * SPAN,
        'up{job="any-name",instance="cache"}': [1] * 3 * SPAN,
        'process_start_time_seconds{job="any-name",instance="cache"}': list(range(3 * SPAN)),
    }  # fmt: skip
    assert not fired(tmp_path, "RewardServiceDown", series, ILL_S)
    assert not fired(tmp_path, "RewardRestarting", series, ILL_S)


@needs_promtool
def test_a_server_that_never_came_up_is_found_in_a_job_of_servers(tmp_path):
    series = UP | {'up{job="any-name",instance="new"}': [0] * 3 * SPAN}
    assert fired(tmp_path, "RewardServiceDown", series, ILL_S)


@needs_promtool
def test_a_job_that_is_gone_is_told_while_another_job_is_still_there(tmp_path):
    other = {
        'up{job="other",instance="b"}': [1] * 3 * SPAN,
        'rewardserve_model_version{job="other",instance="b"}': [1] * 3 * SPAN,
    }
    gone = gauge("up", 1, None) | gauge("rewardserve_model_version", 1, None) | other
    assert fired(tmp_path, "RewardServiceAbsent", gone, ILL_S)
    assert not fired(tmp_path, "RewardServiceAbsent", UP | other, ILL_S)


@needs_promtool
def test_without_any_server_ever_there_is_an_alert(tmp_path):
    assert fired(tmp_path, "RewardServiceAbsent", {'up{job="node",instance="n"}': [1] * 3 * SPAN}, ILL_S)


def test_no_alert_names_a_job():
    for path in RULES.parent.glob("*.yml"):
        for rule in [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]:
            assert not re.search(r"\bjob\s*(=|!)", rule["expr"]), rule


def test_every_number_in_a_text_has_its_threshold_and_no_metric_prefix():
    for name, rule in ALERTS.items():
        said = rule["annotations"]["summary"] + rule["annotations"]["description"]
        assert not re.search(r"\{\{\s*\$value\s*(\|\s*humanize\s*)?\}\}", said), name
        if "$value" in said and name != "RewardReplicasDiffer":
            assert "threshold" in said or "more than" in said, name


# -- what happens once ------------------------------------------------------------------------------------------------------


def once(name, amount, labels=""):
    """A counter that grows a single time, by this much, in the middle."""
    return {f"{name}{{{AT}{labels}}}": [0] * SPAN + [amount] * 2 * SPAN}


def traffic(name, a_scrape, labels):
    return counter(name, a_scrape, a_scrape, labels)


SCORING = ',route="/score",kind="scoring",code="200"'
EVENTS = {
    "RewardServerErrors": lambda n, busy: (
        once("rewardserve_requests_total", n, ',route="/score",kind="scoring",code="500"')
        | traffic("rewardserve_requests_total", busy, SCORING)
    ),
    "RewardOverloaded": lambda n, busy: (
        once("rewardserve_requests_total", n, ',route="/score",kind="scoring",code="503"')
        | traffic("rewardserve_requests_total", busy, SCORING)
    ),
    "RewardSlow": lambda n, busy: (
        once("rewardserve_request_seconds_bucket", n, ',route="/score",kind="scoring",le="+Inf"')
        | once("rewardserve_request_seconds_bucket", 0, ',route="/score",kind="scoring",le="10"')
        | once("rewardserve_requests_total", n, SCORING)
    ),
    **{
        alert: lambda n, busy, outcome=outcome: (
            once("rewardserve_samples_total", n, f',outcome="{outcome}"')
            | traffic("rewardserve_samples_total", busy, ',outcome="ok"')
        )
        for alert, outcome in {
            "RewardSamplesFailing": "input_too_long",
            "RewardScoreNotFinite": "score_not_finite",
            "RewardScoreSometimesNotFinite": "score_not_finite",
            "RewardRunBlocked": "run_blocked",
        }.items()
    },
    **{
        alert: lambda n, busy, reason=reason: (
            once("rewardserve_batch_failures_total", n, f',reason="{reason}"')
            | traffic("rewardserve_forward_seconds_count", busy, "")
        )
        for alert, reason in {"RewardBatchFailures": "failed", "RewardOutOfMemory": "out_of_memory"}.items()
    },
    "RewardRunsOverLimit": lambda n, busy: once("rewardserve_runs_over_limit_total", n),
    "RewardAuditSkipped": lambda n, busy: once("rewardserve_audit_skipped_total", n),
    "RewardMetricsIncomplete": lambda n, busy: once("rewardserve_collector_failures_total", n, ',part="runs"'),
}
ONE_IS_ENOUGH = {"RewardModelRefused", "RewardAlertsLost"}
"""Each of these has to be looked at, and none pages."""


def test_every_alert_about_something_that_is_counted_has_an_event_that_happens_once():
    counted = {
        name for name, rule in ALERTS.items() if re.search(r"increase|rate\(|changes\(reward", _resolved(rule["expr"]))
    }
    assert counted - ONE_IS_ENOUGH - {"RewardSamplesNotInspected"} == set(EVENTS)
    assert {ALERTS[name]["labels"]["severity"] for name in ONE_IS_ENOUGH} == {"warn"}


def _resolved(expression):
    return re.sub(r"reward:\w+:\w+", lambda name: RECORDS.get(name[0], ""), expression)


RECORDS = {
    r["record"]: r["expr"] for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"] if "record" in r
}


@pytest.mark.sweep(5)
@needs_promtool
@pytest.mark.parametrize("alert", sorted(EVENTS))
def test_what_happens_once_fires_nothing_however_large_it_is_and_however_little_else_happens(tmp_path, alert):
    """One request of many samples, or one batch whose rows are all tried alone; an instance for each size and traffic."""
    series = dict(UP)
    for n in (1, 5, 65, 1024):
        for busy in (0, 1, 100):
            of_instance = {
                name.replace('instance="a"', f'instance="{n}-{busy}"'): v for name, v in EVENTS[alert](n, busy).items()
            }
            series |= {name: values[SPAN - 20 : 2 * SPAN] for name, values in of_instance.items()}
    looks = [(SCRAPE_S * (20 + scrapes), firing(alert), []) for scrapes in (1, 4, 9, 12, 21, 28, 41, 60, 100, 159)]
    assert promtool(tmp_path, RULES.read_text(), [case(alert, series, looks)]) is None


@needs_promtool
@pytest.mark.parametrize("alert", ["RewardBatchFailures", "RewardScoreNotFinite", "RewardServerErrors"])
def test_what_goes_on_failing_pages_also_where_there_is_little_traffic(tmp_path, alert):
    """One event in five minutes, and each of them fails."""
    failing = [i // 20 * (10 if alert == "RewardScoreNotFinite" else 1) for i in range(3 * SPAN)]
    series = {
        "RewardBatchFailures": {f'rewardserve_batch_failures_total{{{AT},reason="failed"}}': failing}
        | counter("rewardserve_forward_seconds_count", 0, 0),
        "RewardScoreNotFinite": {f'rewardserve_samples_total{{{AT},outcome="score_not_finite"}}': failing},
        "RewardServerErrors": {f'rewardserve_requests_total{{{AT},route="/score",kind="scoring",code="500"}}': failing},
    }[alert]
    assert fired(tmp_path, alert, UP | series, ILL_S)
