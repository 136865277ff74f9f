"""Define the dashboard *Reward health*: rewards and reward hacking, run by run.

Panels of wires show the numbers of their alerts: sums over the shortest window with enough samples, beside the line at which the
alert fires. Scores are shown as they come.
"""

from __future__ import annotations

from monitoring.grafana import queries as q
from monitoring.grafana.panels import (
    AT_ONE,
    GREEN,
    RED,
    YELLOW,
    Header,
    Panel,
    Query,
    Row,
    bars,
    heat_map,
    history,
    lines,
    number,
    rows,
    scatter,
    states,
)
from rewardserve.service.tripwires.alert import CANARY, VOTE
from rewardserve.service.tripwires.config import VOTES_FOR_A_PAGE
from rewardserve.service.tripwires.prometheus import alert_name
from rewardserve.service.tripwires.wires import WIRES, Chart, Wire

TITLE, UID = "Reward health", "rewardserve-reward-health"
DESCRIPTION = (
    "Reward hacking run by run: scores, features of responses, and the distance of each trip wire from its threshold."
)

_RUN = "{{run}}"
_LINE, _WIDTH = 24, 8
_HACKING = alert_name(VOTE)
_SHOWN_WITH = {"paid_novelty": ("rejected_novelty",), "prompt_relevance": ("mode_collapse",)}
"""Wires without a panel, by the wire whose panel shows their statistic too."""
_REPLICA_ALERTS = ("RewardTripwirePaged", "RewardTripwireWarned")

_TRIPPED = f"max by (run, wire) {q.gauge('rewardserve_tripwire_tripped', q.RUN)}"
_STEP = f"max by (run) {q.gauge('rewardserve_run_step', q.RUN)}"
_KL = f"max by (run) {q.gauge('rewardserve_run_kl', q.RUN)}"
_SAMPLES = q.scraped_rate("samples")
_SCORE = q.scraped_mean("score")
_TOKENS = f"exp({q.scraped_mean('length')})"
_INSPECTED = "rewardserve_samples_inspected_total"
_WATCHED = q.over(q.rate(_INSPECTED, 'outcome="inspected"'), q.rate(_INSPECTED))
_OF_RULES, _OF_SERVERS = "rewardserve:tripwire_threshold", q.series("rewardserve_tripwire_threshold")
_IS_FIRING = 'alertstate="firing"', 'alertname=~"Reward.+"'
FIRING = q.series("ALERTS", *_IS_FIRING)
_PAGES = q.series("ALERTS", *_IS_FIRING, 'severity="page"')
_WORST = f"topk by (run, instance) (3, 2 * {_PAGES} or {FIRING})"
"""The three worst alerts of each run, so that a run has at most four lines in the first row, and those of servers."""


def dashboard_rows() -> tuple[Row, ...]:
    """Build the rows from top to bottom."""
    return (
        Row("Now", _now()),
        Row("Trip wires", _wires()),
        Row("Rewards", _rewards()),
        Row("Training", _training()),
        Row("Features of responses", _wire_panels("responses", fills_line=True)),
        Row("Duplicates", _wire_panels("duplicates", width=6)),
        Row("Judges, honeypots and canaries", _judges()),
    )


def _now() -> tuple[Panel, ...]:
    return (
        number(
            _tile("Runs that are scored", "Runs that have sent samples just now."),
            Query(q.or_zero(f"count({_SAMPLES} > 0)")),
        ),
        number(
            _tile("Alerts that fire", "Firing alerts of runs and of servers.", _HACKING),
            Query(q.or_zero(f"count({FIRING})")),
            steps=AT_ONE,
        ),
        number(
            _tile("Wires to acknowledge", "Tripped wires without an acknowledgement.", *_REPLICA_ALERTS),
            Query(q.or_zero(f"sum({_TRIPPED})")),
            steps=AT_ONE,
        ),
        number(
            _tile(
                "Votes for a page",
                "Of the run with most: wires beyond their thresholds; beyond twice the threshold a wire counts two.",
                _HACKING,
            ),
            Query(q.or_zero(f"max({q.recorded('rewardserve:tripwire_votes:recent')})")),
            steps=((None, GREEN), (1.0, YELLOW), (float(VOTES_FOR_A_PAGE), RED)),
        ),
        number(
            _tile(
                "Samples that are inspected",
                "Share of the scored samples that trip wires inspect; the CPU budget skips the rest.",
                "RewardSamplesNotInspected",
            ),
            Query(_WATCHED),
            "percentunit",
            ((None, RED), (0.05, YELLOW), (0.5, GREEN)),
        ),
        number(
            _tile(
                "Rules of another configuration",
                "Wires whose threshold differs between the servers and the rules.",
                "RewardRulesStale",
            ),
            Query(q.or_zero(f"count(max by (wire) ({_OF_SERVERS}) != on (wire) {_OF_RULES})")),
            steps=AT_ONE,
        ),
        rows(
            Header("Runs", "The latest step of each run, and its samples just now.", width=12, height=7),
            {
                "Step": Query(_STEP),
                "Samples a second": Query(_SAMPLES),
                "Score": Query(_SCORE),
                "Tokens": Query(_TOKENS),
                "KL": Query(_KL),
                "Tripped": Query(f"sum by (run) ({_TRIPPED})"),
            },
            ("run",),
        ),
        rows(
            Header(
                "Alerts",
                "The three worst alerts of each run that fire now, pages first; the runbook has the meaning of each and the first "
                "thing to do, and GET /tripwires the run in five lines.",
                (_HACKING,),
                12,
                7,
            ),
            {"": Query(_WORST)},
            ("alertname", "severity", "run", "wire", "instance"),
        ),
    )


