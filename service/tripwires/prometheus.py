"""Write the trip wires as alert rules of Prometheus.

The board of each replica watches what that replica sees. These rules add the sums of all replicas up first, so that it does not
matter how many served a run. Thresholds, severities and votes come from the same plan; windows are of time here, the
shortest that has enough samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from rewardserve.service.tripwires.advice import ADVICE, SAYS
from rewardserve.service.tripwires.baseline import min_std
from rewardserve.service.tripwires.config import WireConfig
from rewardserve.service.tripwires.running_sums import count_of, is_signed
from rewardserve.service.tripwires.units import Unit, units
from rewardserve.service.tripwires.wire import CANARY, VOTE
from rewardserve.service.tripwires.wires import (
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessShare,
    HoneypotHitRate,
    KlRoot,
    MeanShift,
    Saturation,
    Share,
    Statistic,
    Wire,
    cause_of,
    min_samples,
)

RUNBOOK = "docs/how-to/runbook.md"
_LINK = f"{{{{ with $externalLabels.runbook }}}}{{{{ . }}}}{{{{ else }}}}{RUNBOOK}{{{{ end }}}}"
"""The external label `runbook` of Prometheus is the address at which the runbook is served."""

HEADER = (
    "# Written by `rewardserve rules`, from the thresholds of the server. Change those, and write this file again.\n"
)

WINDOWS = ("2m", "15m", "2h")
ENOUGH_SAMPLES = 1_280
"""As many as the board's smoothing looks back on: ten windows of 128."""

_REPLICA = "instance, pod, container, endpoint, node"
"""Labels that tell replicas apart; all others, such as `job` and `namespace`, tell services apart."""

_STATISTIC = "rewardserve:tripwire_statistic:recent"
_THRESHOLD = "rewardserve:tripwire_threshold"
_SUM, _PART_SUM = "rewardserve:run_sum:recent", "rewardserve:run_component_sum:recent"
_USUAL_MEAN, _USUAL_STD = "rewardserve:run_baseline_moment:mean", "rewardserve:run_baseline_moment:std"
_ACTIVE = "rewardserve:run_active"
_VARIANCE, _USUAL_VARIANCE = (
    "rewardserve:run_component_variance:recent",
    "rewardserve:run_component_baseline_moment:variance",
)

Rule = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Windows:
    """`spans` of time, the shortest first; a run is looked at over the first that has so many `samples`."""

    spans: tuple[str, ...] = WINDOWS
    samples: int = ENOUGH_SAMPLES


def text_of(plan: WireConfig, windows: Windows = Windows()) -> str:
    """The file of rules."""
    yaml.SafeDumper.add_representer(str, _block)
    return HEADER + yaml.safe_dump({"groups": groups(plan, windows)}, sort_keys=False, width=120, allow_unicode=True)


def groups(plan: WireConfig, windows: Windows = Windows()) -> list[Rule]:
    """One group: its rules are looked at one after the other, so what is recorded first is there for the next."""
    records = [
        _active(),
        *_sums(windows),
        *_usual(),
        *_parts(),
        *_trends(windows),
        *_statistics(plan, windows),
        *_thresholds(plan),
    ]
    known = units(plan.wires)
    alerts = [_alert(wire, known[wire.name]) for wire in plan.wires if wire.severity != "note"]
    return [
        {
            "name": "reward-tripwires",
            "rules": [*records, _votes(plan), *alerts, _vote_alert(plan), *_alerts_of_boards(plan)],
        }
    ]


def _active() -> Rule:
    """Runs that have not ended: servers export the series of a run only as long as it sends samples, now and then."""
    return _record(_ACTIVE, f'sum without ({_REPLICA}, of) (rewardserve_run_sum_total{{of="samples"}})')


# -- sums and means -----------------------------------------------------------------------------------------------------


def _sums(windows: Windows) -> list[Rule]:
    return [
        _record(_SUM, _shortest("rewardserve_run_sum_total", "ignoring (of)", windows)),
        _record(_PART_SUM, _shortest("rewardserve_run_component_sum_total", "ignoring (of, component)", windows)),
    ]


def _shortest(metric: str, matching: str, windows: Windows) -> str:
    """What was added over the shortest window with enough samples."""
    return "\nor\n".join(
        f"({_added(metric, span)} and {matching}\n  {_added('rewardserve_run_sum_total', span, 'samples')} >= {windows.samples})"
        for span in windows.spans
    )


