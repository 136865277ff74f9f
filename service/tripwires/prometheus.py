"""Write the trip wires as alert rules of Prometheus.

The run monitor of each replica watches only the samples of that replica. These rules first add up the sums of all replicas, so
their number does not matter; statistics that do not add up (`audit_drift`) are those of the replica where they are largest.
Thresholds, severities and votes come from the same configuration; windows are of time here, the shortest with enough samples.
"""

from __future__ import annotations

from typing import Any

import yaml

from rewardserve.service.tripwires import promql
from rewardserve.service.tripwires.alert import CANARY, VOTE
from rewardserve.service.tripwires.config import WireConfig
from rewardserve.service.tripwires.promql import SHIPPED_WINDOWS, SUMS, Windows, added, moments, without
from rewardserve.service.tripwires.wires import ALERT_TEXTS, ALERT_UNITS, Wire

RUNBOOK = "docs/how-to/runbook.md"
_LINK = f"{{{{ with $externalLabels.runbook }}}}{{{{ . }}}}{{{{ else }}}}{RUNBOOK}{{{{ end }}}}"
"""The external label `runbook` of Prometheus has the URL of the runbook."""

HEADER = (
    "# Written by `rewardserve rules`, from the thresholds of the server. Change those, and write this file again.\n"
)

_STATISTIC = "rewardserve:tripwire_statistic:recent"
_THRESHOLD = "rewardserve:tripwire_threshold"
_ACTIVE = "rewardserve:run_active"

Rule = dict[str, Any]


def rules_text(config: WireConfig, windows: Windows = SHIPPED_WINDOWS) -> str:
    """Render the file of rules."""
    content = {"groups": groups(config, windows)}
    return HEADER + yaml.dump(content, Dumper=_RulesDumper, sort_keys=False, width=120, allow_unicode=True)


def groups(config: WireConfig, windows: Windows = SHIPPED_WINDOWS) -> list[Rule]:
    """Build the rules as one group: its rules are evaluated in order, so later ones can read the series of earlier ones."""
    records = [
        _active(),
        *_sums(windows),
        *_baselines(),
        *_components(),
        *_statistics(config, windows),
        *_thresholds(config),
    ]
    alerts = [_wire_alert(wire) for wire in config.wires if wire.severity != "note"]
    return [
        {
            "name": "reward-tripwires",
            "rules": [*records, _votes(config), *alerts, _vote_alert(config), *_replica_alerts(config)],
        }
    ]


# -- records ------------------------------------------------------------------------------------------------------------


def _active() -> Rule:
    """Record the runs that have not ended: servers export the series of a run only until it has ended."""
    return _record(_ACTIVE, f'sum without ({promql.REPLICA}, of) ({SUMS}{{of="samples"}})')


def _sums(windows: Windows) -> list[Rule]:
    return [
        _record(promql.RECENT_SUM, _shortest(SUMS, "ignoring (of)", windows)),
        _record(promql.RECENT_COMPONENT_SUM, _shortest(promql.COMPONENT_SUMS, "ignoring (of, component)", windows)),
    ]


def _shortest(metric: str, matching: str, windows: Windows) -> str:
    """Increase over the shortest window with enough samples."""
    return "\nor\n".join(
        f"({added(metric, span)} and {matching}\n  {added(SUMS, span, 'samples')} >= {windows.samples})"
        for span in windows.spans
    )


def _baselines() -> list[Rule]:
    mean, square = moments("rewardserve_run_baseline_moment")
    return [
        _record(promql.BASELINE_MEAN, mean),
        _record(promql.BASELINE_STD, f"sqrt(clamp_min({square} - ({mean}) ^ 2, 0))"),
        _record(promql.BASELINE_ERROR, promql.baseline_error()),
    ]


def _components() -> list[Rule]:
    n = f"ignoring (of, component) group_left () ({promql.recent('samples')} > 0)"
    positive, negative, squared = (
        f'{promql.RECENT_COMPONENT_SUM}{{of="{of}"}}' for of in ("positive", "negative", "squared")
    )
    mean, square = f"({positive} - ignoring (of) {negative}) / {n}", f"{squared} / {n}"
    usual_mean, usual_square = moments("rewardserve_run_component_baseline_moment")
    return [
        _record(promql.COMPONENT_VARIANCE, f"clamp_min({without('of', square)} - {without('of', mean)} ^ 2, 0)"),
        _record(promql.COMPONENT_BASELINE_VARIANCE, f"clamp_min({usual_square} - ({usual_mean}) ^ 2, 0)"),
    ]


def _statistics(config: WireConfig, windows: Windows) -> list[Rule]:
    return [
        _record(_STATISTIC, f"({wire.statistic.promql(windows)})\nand {_ACTIVE}", wire=wire.name)
        for wire in config.wires
    ]


# -- thresholds and votes ---------------------------------------------------------------------------------------------------


def _thresholds(config: WireConfig) -> list[Rule]:
    known = {wire.name: wire.threshold for wire in config.wires} | {VOTE: config.votes_for_a_page}
    return [_record(_THRESHOLD, f"vector({threshold!r})", wire=name) for name, threshold in known.items()]


