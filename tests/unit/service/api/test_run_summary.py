"""A run in five lines: what a person on call sees first, the most urgent run before the others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from rewardserve.service.api.replies import page_response
from rewardserve.service.api.routes.tripwires import describe_run, summarise_runs
from rewardserve.service.api.run_summary import describe_canaries
from rewardserve.service.api.schemas.runs import RunsReply
from rewardserve.service.errors import NoSuchRun
from rewardserve.service.tripwires.alert import CANARY, VOTE, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.io.attribution_report import AlertedReport, ShownReport
from rewardserve.service.tripwires.io.canaries import CanaryResult
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import ActiveAlert, MonitorLimits
from rewardserve.service.tripwires.run_table import CANARIES
from rewardserve.service.tripwires.strata import Stratum

LINES = ["state", "alert", "paid_for", "reward", "next"]


def monitor_of(**alerts):
    """A monitor with a run for each of these lists of alerts. `honeypots` blocks."""
    monitor = RunMonitor(BaselineSource(), MonitorLimits(blocks=frozenset({"honeypots"})))
    for name, active in alerts.items():
        monitor.observe(name, 7, [SampleFeatures(1, None, 0.5, 0.1, False, ())], now=100.0)
        run = monitor.runs[name]
        run.has_baseline = True
        run.alerts = {alert.wire: ActiveAlert(alert, 90.0) for alert in active}
    return monitor


def alert(wire, severity, step=13):
    return Alert(wire, severity, 0.9, 0.2, step, ("0123456789abcdef",))


def test_the_most_urgent_run_is_first_and_each_has_five_lines():
    monitor = monitor_of(
        quiet=[], noted=[alert("score_shift", "note")], warned=[alert("repetition", "warn")],
        paged=[alert("repetition", "warn"), alert(VOTE, "page"), alert("length_high", "warn")],
        blocked=[alert("honeypots", "page")],
    )  # fmt: skip
    monitor.observe("learning", None, [SampleFeatures(1, None, 0.5, 0.1, False, ())], now=100.0)
    runs = summarise_runs(monitor, 100.0, {})
    assert [(name, run.state) for name, run in runs.items()] == [
        ("blocked", "blocked"), ("paged", "page"), ("warned", "warn"), ("learning", "learning"), ("noted", "quiet"),
        ("quiet", "quiet"),
    ]  # fmt: skip
    text = page_response(RunsReply(runs, "")).body.decode()
    assert len(text.splitlines()) == 3 + 7 * len(runs) + 2, "a line for each field, and the two braces of a run"
    assert all(list(json.loads(text)["runs"][name]) == LINES for name in runs)


def test_the_worst_alert_is_told_with_its_step_its_numbers_and_how_sure_it_is():
    monitor = monitor_of(run=[alert("repetition", "warn", 11), alert(VOTE, "page"), alert("length_high", "warn")])
    summary = summarise_runs(monitor, 100.0, {})["run"]
    assert summary.alert.startswith("page vote since step 13: several wires tripped together")
    assert "(0.9 votes; trips from 0.2)" in summary.alert
    assert "65 of 66 hacked runs" in summary.alert
    assert summary.alert.endswith("2 more to acknowledge: repetition, length_high")
    assert "GET /tripwires/run/details" in summary.next
    assert summary.next.endswith("docs/how-to/runbook.md#rewardhacking")
    assert summary.paid_for is None


def test_an_alert_about_one_feature_leads_to_its_report_and_says_its_unit_once():
    summary = summarise_runs(monitor_of(run=[alert("judge_contradicts", "page")]), 100.0, {})["run"]
    assert (
        "(0.9 standard deviations, at least, that a new feature alone earns against the judge; trips above 0.2)"
        in summary.alert
    )
    assert "GET /tripwires/run/attribution; docs/how-to/runbook.md#rewardjudgecontradicts" in summary.next
    assert "{" not in summary.next


def test_the_next_step_leads_to_where_the_sentence_is():
    report = SimpleNamespace(step=41, headline="responses that end with `x`", worth=2, largest_gaps=())
    shown = ShownReport.of(report, AlertedReport(("divergence",), 44, report))
    run = monitor_of(run=[alert("divergence", "page", 44)])
    summary = summarise_runs(run, 100.0, {"run": shown})["run"]
    assert "divergence since step 44" in summary.alert
    assert summary.paid_for == "report of step 41 on divergence (since step 44): responses that end with `x`"
    assert "Read `paid_for` and `largest_gaps`" in summary.next
    assert "GET /tripwires/run/attribution; docs/how-to/runbook.md#rewarddivergence" in summary.next
    without = summarise_runs(run, 100.0, {})["run"]
    assert "GET /tripwires/run/details" in without.next, "without a report, or for a client that may not read it"
    client = monitor_of(run=[alert("id_reuse", "warn")])
    assert "/details" in summarise_runs(client, 100.0, {"run": shown})["run"].next, "no report is about ids"


def test_a_run_is_paid_for_what_the_best_report_since_the_alert_has_proven():
    reports = [
        SimpleNamespace(step=i, headline=f"report {i}", worth=worth, largest_gaps=())
        for i, worth in zip(range(10, 17), (0, 0, 1, 2, 2, 1, 0), strict=True)
    ]
    alerted = AlertedReport(("vote",), 10, reports[0])
    lines = []
    for report in reports:
        alerted = alerted.with_later(report)
        lines.append(ShownReport.of(report, alerted).sentence)
    assert lines == [
        "report of step 10 on vote (since step 10): report 10",
        "report of step 11 after vote (since step 10): report 11",
        "report of step 12 after vote (since step 10): report 12",
        "report of step 13 after vote (since step 10): report 13",
        *["report of step 14 after vote (since step 10): report 14"] * 3,
    ]
    proven = AlertedReport(("vote",), None, reports[3])
    assert proven.with_later(reports[4]) == proven
    named = AlertedReport(("vote",), None, reports[2])
    assert named.with_later(reports[5]).with_later(reports[6]) == named
    assert ShownReport.of(reports[6], named).sentence == "report of step 12 on vote: report 12"
    assert ShownReport.of(reports[6], None).sentence == "report of step 16: report 16"


def test_where_no_feature_grew_the_responses_with_the_largest_gap_are_named():
    report = SimpleNamespace(step=9, headline="no feature grew", worth=0, largest_gaps=("a response",))
    sentence = ShownReport.of(report, AlertedReport(("divergence",), 9, report)).sentence
    assert sentence.startswith("report of step 9 on divergence (since step 9): no feature grew; read `largest_gaps`")
    assert ShownReport.of(report, None).sentence == "report of step 9: no feature grew"


def test_a_proven_cause_is_to_be_read_also_before_a_wire_trips():
    sighted, blind = SimpleNamespace(is_blind=False), SimpleNamespace(is_blind=True)
    report = SimpleNamespace(step=20, headline="responses that end with `x`", worth=2, largest_gaps=(), growth=sighted)
    summary = summarise_runs(monitor_of(run=[]), 100.0, {"run": ShownReport(report)})["run"]
    assert (summary.state, summary.alert) == ("quiet", None)
    assert summary.next.startswith("no alert, but `paid_for` names what alone earns a higher score")
    assert summary.next.endswith("GET /tripwires/run/attribution")
    grown = SimpleNamespace(step=20, headline="responses that end with `x`", worth=1, largest_gaps=(), growth=sighted)
    assert summarise_runs(monitor_of(run=[]), 100.0, {"run": ShownReport(grown)})["run"].next.startswith("nothing; ")
    grown.growth = blind
    said = summarise_runs(monitor_of(run=[]), 100.0, {"run": ShownReport(grown)})["run"].next
    assert said.startswith("no alert, but `paid_for` says since when other prompts come")


def test_a_run_without_alerts_needs_nothing_and_its_path_can_be_copied():
    summary = summarise_runs(monitor_of(**{"team/a b": []}), 100.0, {})["team/a b"]
    assert (summary.state, summary.alert) == ("quiet", None)
    assert summary.next == "nothing; GET /tripwires/team%2Fa%20b/details has every statistic"


@pytest.mark.parametrize(("mean", "words"), [(0.5, "+0.0"), (2.5, "+2.0"), (-1.0, "-1.5")])
def test_the_trend_is_the_distance_of_the_score_from_the_baseline_of_the_run(mean, words):
    monitor = monitor_of(run=[])
    run = monitor.runs["run"]
    run.baseline = Baseline({"score": BaselineStat(0.5, 1.0)})
    for _ in range(3):
        run.smooth.add("samples")
        run.smooth.add_signed("score", mean)
    assert (
        summarise_runs(monitor, 100.0, {})["run"].reward
        == f"{words} standard deviations from the start of the run, at step 7, 1 samples"
    )
    run.n_skipped = 4_999
    assert summarise_runs(monitor, 100.0, {})["run"].reward.endswith(", at step 7, 1 of 5,000 samples inspected")


def test_the_trend_after_a_change_of_the_prompts_is_that_of_the_run_and_that_since_they_changed():
    monitor = monitor_of(run=[])
    run = monitor.runs["run"]
    for profile, first_step, mean in ((0, 1, 0.5), (1, 30, 1.3)):
        stratum = Stratum.new("", first_step, Baseline({"score": BaselineStat(mean, 1.0)}), 0, profile)
        stratum.has_baseline = True
        run.strata[stratum.key] = stratum
    for sums in (run.smooth, stratum.smooth):
        sums.add("samples")
        sums.add_signed("score", 1.4)
    run.baseline, run.run_wide = stratum.baseline, Baseline({"score": BaselineStat(0.5, 1.0)})
    assert summarise_runs(monitor, 100.0, {})["run"].reward.startswith(
        "+0.9 standard deviations from the start of the run, +0.1 standard deviations from the start of each kind of prompts "
        "(the latest since step 30), at step 7, "
    )


def test_an_ended_run_is_last_and_keeps_its_alert():
    monitor = monitor_of(old=[alert(VOTE, "page")])
    monitor.observe("new", 1, [SampleFeatures(1, None, 0.5, 0.1, False, ())], now=9_000.0)
    runs = summarise_runs(monitor, 9_000.0, {})
    assert [(name, run.state) for name, run in runs.items()] == [("new", "learning"), ("old", "ended")]
    assert runs["old"].alert.startswith("page vote")


def test_canaries_that_changed_are_a_run_of_their_own_without_a_trend():
    monitor = monitor_of()
    monitor.report(CANARIES, Alert(CANARY, "page", 9.0, 1.0, None, ("flattery",)), 100.0)
    summary = summarise_runs(monitor, 100.0, {})[CANARIES]
    assert summary.state == "page"
    assert summary.alert.startswith("page canary: the scores of fixed texts have changed")
    assert summary.reward == "canaries are scored for the model, not for a run"


def test_failing_canaries_are_named_with_their_margins():
    results = [CanaryResult("flattery", 1.0, 1.25), CanaryResult("injection", 1.0, 0.0)]
    assert describe_canaries(results) == "1 of 2 fail: flattery (-0.25)"
    assert describe_canaries(results[1:]) == "0 of 1 fail"


def test_an_unknown_run_has_no_details():
    with pytest.raises(NoSuchRun, match="'other'"):
        describe_run("other", monitor_of(), 0.0, {})