def _added(metric: str, span: str, of: str | None = None) -> str:
    """What was added over a span, unless the run has got another model within it: then it would be the rewards of two."""
    only = f'{{of="{of}"}}' if of else ""
    return f"({_over_replicas(f'increase({metric}{only}[{span}])')} unless ignoring (of, component) {_is_new(seconds_of(span))})"


def _is_new(seconds: int) -> str:
    """Runs that have got another model within so many seconds, at one of their replicas."""
    return f"({_over_replicas('rewardserve_run_model_age_seconds', 'min')} < {seconds})"


def seconds_of(span: str) -> int:
    """The length of a span such as `15m`."""
    return {"s": 1, "m": 60, "h": 3600}[span[-1]] * int(span[:-1])


def _over_replicas(expression: str, how: str = "sum") -> str:
    return f"{how} without ({_REPLICA}) ({expression})"


def _mean(name: str) -> str:
    """Over the samples that have it, where these are enough: one of them alone is nothing to alert upon."""
    n = f"({_sum(count_of(name))} >= {min_samples(name)})"
    total = (
        f"({_sum(name + '_positive')} - ignoring (of) {_sum(name + '_negative')})" if is_signed(name) else _sum(name)
    )
    return f"({total} / ignoring (of) {n})"


def _sum(of: str) -> str:
    return f'{_SUM}{{of="{of}"}}'


def _usual() -> list[Rule]:
    mean, square = _moments("rewardserve_run_baseline_moment")
    return [_record(_USUAL_MEAN, mean), _record(_USUAL_STD, f"sqrt(clamp_min({square} - ({mean}) ^ 2, 0))")]


def _moments(metric: str) -> tuple[str, str]:
    """Mean and mean square, of all replicas together."""
    of_order = [_over_replicas(f'{metric}{{order="{order}"}}') for order in range(3)]
    return tuple(f"{moment} / ignoring (order) {of_order[0]}" for moment in of_order[1:])  # type: ignore[return-value]


def _parts() -> list[Rule]:
    n = f"ignoring (of, component) group_left () ({_sum('samples')} > 0)"
    mean = f'({_PART_SUM}{{of="positive"}} - ignoring (of) {_PART_SUM}{{of="negative"}}) / {n}'
    square = f'{_PART_SUM}{{of="squared"}} / {n}'
    usual_mean, usual_square = _moments("rewardserve_run_component_baseline_moment")
    return [
        _record(_VARIANCE, f"clamp_min({_without('of', square)} - {_without('of', mean)} ^ 2, 0)"),
        _record(_USUAL_VARIANCE, f"clamp_min({usual_square} - ({usual_mean}) ^ 2, 0)"),
    ]


def _without(label: str, expression: str) -> str:
    return f"sum without ({label}) ({expression})"


# -- statistics -----------------------------------------------------------------------------------------------------------


def _statistics(plan: WireConfig, windows: Windows) -> list[Rule]:
    return [
        _record(_STATISTIC, f"({expression_of(wire.statistic, windows)})\nand {_ACTIVE}", wire=wire.name)
        for wire in plan.wires
    ]


def expression_of(statistic: Statistic, windows: Windows = Windows()) -> str:
    """The statistic of a wire in PromQL, one value a run."""
    return _EXPRESSIONS[type(statistic)](statistic, windows)


def _shift(statistic: MeanShift, _: Windows) -> str:
    of, usual = statistic.of, f'{{of="{statistic.of}"}}'
    std = f"clamp_min({_USUAL_STD}{usual}, {min_std(of)})"
    return f"{statistic.sign:g} * ({_mean(of)} - ignoring (of)\n  {_USUAL_MEAN}{usual}) / ignoring (of) {std}"


def _share(statistic: Share, _: Windows) -> str:
    return _mean(statistic.of)


def _excess(statistic: ExcessShare, _: Windows) -> str:
    share, usual = _mean(statistic.of), f'{statistic.factor:g} * {_USUAL_MEAN}{{of="{statistic.of}"}}'
    return f"{share} * ({share} > bool ignoring (of) ({usual}))\nor {share}"


def _saturation(_: Saturation, __: Windows) -> str:
    return _mean("saturated")


def _gap(_: AuditGap, __: Windows) -> str:
    return f"{_mean('audited_score')} - {_mean('audit')}"


