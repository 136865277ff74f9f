"""The alert rules, by promtool, on the counters of real boards: each alert fires on its exploit, not before it, and clears."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rewardserve.service.tripwires.alert import CANARY, VOTE
from rewardserve.service.tripwires.baseline import Baseline, BaselineStat
from rewardserve.service.tripwires.config import WireConfig, parse_wire_config
from rewardserve.service.tripwires.prometheus import alert_name, groups, rules_text
from rewardserve.service.tripwires.running_sums import count_of
from rewardserve.service.tripwires.wires import ALERT_TEXTS, WIRES, cause_of
from tests.support.rule_traces import JOB, RUN, SCRAPE_S, Phase, case, firing, healthy, promtool, trace

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "monitoring/prometheus/rules/tripwires.yml"
QUIET, EXPLOIT, AFTER = 40, 20, 24
"""Scrapes: ten minutes of a usual stream, five of an exploit, and six more of a usual one."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is not installed")


def usual(rng, i, t):
    return healthy(rng, i)


def doing(**fields):
    return Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, **fields))


EXPLOITS = {
    "capped": doing(is_capped=True),
    "flat_groups": doing(reward=1.0),
    "length_high": doing(length=4.6),
    "length_low": doing(length=3.2),
    "missing_end": doing(missing_end=1.0),
    "repetition": doing(repetition=0.4),
    "refusal": doing(refusal=1.0),
    "flattery": doing(flattery=1.0),
    "markup": doing(markup=1.0),
    "judge_injection": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, judge_injection=float(i % 12 == 0))),
    "empty_opener": doing(empty_opener=1.0),
    "control_tokens": doing(control_tokens=1.0),
    "foreign_script": doing(foreign_script=0.5),
    "duplicate_across_prompts": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, text_digest=i % 8)),
    "probing": doing(text_digest=7, prompt_hash=7),
    "id_reuse": Phase(EXPLOIT, usual, id_reuse=True),
    "spread": doing(spread=1.5),
    "component_share": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, components=(rng.gauss(1, 3), rng.gauss(0, 1)))),
    "audit_gap": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, audit=rng.gauss(-2, 1))),
    "audit_drift": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, audit=rng.gauss(-3 * t, 1))),
    "divergence": Phase(
        EXPLOIT, lambda rng, i, t: healthy(rng, i, score=rng.gauss(3 * t, 1), audit=rng.gauss(-2 * t, 1))
    ),
    "judge_contradicts": Phase(EXPLOIT, usual, attributed={"judge_contradicts": 0.7}),
    "artefact_share": Phase(EXPLOIT, usual, attributed={"artefact_share": 0.3}),
    "prompt_relevance": Phase(EXPLOIT, usual, attributed={"prompt_relevance": 0.5}),
    "paid_novelty": Phase(EXPLOIT, usual, attributed={"paid_novelty": 0.2}),
    "rejected_novelty": Phase(EXPLOIT, usual, attributed={"rejected_novelty": 0.3}),
    "mode_collapse": Phase(EXPLOIT, usual, attributed={"mode_collapse": 0.5}),
    "honeypots": Phase(EXPLOIT, lambda rng, i, t: healthy(rng, i, is_honeypot_hit=i % 3 == 0 if i % 10 == 0 else None)),
    "kl": Phase(EXPLOIT, usual, kl=50.0),
    VOTE: doing(length=5.5, repetition=0.5, flattery=2.0),
}


@needs_promtool
def test_a_run_that_gets_another_model_is_not_compared_with_what_was_usual_for_the_one_before(tmp_path):
    """Its rewards lie elsewhere from then on, and those of both models are never taken for one stream."""
    rules = rules_text(parse_wire_config({"wires": {"score_shift": {"severity": "page"}}}))
    before = Phase(QUIET, lambda rng, i, t: healthy(rng, i, score=rng.gauss(0, 1)))
    drifted = Phase(QUIET, lambda rng, i, t: healthy(rng, i, score=rng.gauss(6, 2)))
    silent = [((QUIET + n) * SCRAPE_S, firing("RewardScoreShift"), []) for n in (2, 6, 10, 20, 35)]
    another = trace([before, replace(drifted, model=1)], replicas=2)
    assert promtool(tmp_path, rules, [case("another model", another, silent)]) is None
    assert promtool(tmp_path, rules, [case("the same model", trace([before, drifted], replicas=2), silent)]) is not None