def _votes(config: WireConfig) -> Rule:
    """Record the votes: one beyond the threshold, two beyond twice the threshold."""
    voting = "|".join(wire.name for wire in config.wires if wire.votes)
    of_wires = f'{_STATISTIC}{{wire=~"{voting}"}}'
    beyond = [f"({of_wires} > bool on (wire) group_left () ({times} * {_THRESHOLD}))" for times in (1, 2)]
    return _record("rewardserve:tripwire_votes:recent", f"sum without (wire) ({beyond[0]}\n  + {beyond[1]})")


# -- alerts -----------------------------------------------------------------------------------------------------------------


def alert_name(wire: str) -> str:
    """`length_high` -> `RewardLengthHigh`; the vote of several wires is `RewardHacking`."""
    return "RewardHacking" if wire == VOTE else "Reward" + "".join(word.title() for word in wire.split("_"))


def _wire_alert(wire: Wire) -> Rule:
    expression = f'{_STATISTIC}{{wire="{wire.name}"}} > {wire.threshold!r}'
    unit = wire.statistic.unit
    measured = f"{wire.name} is at {unit.template()}; the threshold is {unit.number(wire.threshold)}."
    return _alert(wire.name, expression, wire.severity, measured)


def _vote_alert(config: WireConfig) -> Rule:
    votes = config.votes_for_a_page
    measured = f"The wires have {ALERT_UNITS[VOTE].template()}; {votes} make a page."
    return _alert(VOTE, f"rewardserve:tripwire_votes:recent >= {votes}", "page", measured)


def _alert(wire: str, expression: str, severity: str, measured: str) -> Rule:
    text = ALERT_TEXTS[wire]
    return {
        "alert": alert_name(wire),
        "expr": expression,
        "labels": {"severity": severity, "wire": wire, "cause": text.cause},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}}: {text.summary}",
            "description": f"{measured} Confidence: {text.confidence}",
            "action": text.action,
            "run": "{{ $labels.run }}",
            "step": _STEP,
            "runbook_url": f"{_LINK}#{alert_name(wire).lower()}",
        },
    }


_STEP = (
    '{{ with printf "max(rewardserve_run_step{run=%q})" $labels.run | query }}{{ . | first | value | printf "%.0f" }}'
    "{{ else }}unknown{{ end }}"
)


def _replica_alerts(config: WireConfig) -> list[Rule]:
    """Alerts of single replicas: a run has enough samples for a run monitor long before it has enough for a window of time."""
    pages = "|".join([VOTE, *(wire.name for wire in config.wires if wire.severity == "page")])
    warns = "|".join(wire.name for wire in config.wires if wire.severity == "warn")
    tripped = [
        f'max without ({promql.REPLICA}, wire) (rewardserve_tripwire_tripped{{wire=~"{names}"}}) == 1'
        for names in (pages, warns, CANARY)
    ]
    changed = "The scores of canaries have changed by more than numeric noise allows; GET /tripwires has the change."
    return [
        _tripped_alert("RewardTripwirePaged", tripped[0], "page", pages),
        _tripped_alert("RewardTripwireWarned", tripped[1], "warn", warns),
        _alert(CANARY, tripped[2], "page", changed),
        _stale_alert(),
    ]


def _tripped_alert(name: str, expression: str, severity: str, wires: str) -> Rule:
    """Alert per run and cause, however many wires have tripped: the annotation lists them."""
    listed = (
        f'{{{{ range printf "count by (wire) (rewardserve_tripwire_tripped{{run=%q, cause=%q, wire=~%q}} == 1)" '
        f'$labels.run $labels.cause "{wires}" | query }}}} {{{{ .Labels.wire }}}}{{{{ end }}}}'
    )
    return {
        "alert": name,
        "expr": expression,
        "labels": {"severity": severity},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}}: tripped wires of a replica, not acknowledged:{listed}",
            "description": "Fires until the wires are acknowledged, or the run has ended. Confidence: that of each wire, on the "
            "samples of one replica.",
            "action": "Read GET /tripwires (statistic, threshold, evidence), follow the wire's entry in the runbook, then "
            "POST /tripwires/{{ $labels.run }}/WIRE/ack to every replica where it is active.",
            "run": "{{ $labels.run }}",
            "step": _STEP,
            "runbook_url": f"{_LINK}#{name.lower()}",
        },
    }


def _stale_alert() -> Rule:
    return {
        "alert": "RewardRulesStale",
        "expr": f"max without ({promql.REPLICA}) (rewardserve_tripwire_threshold) != on (wire) group_left () {_THRESHOLD}",
        "for": "10m",
        "labels": {"severity": "warn"},
        "annotations": {
            "summary": "the threshold of {{ $labels.wire }} differs between the server and these rules",
            "description": 'The server has {{ printf "%.4g" $value }}, these rules have '
            '{{ with printf "rewardserve:tripwire_threshold{wire=%q}" $labels.wire | query }}'
            '{{ . | first | value | printf "%.4g" }}{{ else }}none{{ end }}. Confidence: certain.',
            "action": "Write the rules again from the server's configuration: rewardserve rules --config-file FILE.",
            "runbook_url": f"{_LINK}#rewardrulesstale",
        },
    }


def _record(name: str, expression: str, **labels: str) -> Rule:
    return {"record": name, "expr": expression, **({"labels": labels} if labels else {})}


class _RulesDumper(yaml.SafeDumper):
    """Write expressions of several lines as blocks."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_RulesDumper.add_representer(str, _block)