def _baits(statistic: HoneypotHitRate, windows: Windows) -> str:
    return "\nor\n".join(
        f"{_added('rewardserve_run_sum_total', span, 'honeypot_hits')} / ignoring (of)\n"
        f"  ({_added('rewardserve_run_sum_total', span, 'honeypots')} >= {statistic.least})"
        for span in windows.spans
    )


def _part_share(statistic: ComponentShare, _: Windows) -> str:
    now, usual = (
        f"{each} / ignoring (component) group_left () (sum without (component) ({each}) > 0)"
        for each in (_VARIANCE, _USUAL_VARIANCE)
    )
    return f"max without (component) ({now}\n  / clamp_min({usual}, {statistic.least_share:g}))"


def _kl_root(_: KlRoot, __: Windows) -> str:
    return f"sqrt({_over_replicas('rewardserve_run_kl', 'max')})"


def _divergence(_: AuditDivergence, windows: Windows) -> str:
    rising, falling = (f"rewardserve:run_{name}:slope_t" for name in ("score", "audit"))
    return f"({rising} < -{falling}) or -{falling}"


_EXPRESSIONS: dict[type, Callable[[Any, Windows], str]] = {
    MeanShift: _shift,
    Share: _share,
    ExcessShare: _excess,
    Saturation: _saturation,
    AuditGap: _gap,
    HoneypotHitRate: _baits,
    ComponentShare: _part_share,
    KlRoot: _kl_root,
    AuditDivergence: _divergence,
}


def _trends(windows: Windows) -> list[Rule]:
    """Means of windows that do not overlap, and the t of straight lines through thirty of them."""
    rules: list[Rule] = []
    for of, name in (("audited_score", "score"), ("audit", "audit")):
        means = {span: f"rewardserve:run_{name}:mean{span}" for span in windows.spans[:2]}
        rules += [_record(mean, _window_mean(of, span)) for span, mean in means.items()]
        rules.append(
            _record(f"rewardserve:run_{name}:slope_t", "\nor\n".join(_slope_t(m, s) for s, m in means.items()))
        )
    return rules


def _window_mean(of: str, span: str) -> str:
    up, down, n = (
        _added("rewardserve_run_sum_total", span, each) for each in (f"{of}_positive", f"{of}_negative", "audited")
    )
    return f"({up}\n  - ignoring (of) {down})\n  / ignoring (of) ({n} >= {min_samples('audit')})"


def _slope_t(mean: str, span: str) -> str:
    """Slope over its standard error, of the least-squares line through means: as `wires.slope_t`."""
    seconds = seconds_of(span)
    window = f"[{30 * seconds}s:{seconds}s]"
    slope, n = f"deriv({mean}{window})", f"count_over_time({mean}{window})"
    ratio = f"stdvar_over_time({mean}{window}) / stdvar_over_time(timestamp({mean}){window})"
    t = f"{slope} / sqrt(clamp_min({ratio} - {slope} ^ 2, 0)\n  / (({n} >= {AuditDivergence.least_windows}) - 2))"
    return f"({t}\n  unless {_is_new(30 * seconds)})"


# -- thresholds and votes ---------------------------------------------------------------------------------------------------


def _thresholds(plan: WireConfig) -> list[Rule]:
    known = {wire.name: wire.threshold for wire in plan.wires} | {VOTE: plan.votes_for_a_page}
    return [_record(_THRESHOLD, f"vector({threshold!r})", wire=name) for name, threshold in known.items()]


def _votes(plan: WireConfig) -> Rule:
    """One beyond the threshold, two beyond twice as much."""
    voting = "|".join(wire.name for wire in plan.wires if wire.votes)
    of_wires = f'{_STATISTIC}{{wire=~"{voting}"}}'
    beyond = [f"({of_wires} > bool on (wire) group_left () ({times} * {_THRESHOLD}))" for times in (1, 2)]
    return _record("rewardserve:tripwire_votes:recent", f"sum without (wire) ({beyond[0]}\n  + {beyond[1]})")


# -- alerts -----------------------------------------------------------------------------------------------------------------


def alert_name(wire: str) -> str:
    """`length_high` -> `RewardLengthHigh`; the vote of several wires is `RewardHacking`."""
    return "RewardHacking" if wire == VOTE else "Reward" + "".join(word.title() for word in wire.split("_"))


def _alert(wire: Wire, unit: Unit) -> Rule:
    expression = f'{_STATISTIC}{{wire="{wire.name}"}} > {wire.threshold!r}'
    return _alarm(wire.name, expression, wire.severity, wire.says, _beyond(wire.name, unit, wire.threshold))