def test_every_alert_has_a_case():
    assert set(EXPLOITS) == {w.name for w in WIRES if w.severity != "note"} | {VOTE}
    named = {rule["alert"] for prompt_hash in groups(WireConfig()) for rule in prompt_hash["rules"] if "alert" in rule}
    monitors = {"RewardTripwirePaged", "RewardTripwireWarned", "RewardCanary", "RewardRulesStale"}
    assert named == {alert_name(wire) for wire in EXPLOITS} | monitors


def test_the_shipped_rules_are_those_of_the_shipped_thresholds():
    assert SHIPPED.read_text() == rules_text(WireConfig()), (
        "write them again: rewardserve rules > monitoring/prometheus/rules/tripwires.yml"
    )


def test_every_alert_says_what_it_means_how_sure_it_is_and_what_to_do():
    for prompt_hash in groups(WireConfig()):
        for rule in prompt_hash["rules"]:
            if "alert" in rule:
                said = rule["annotations"]
                assert {"summary", "description", "action", "runbook_url"} <= set(said)
                assert "Confidence: " in said["description"]
                assert rule["labels"]["severity"] in ("warn", "page")
    assert set(ALERT_TEXTS) == {wire.name for wire in WIRES} | {VOTE, CANARY}


def test_a_note_may_be_made_a_warning():
    plan = parse_wire_config({"wires": {"score_shift": {"severity": "warn"}, "distance": {"severity": "page"}}})
    alerts = {
        r["alert"]: r["labels"]["severity"]
        for prompt_hash in groups(plan)
        for r in prompt_hash["rules"]
        if "alert" in r
    }
    assert (alerts["RewardScoreShift"], alerts["RewardDistance"]) == ("warn", "page")


def test_every_alert_has_an_entry_in_the_runbook():
    runbook = (ROOT / "docs/how-to/runbook.md").read_text()
    for path in SHIPPED.parent.glob("*.yml"):
        for prompt_hash in yaml.safe_load(path.read_text())["groups"]:
            for rule in prompt_hash["rules"]:
                if "alert" in rule:
                    assert f"### {rule['alert']}\n" in runbook, rule["alert"]
                    assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")


def test_an_operators_thresholds_are_those_of_the_rules():
    plan = parse_wire_config(
        {
            "wires": {"flattery": {"threshold": 7.123456789, "severity": "page"}, "markup": {"severity": "off"}},
            "votes_for_a_page": 5,
        }
    )
    by_alert = {r["alert"]: r for prompt_hash in groups(plan) for r in prompt_hash["rules"] if "alert" in r}
    assert by_alert["RewardFlattery"]["expr"].endswith("> 7.123456789"), "as the server has it, to the last digit"
    assert by_alert["RewardFlattery"]["labels"]["severity"] == "page"
    assert "RewardMarkup" not in by_alert
    assert by_alert["RewardHacking"]["expr"].endswith(">= 5")
    assert "markup" not in rules_text(plan)


KNOWN = Baseline(
    {"length": BaselineStat(4.0, 0.5), "repetition": BaselineStat(0.05, 0.03), "flattery": BaselineStat(0.02, 0.14),
     "score": BaselineStat(0.0, 1.0), "component_0": BaselineStat(0.0, 1.0), "component_1": BaselineStat(0.0, 2.0)},
    saturation=3.1,
)  # fmt: skip
"""As a calibration would say it: the same for every replica."""


def exploited(wire, replicas, baseline=None):
    return trace(
        [Phase(QUIET, usual), EXPLOITS[wire], Phase(AFTER, usual, kl=1.0)],
        replicas=replicas,
        seed=3,
        baseline=baseline,
    )


def seconds(scrapes):
    return SCRAPE_S * scrapes - 5


@pytest.mark.sweep(6)
@needs_promtool
@pytest.mark.parametrize("wire", sorted(EXPLOITS))
def test_each_alert_fires_on_its_exploit_and_not_before_and_clears_after(wire, tmp_path):
    alert = alert_name(wire)
    severity = "page" if wire == VOTE else next(w.severity for w in WIRES if w.name == wire)
    cause = {"cause": cause_of(wire)}
    there = {"alertname": alert, "alertstate": "firing", "run": RUN, "severity": severity, "wire": wire, **cause,
             **JOB}  # fmt: skip
    questions = [
        (seconds(QUIET), firing(), []),
        (seconds(QUIET + EXPLOIT), firing(alert), [there]),
        (seconds(QUIET + EXPLOIT + AFTER), firing(alert), []),
    ]
    assert promtool(tmp_path, rules_text(WireConfig()), [case(wire, exploited(wire, 1), questions)]) is None