def _wires() -> tuple[Panel, ...]:
    ever = f"max by (run, wire) (max_over_time({q.series('rewardserve_tripwire_tripped', q.RUN)}[$__range]))"
    share = f"{q.recorded('rewardserve:tripwire_statistic:recent')} / on (wire) group_left () {_OF_RULES}"
    of_servers = (
        f"{q.gauge('rewardserve_tripwire_statistic', q.RUN)} / on (instance, job, wire) group_left () {_OF_SERVERS}"
    )
    steps = ((None, GREEN), (0.5, YELLOW), (1.0, RED), (2.0, "dark-red"))
    return (
        states(
            Header(
                "Tripped",
                "Wires that tripped in the time shown, red until you acknowledge them; empty: no wire has tripped.",
                _REPLICA_ALERTS,
                16,
                8,
            ),
            Query(f"{_TRIPPED} and on (run, wire) {ever} > 0", "{{run}} {{wire}}"),
            {"0": ("quiet", GREEN), "1": ("tripped", RED)},
        ),
        lines(
            Header(
                "Votes",
                "Wires beyond their thresholds, counted twice beyond twice the threshold; from the line on the alert is a page.",
                (_HACKING,),
            ),
            Query(q.recorded("rewardserve:tripwire_votes:recent"), _RUN),
            Query(q.threshold(VOTE), "page", "limit"),
        ),
        history(
            Header(
                "Share of its threshold",
                "The statistic of each wire by its threshold, of the nearest run: red is beyond. "
                "Over all replicas, as in the alerts.",
                (_HACKING,),
                16,
                15,
            ),
            Query(f"max by (wire) ({share})", "{{wire}}"),
            steps,
            "percentunit",
        ),
        bars(
            Header(
                "Nearest to their thresholds",
                "The twelve nearest wires, as the servers measure them, which needs fewer samples than the alerts.",
                _REPLICA_ALERTS,
                8,
                15,
            ),
            Query(f"sort_desc(topk(12, max by (run, wire) ({of_servers})))", "{{run}} {{wire}}"),
            steps,
            "percentunit",
            most=2.0,
        ),
    )


def _rewards() -> tuple[Panel, ...]:
    of_all = q.rate("rewardserve_samples_total", 'outcome="ok"')
    capped = q.over(q.rate("rewardserve_capped_total", by="side"), of_all, "on () group_left ()")
    return (
        heat_map(
            Header("Raw scores", "Distribution of raw scores, of all runs together.", width=12),
            Query(q.buckets("rewardserve_raw_score"), "{{le}}"),
            "raw score",
        ),
        heat_map(
            Header(
                "Rewards as sent",
                "Distribution of rewards after penalties and caps, of all runs together.",
                width=12,
            ),
            Query(q.buckets("rewardserve_value"), "{{le}}"),
            "reward",
        ),
        lines(
            Header(
                "Score",
                "Mean of the score before penalties and caps, in standard deviations of the calibration. It should "
                "rise in training; dotted: the baseline.",
            ),
            Query(_SCORE, _RUN),
            Query(q.baseline("score"), f"{_RUN} baseline", "baseline"),
            least=None,
        ),
        lines(
            Header(
                "Spread of scores",
                "Standard deviation of the same scores: it falls where a policy with one exploit gets "
                "nearly the same score for all responses.",
            ),
            Query(q.scraped_std("score"), _RUN),
        ),
        lines(
            Header(
                "Rewards at a cap",
                "Share of all rewards that a cap has changed, by its side; rewards beyond it no longer differ.",
                (alert_name("capped"),),
            ),
            Query(capped, "{{side}}"),
            unit="percentunit",
        ),
        *_wire_panels("rewards", fills_line=True),
    )