def _vote_alert(plan: WireConfig) -> Rule:
    votes = plan.votes_for_a_page
    expression = f"rewardserve:tripwire_votes:recent >= {votes}"
    said = f"The wires have {units(())[VOTE].template()}; {votes} make a page."
    return _alarm(VOTE, expression, "page", SAYS[VOTE], said)


def _beyond(wire: str, unit: Unit, threshold: float) -> str:
    return f"{wire} is at {unit.template()}; the threshold is {unit.measured(threshold)}."


def _alarm(wire: str, expression: str, severity: str, says: str, measured: str) -> Rule:
    advice = ADVICE[wire]
    return {
        "alert": alert_name(wire),
        "expr": expression,
        "labels": {"severity": severity, "wire": wire, "cause": cause_of(wire)},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}}: {says}",
            "description": f"{measured} How sure: {advice.sure}",
            "action": advice.do,
            "run": "{{ $labels.run }}",
            "step": _STEP,
            "runbook_url": f"{_LINK}#{alert_name(wire).lower()}",
        },
    }


_STEP = (
    '{{ with printf "max(rewardserve_run_step{run=%q})" $labels.run | query }}{{ . | first | value | printf "%.0f" }}'
    "{{ else }}unknown{{ end }}"
)


def _alerts_of_boards(plan: WireConfig) -> list[Rule]:
    """What replicas found by themselves: a run with few samples has enough for a board long before it has for a window."""
    pages = "|".join([VOTE, *(wire.name for wire in plan.wires if wire.severity == "page")])
    warns = "|".join(wire.name for wire in plan.wires if wire.severity == "warn")
    tripped = [
        f'max without ({_REPLICA}, wire) (rewardserve_tripwire_tripped{{wire=~"{names}"}}) == 1'
        for names in (pages, warns, CANARY)
    ]
    changed = "The scores of canaries have changed by more than numeric noise allows; GET /tripwires says by how much."
    return [
        _tripped_alert("RewardTripwirePaged", tripped[0], "page", pages),
        _tripped_alert("RewardTripwireWarned", tripped[1], "warn", warns),
        _alarm(CANARY, tripped[2], "page", SAYS[CANARY], changed),
        _stale_alert(),
    ]


def _tripped_alert(name: str, expression: str, severity: str, wires: str) -> Rule:
    """One a run and cause, however many wires have tripped: the annotation lists them."""
    listed = (
        f'{{{{ range printf "count by (wire) (rewardserve_tripwire_tripped{{run=%q, cause=%q, wire=~%q}} == 1)" '
        f'$labels.run $labels.cause "{wires}" | query }}}} {{{{ .Labels.wire }}}}{{{{ end }}}}'
    )
    return {
        "alert": name,
        "expr": expression,
        "labels": {"severity": severity},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}}: wires of a replica have tripped and are not acknowledged:{listed}",
            "description": "Fires until they are acknowledged, or the run has ended. How sure: as the wire itself, on the "
            "samples of one replica.",
            "action": "Read GET /tripwires (statistic, threshold, evidence), follow the wire's own entry in the runbook, then "
            "POST /tripwires/{{ $labels.run }}/WIRE/ack to every replica that says so.",
            "run": "{{ $labels.run }}",
            "step": _STEP,
            "runbook_url": f"{_LINK}#{name.lower()}",
        },
    }


def _stale_alert() -> Rule:
    return {
        "alert": "RewardRulesStale",
        "expr": f"max without ({_REPLICA}) (rewardserve_tripwire_threshold) != on (wire) group_left () {_THRESHOLD}",
        "for": "10m",
        "labels": {"severity": "warn"},
        "annotations": {
            "summary": "the threshold of {{ $labels.wire }} is another one in the server than in these rules",
            "description": 'The server has {{ printf "%.4g" $value }}, these rules have '
            '{{ with printf "rewardserve:tripwire_threshold{wire=%q}" $labels.wire | query }}'
            '{{ . | first | value | printf "%.4g" }}{{ else }}none{{ end }}. How sure: certain.',
            "action": "Write the rules again from the server's plan: rewardserve rules --config-file PLAN.",
            "runbook_url": f"{_LINK}#rewardrulesstale",
        },
    }


def _record(name: str, expression: str, **labels: str) -> Rule:
    return {"record": name, "expr": expression, **({"labels": labels} if labels else {})}


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