@pytest.mark.sweep(1)
@needs_promtool
@pytest.mark.parametrize("wire", ["length_high", "judge_injection", "component_share", VOTE])
def test_it_does_not_matter_how_many_replicas_serve_a_run(wire, tmp_path):
    """At every scrape the same alerts, whether one replica saw everything or four a part each."""
    everywhen = [seconds(n) for n in range(4, QUIET + EXPLOIT + AFTER)]
    fired = {}
    for replicas in (1, 4):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        questions = [(at, firing(alert_name(wire)), []) for at in everywhen]
        output = promtool(folder, rules_text(WireConfig()), [case(wire, exploited(wire, replicas, KNOWN), questions)])
        fired[replicas] = re.findall(r"time: (\w+)", output or "")
    assert len(fired[1]) > EXPLOIT / 2
    assert fired[1] == fired[4]


@needs_promtool
def test_what_is_usual_is_learned_by_all_replicas_together(tmp_path):
    """Four boards learn from other samples than one, and all the same the alert comes at the same scrape, give or take one."""
    first = []
    for replicas in (1, 4):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        questions = [(seconds(n), firing("RewardLengthHigh"), []) for n in range(4, QUIET + EXPLOIT + AFTER)]
        output = promtool(
            folder, rules_text(WireConfig()), [case("length", exploited("length_high", replicas), questions)]
        )
        first.append(
            next(
                minutes * 60 + at
                for minutes, at in ((int(m), int(s)) for m, s in re.findall(r"time: (\d+)m(\d+)s", output))
            )
        )
    assert abs(first[0] - first[1]) <= SCRAPE_S


def first_trip(series, wire):
    """The first scrape at which a replica has this alert."""
    tripped = [
        values for labels, values in series.items() if "tripwire_tripped" in labels and f'wire="{wire}"' in labels
    ]
    return next((n for n, values in enumerate(zip(*tripped, strict=True)) if 1.0 in values), None)


@needs_promtool
@pytest.mark.parametrize("replicas", [1, 2])
def test_audit_gap_is_that_with_which_each_named_task_began(replicas, tmp_path):
    """Another task, for which the judge is stricter from its start, raises no alert; a judge that becomes stricter does."""

    def of_task(task, gap):
        return Phase(QUIET, lambda rng, i, t: healthy(rng, i, task=task, audit=rng.gauss(-gap, 1)))

    curriculum = [of_task("chat", 0.0), of_task("code", 1.0)]
    silent = [(seconds(n), firing("RewardAuditGap"), []) for n in range(4, 2 * QUIET, 2)]
    honest = trace(curriculum, replicas=replicas)
    assert first_trip(honest, "audit_gap") is None
    assert promtool(tmp_path, rules_text(WireConfig()), [case("curriculum", honest, silent)]) is None
    exploited = [(seconds(3 * QUIET), firing("RewardAuditGap"), [])]
    series = trace([*curriculum, of_task("code", 2.6)], replicas=replicas)
    assert "RewardAuditGap" in (promtool(tmp_path, rules_text(WireConfig()), [case("gap", series, exploited)]) or "")