def _training() -> tuple[Panel, ...]:
    lengths = [Query(f"exp({q.trips_at(wire)})", f"{_RUN} trips at", "limit") for wire in ("length_high", "length_low")]
    return (
        lines(
            Header(
                "Length of responses",
                "Geometric mean of the tokens of a response; beyond the lines it has grown or shrunk too far "
                "from the start of the run.",
                (alert_name("length_high"), alert_name("length_low")),
            ),
            Query(f"exp({q.recent_mean('length')})", _RUN),
            *lengths,
        ),
        scatter(
            Header(
                "Score against length",
                "One dot per point in time: where the score rises with the length alone, the model may reward length.",
                (alert_name("length_high"),),
            ),
            Query(_TOKENS, "tokens of a response"),
            Query(_SCORE, "score"),
        ),
        scatter(
            Header(
                "Score against step",
                "One dot per point in time, at the latest step of the trainer: compares runs by step, "
                "not by the clock.",
            ),
            Query(_STEP, "step"),
            Query(_SCORE, "score"),
        ),
        lines(
            Header(
                "KL",
                "How far the policy is from its start in nats, where the trainer sends it; beyond the line do not trust "
                "this reward model.",
                (alert_name("kl"),),
            ),
            Query(_KL, _RUN),
            Query(f"{q.threshold('kl')} ^ 2", "trips at", "limit"),
        ),
        lines(
            Header("Samples", "Watched samples of each run."),
            Query(_SAMPLES, _RUN),
            unit="cps",
        ),
        lines(
            Header("Step", "Latest step of each run."),
            Query(_STEP, _RUN),
        ),
    )


def _judges() -> tuple[Panel, ...]:
    shares, baseline = (
        q.component_shares(f"rewardserve:run_component_{name}")
        for name in ("variance:recent", "baseline_moment:variance")
    )
    of_wires = _wire_panels("judges")
    return (
        *of_wires,
        lines(
            Header(
                "Score and audit",
                "Mean scores of the model and of the audit judge, for the same samples; a gap, and an "
                "audit that falls behind, are warnings; score up and audit down is a page.",
                (
                    alert_name("audit_gap"),
                    alert_name("audit_drift"),
                    alert_name("judge_contradicts"),
                    alert_name("divergence"),
                ),
            ),
            Query(q.recent_mean("audited_score"), f"{_RUN} score"),
            Query(q.recent_mean("audit"), f"{_RUN} audit"),
            least=None,
        ),
        lines(
            Header(
                "Components of the reward",
                "Share of each component in the variance of the reward; dotted: the baseline.",
                (alert_name("component_share"),),
                _WIDTH - _WIDTH * (len(of_wires) + 2) % -_LINE,
            ),
            Query(shares, f"{_RUN} {{{{component}}}}"),
            Query(baseline, f"{_RUN} {{{{component}}}} baseline", "baseline"),
            unit="percentunit",
            most=1.0,
        ),
        bars(
            Header(
                "Margins of the canaries",
                "Raw score of an honest answer above that of an exploit, of the model that serves; below zero "
                "the exploit pays.",
                (alert_name(CANARY), "RewardCanariesFailing"),
                24,
                9,
            ),
            Query(f"sort(min by (canary) {q.gauge('rewardserve_canary_margin')})", "{{canary}}"),
            ((None, RED), (0.0, GREEN)),
            least=None,
        ),
    )


def _tile(title: str, description: str, *alerts: str) -> Header:
    """Header of a small panel: six fill a line."""
    return Header(title, description, alerts, width=4, height=4)


def _wire_panels(row: str, width: int = _WIDTH, *, fills_line: bool = False) -> tuple[Panel, ...]:
    """Build the panels of one row from the table of wires. The widths of a line add up to 24; `fills_line`: the last panel is as
    wide as its line needs.
    """
    charts = [(wire, wire.chart) for wire in WIRES if wire.chart is not None and wire.chart.row == row]
    rest = -width * len(charts) % _LINE if fills_line else 0
    widths = [width] * (len(charts) - 1) + [width + rest]
    return tuple(_wire_panel(wire, chart, each) for (wire, chart), each in zip(charts, widths, strict=True))


def _wire_panel(wire: Wire, chart: Chart, width: int) -> Panel:
    """Build the panel of a wire: its mean over samples where it has one, else its statistic."""
    of = getattr(wire.statistic, "of", None)
    shown = (wire.name, *_SHOWN_WITH.get(wire.name, ()))
    alerts = tuple(alert_name(each.name) for each in WIRES if each.name in shown and each.severity != "note")
    trips_at = f"{_RUN} trips at" if q.is_learned(wire.name) else "trips at"
    return lines(
        Header(chart.title, chart.description, alerts, width),
        Query(q.statistic(wire.name) if of is None else q.recent_mean(of), _RUN),
        Query(q.trips_at(wire.name), trips_at, "limit"),
        unit=chart.unit,
        least=chart.min,
    )