@needs_promtool
def test_audit_gap_is_not_held_back_by_the_many_audits_of_the_start(tmp_path):
    """All samples of the start have an audit, later every tenth: the rule fires as soon as the wire does."""

    def sampled(scrapes, gap, every):
        def make(rng, i, t):
            return healthy(rng, i, audit=rng.gauss(-gap, 1) if i // 8 % every == 0 else None)

        return Phase(scrapes, make)

    series = trace([sampled(4, 0.0, 1), sampled(60, 1.4, 10)], per_scrape=64)
    tripped = first_trip(series, "audit_gap")
    assert tripped is not None
    questions = [(seconds(n), firing("RewardAuditGap"), []) for n in range(1, 64)]
    output = promtool(tmp_path, rules_text(WireConfig()), [case("dense start", series, questions)]) or ""
    fired = [int(m or 0) * 60 + int(s) for m, s in re.findall(r"time: (?:(\d+)m)?(\d+)s", output)]
    assert abs(min(fired) - seconds(tripped)) <= SCRAPE_S


@needs_promtool
def test_a_score_that_the_audit_judge_follows_does_not_diverge(tmp_path):
    together = Phase(160, lambda rng, i, t: healthy(rng, i, score=2 * t + rng.gauss(0, 1), audit=t + rng.gauss(0, 1)))
    silent = [(seconds(168), firing("RewardDivergence"), [])]
    assert (
        promtool(tmp_path, rules_text(WireConfig()), [case("together", trace([Phase(8, usual), together]), silent)])
        is None
    )


@needs_promtool
def test_a_run_with_few_samples_is_looked_at_over_a_longer_window(tmp_path):
    """Thirty-two samples a scrape: a fifth of what the shortest window needs."""
    slow = trace([Phase(80, usual), Phase(80, EXPLOITS["flattery"].make)], per_scrape=32)
    assert promtool(tmp_path, rules_text(WireConfig()), [case("slow", slow, [(seconds(80), firing(), [])])]) is None
    output = promtool(
        tmp_path, rules_text(WireConfig()), [case("slow", slow, [(seconds(160), firing("RewardFlattery"), [])])]
    )
    assert "RewardFlattery" in output


@needs_promtool
def test_what_a_monitor_has_latched_fires_until_it_is_acknowledged(tmp_path):
    def tripped(wire, *values):
        labels = f'run="r",wire="{wire}",cause="{cause_of(wire)}",instance="a",job="rewardserve"'
        return {f"rewardserve_tripwire_tripped{{{labels}}}": [*values]}

    page = {
        "alertname": "RewardTripwirePaged",
        "alertstate": "firing",
        "run": "r",
        "severity": "page",
        "cause": "policy",
        **JOB,
    }
    warn = {
        "alertname": "RewardTripwireWarned",
        "alertstate": "firing",
        "run": "r",
        "severity": "warn",
        "cause": "policy",
        **JOB,
    }
    canary = {
        "alertname": "RewardCanary",
        "alertstate": "firing",
        "run": "canaries",
        "severity": "page",
        "wire": "canary",
        "cause": "model",
        **JOB,
    }
    latched = {}
    for wire in (
        "judge_injection",
        VOTE,
        "honeypots",
        "markup",
        "flattery",
    ):  # one alert for each severity, however many wires
        latched |= tripped(wire, *[0] * 4, *[1] * 4, *[0] * 4)
    changed = {k.replace('run="r"', 'run="canaries"'): v for k, v in tripped("canary", 0, 0, 1, 1, 0).items()}
    cases = [
        case("latched", latched, [(45, firing(), []), (105, firing(), [page, warn]), (170, firing(), [])]),
        case("tampered", changed, [(15, firing(), []), (45, firing("RewardCanary"), [canary]), (70, firing(), [])]),
    ]
    assert promtool(tmp_path, rules_text(WireConfig()), cases) is None


@needs_promtool
def test_rules_of_another_plan_than_the_servers_are_told(tmp_path):
    other = rules_text(parse_wire_config({"wires": {"judge_injection": {"threshold": 0.5}}}))
    stale = {
        "alertname": "RewardRulesStale",
        "alertstate": "firing",
        "severity": "warn",
        "wire": "judge_injection",
        **JOB,
    }
    series = trace([Phase(60, usual)], per_scrape=32)
    assert (
        promtool(
            tmp_path, rules_text(WireConfig()), [case("same", series, [(seconds(60), firing("RewardRulesStale"), [])])]
        )
        is None
    )
    assert (
        promtool(tmp_path, other, [case("other", series, [(seconds(60), firing("RewardRulesStale"), [stale])])]) is None
    )


@needs_promtool
def test_an_alert_names_run_and_step(tmp_path):
    (rule,) = [r for prompt_hash in groups(WireConfig()) for r in prompt_hash["rules"] if r.get("alert") == "RewardKl"]
    series = {
        labels: values
        for labels, values in exploited("kl", 1).items()
        if "run_kl" in labels or "run_step" in labels or 'of="samples"' in labels
    }
    at = seconds(QUIET + EXPLOIT)
    expected = {
        **rule["annotations"], "run": RUN, "step": str(QUIET + EXPLOIT - 1),
        "summary": f"{RUN}: {ALERT_TEXTS['kl'].summary}",
        "description": rule["annotations"]["description"].replace('{{ printf "%.4g" $value }}', "7.071"),
        "runbook_url": "docs/how-to/runbook.md#rewardkl",
    }  # fmt: skip
    test = case("kl", series, [])
    labels = {"run": RUN, "severity": "warn", "wire": "kl", "cause": "policy", **JOB}
    test["alert_rule_test"] = [expected_alert(at, "RewardKl", labels, expected)]
    assert promtool(tmp_path, rules_text(WireConfig()), [test]) is None


def expected_alert(at, name, labels, annotations):
    """Of promtool: the only alert of this name that fires after so many seconds."""
    alerts = [{"exp_labels": labels, "exp_annotations": annotations}]
    return {"eval_time": f"{at}s", "alertname": name, "exp_alerts": alerts}


def described(wire, value, **more):
    """The rendered annotations of a wire's alert: promtool renders the template, this says which text is expected."""
    (rule,) = [
        r for prompt_hash in groups(WireConfig()) for r in prompt_hash["rules"] if r.get("alert") == alert_name(wire)
    ]
    return {**rule["annotations"], "run": RUN, "step": "unknown", "description": value, **more}


@needs_promtool
@pytest.mark.parametrize(
    ("runbook", "link"), [(None, "docs/how-to/runbook.md"), ("https://ops.example/book", "https://ops.example/book")]
)
def test_an_alert_gives_its_value_with_unit_and_threshold_and_an_absolute_link_where_one_is_set(
    tmp_path, runbook, link
):
    """A mean of 0.03119 once read "31.19m", then "3.119% of the samples"."""
    sums = {
        "samples": 4000,
        count_of("judge_injection"): 4000,
        "judge_injection": 4000 * 0.03119,
        "judge_injection_clustered": 0,
    }
    series = {
        f'rewardserve_run_sum_total{{run="{RUN}",of="{of}",job="rewardserve",instance="a"}}': [n * i for i in range(12)]
        for of, n in sums.items()
    }
    at = 11 * SCRAPE_S
    test = case("judge_injection", series, [])
    if runbook:
        test["external_labels"] = {"runbook": runbook}
    said = (
        "judge_injection is at 0.03119 phrases per response; the threshold is 0.02. Confidence: "
        + ALERT_TEXTS["judge_injection"].confidence
    )
    summary = f"{RUN}: {ALERT_TEXTS['judge_injection'].summary}"
    labels = {"run": RUN, "severity": "page", "wire": "judge_injection", "cause": "policy", **JOB}
    annotations = described("judge_injection", said, summary=summary, runbook_url=f"{link}#rewardjudgeinjection")
    test["alert_rule_test"] = [expected_alert(at, "RewardJudgeInjection", labels, annotations)]
    assert promtool(tmp_path, rules_text(WireConfig()), [test]) is None


def test_every_threshold_is_written_with_a_unit_and_no_number_with_a_metric_prefix():
    for prompt_hash in groups(WireConfig()):
        for rule in [rule for rule in prompt_hash["rules"] if "alert" in rule]:
            assert "humanize }}" not in str(rule["annotations"]), rule["alert"]
            if "wire" in rule["labels"] and rule["labels"]["wire"] not in (VOTE, CANARY):
                assert re.search(
                    r"is at .+ [a-z(].*; the threshold is [\d.]+%?\. ", rule["annotations"]["description"]
                ), rule["alert"]


@needs_promtool
def test_an_ended_run_goes_silent_as_soon_as_servers_no_longer_export_it(tmp_path):
    """Its samples still lie within the longest window, two hours."""
    hacked = trace([Phase(QUIET, usual), EXPLOITS["judge_injection"]], replicas=2)
    length = QUIET + EXPLOIT
    ended = {labels: [*values, *[None] * 4] for labels, values in hacked.items()}
    still = {**ended, 'up{job="rewardserve",instance="a"}': [1.0] * (length + 4)}
    questions = [
        (seconds(length), f"count({firing('RewardJudgeInjection')})", None),
        (seconds(length + 3), firing(), []),
    ]
    test = case("ended", still, questions[1:])
    test["promql_expr_test"].append(
        {"eval_time": f"{seconds(length)}s", "expr": questions[0][1], "exp_samples": [{"labels": "{}", "value": 1}]}
    )
    # A stale marker is what Prometheus writes when a series is gone from a scrape.
    for entry in test["input_series"]:
        entry["values"] = re.sub(r"( _){4}$", " stale _ _ _", entry["values"])
    assert promtool(tmp_path, rules_text(WireConfig()), [test]) is None


@needs_promtool
def test_two_models_of_one_job_that_score_one_run_are_not_added_up(tmp_path):
    """One model is exploited, the other is not: the share of both together would lie below the threshold."""
    series = {}
    for model, share in (("kind", 0.03), ("strict", 0.0)):
        sums = {"samples": 4000, count_of("judge_injection"): 4000, "judge_injection": 4000 * share}
        for of, n in {**sums, "judge_injection_clustered": 0}.items():
            labels = f'run="{RUN}",of="{of}",model="{model}",job="other-name",instance="{model}"'
            series[f"rewardserve_run_sum_total{{{labels}}}"] = [n * i for i in range(12)]
    there = {"alertname": "RewardJudgeInjection", "alertstate": "firing", "run": RUN, "severity": "page", "wire": "judge_injection",
             "cause": "policy", "model": "kind", "job": "other-name"}  # fmt: skip
    questions = [(11 * SCRAPE_S, firing("RewardJudgeInjection"), [there])]
    assert promtool(tmp_path, rules_text(WireConfig()), [case("two", series, questions)]) is None
