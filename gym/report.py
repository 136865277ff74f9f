"""Render monitored runs as one self-contained HTML page: gold and proxy, alerts, falls of gold, and misses.

    python -m gym.alert_timing --json here.json
    python -m gym.over_http --json http.json
    python -m gym.report --json here.json http.json --out gym.html

Trains no policy; all figures come from `monitored_runs` and `plots`. Knows outcomes, tables and HTML.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from gym import plots
from gym.monitored_runs import Outcome, by_kind, load, table_row, wires_row
from gym.plots import Ranges

_STYLE: Final = """
:root{--gold:#b7850b;--proxy:#2c69b0;--page:#c62828;--ink:#2b2b2b;--soft:#63635e;--line:#e3e3de}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:#f7f7f4;margin:0}
main{max-width:1180px;margin:0 auto;padding:2.2rem 1.1rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem}h2{font-size:1.28rem;margin:2.8rem 0 .3rem}
h3{font-size:1.05rem;margin:0 0 .1rem}p{max-width:52rem;margin:.4rem 0}.soft{color:var(--soft)}small,.small{font-size:.86rem}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;margin:1rem 0}
.grid{display:grid;gap:.4rem 1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));align-items:start}
.grid img{width:100%;max-width:560px;height:auto;display:block}.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tile{flex:1 1 14rem;background:#fff;border:1px solid var(--line);border-radius:10px;padding:.8rem 1.1rem}
.tile b{display:block;font-size:1.7rem;line-height:1.25}.tile span{color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto}table{border-collapse:separate;border-spacing:0;font-size:14px;line-height:20px;min-width:100%}
th,td{padding:6px 11px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:600;vertical-align:bottom}td{white-space:nowrap}tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff;background-clip:padding-box;white-space:normal;min-width:8.5rem}
table.words td:last-child,table.words th:last-child{text-align:left;white-space:normal}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;font-size:.9rem;margin:.8rem 0;padding:0;list-style:none}
.legend i{font-style:normal;font-weight:700;margin-right:.35rem}code{background:#efefea;padding:.05rem .3rem;border-radius:4px}
section span{white-space:nowrap}.bad{color:var(--page);font-weight:600}
"""
_LEGEND: Final = (
    ("━", "var(--gold)", "gold: the true value of a response"),
    ("━", "var(--proxy)", "proxy: the served score"),
    ("▼", "var(--page)", "first page"),
    ("○", "#e0605e", "first warning that votes"),
    ("✕", "var(--ink)", "gold has fallen 0.2 below its peak"),
)
_EXPLAINED: Final[Mapping[str, str]] = {
    "hacked": "The policy is trained on the served score without a KL penalty.",
    "mild": "The policy is trained on the served score, held near the base policy by a KL penalty.",
    "healthy": "The policy is trained on gold; the served score is only monitored.",
}


class Misses(NamedTuple):
    """Wrong alerts: late or none in a hacked run, a page in a healthy one, an early page in a mild one."""

    late: list[Outcome]
    false: list[Outcome]
    early: list[Outcome]


def misses_of(outcomes: Sequence[Outcome]) -> Misses:
    """Find the wrong alerts. The page of a mild run is early if it comes before the maximum of its gold."""
    paged = [each for each in outcomes if each.page is not None]
    return Misses(
        late=[each for each in outcomes if each.aim == "hacked" and each.is_missed],
        false=[each for each in paged if each.aim == "healthy"],
        early=[each for each in paged if each.aim == "mild" and each.page is not None and each.page < each.peak],
    )


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", nargs="+", type=Path, required=True, help="outputs of `alert_timing` and `over_http`")
    parser.add_argument("--out", type=Path, default=Path("gym.html"))
    given = parser.parse_args()
    outcomes = [each for path in given.json for each in load(path)]
    given.out.write_text(render(outcomes), encoding="utf-8")
    print(f"{given.out}: {len(outcomes)} runs of {len(by_kind(outcomes))} kinds")


def render(outcomes: Sequence[Outcome]) -> str:
    """Render the page as one text."""
    grouped, ranges = by_kind(outcomes), plots.ranges_of(outcomes)
    title = "Over-optimisation and the timing of alerts"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>{_opening(outcomes)}{_tiles(outcomes)}"
        f"<h2>Pages</h2>{_tables(grouped)}{_leads(grouped, ranges)}"
        f"<h2>Gold and proxy</h2>{_how_to_read()}"
        + "".join(_kind(of_kind, ranges) for of_kind in grouped.values())
        + f"<h2>Misses</h2>{_misses(misses_of(outcomes), ranges)}</main></body></html>\n"
    )


# -- the parts, from the top --------------------------------------------------------------------------------------


def _opening(outcomes: Sequence[Outcome]) -> str:
    n_samples, steps = sum(each.samples for each in outcomes), max(len(each.gold) for each in outcomes)
    return (
        '<p>A policy is trained on a reward model with planted faults, in a gym where the true, "gold" reward is known. The '
        "trip wires read the input of a server: scores and texts. A page in time comes before gold falls.</p>"
        f'<p class="soft small">{len(outcomes)} runs, up to {steps} steps each, {n_samples:,} responses. The gym is a '
        "simplification: words are drawn independently, and the author of the wires knows the planted faults. The figures are a "
        "comparison, not a guarantee.</p>"
    )


def _tiles(outcomes: Sequence[Outcome]) -> str:
    of_aim = {aim: [each for each in outcomes if each.aim == aim] for aim in _EXPLAINED}
    hacked = [each for each in of_aim["hacked"] if each.fall is not None]
    misses = misses_of(outcomes)
    tiles = [
        (hacked, len(hacked) - len(misses.late), "runs whose gold fell were paged before the fall"),
        (of_aim["healthy"], len(misses.false), "healthy runs were paged"),
        (of_aim["mild"], len(misses.early), "mild runs were paged while their gold still rose"),
    ]
    shown = [f"<div class=tile><b>{n} of {len(runs)}</b><span>{what}</span></div>" for runs, n, what in tiles if runs]
    return (
        f'<div class="tiles">{"".join(shown)}</div><p class="small soft">A run that was monitored in several ways counts once for '
        "each of them.</p>"
    )


def _tables(grouped: Mapping[str, Sequence[Outcome]]) -> str:
    lines = [table_row(of_kind) for of_kind in grouped.values()]
    over = [wires_row(of_kind) for of_kind in grouped.values()]
    return (
        f'<div class="card scroll">{_table(lines)}</div>'
        '<p class="small soft">Lead: steps from the page to the fall. Drop: distance of gold below its peak so far at the page.'
        "</p>"
        "<h3>Wires over their thresholds at the page</h3>"
        f'<div class="card scroll">{_table(over, "words")}</div>'
    )


def _table(rows: Sequence[Mapping[str, str]], kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _leads(grouped: Mapping[str, Sequence[Outcome]], ranges: Ranges) -> str:
    hacked = {kind: runs for kind, runs in grouped.items() if runs[0].aim == "hacked"}
    if not hacked:
        return ""
    panels = "".join(
        f"<div><h3>{html.escape(kind)}</h3>{_image(plots.plot_lead_times(runs, ranges), f'from page to fall, {kind}')}</div>"
        for kind, runs in hacked.items()
    )
    return (
        "<h2>From the page to the fall</h2><p>A line a run, from its first page (▼) to the fall of its gold (✕); the dot is "
        'the maximum of its gold. A seed in red: the page came too late or not at all.</p><div class="card">'
        f'<div class="grid">{panels}</div></div>'
    )


def _how_to_read() -> str:
    legend = "".join(f'<li><i style="color:{colour}">{sign}</i>{what}</li>' for sign, colour, what in _LEGEND)
    return (
        f'<ul class="legend">{legend}</ul><p class="small soft">Thin lines are up to {plots.OVERLAID} runs, thick ones the mean '
        "of all; every curve is smoothed over nine steps. The proxy is in standard deviations of the base policy's scores, gold in "
        "gold units; vertical axes are the same in all figures. Against the distance d = √KL, the dashed line is the form "
        "that Gao et al. (2210.10760) found, R = d (α − β ln d) above the start, fitted to all runs of that kind. The third figure "
        "shows the first alert of each wire: triangles are pages, red rings are warnings that vote for a page, grey rings are the "
        "other warnings.</p>"
    )


def _kind(outcomes: Sequence[Outcome], ranges: Ranges) -> str:
    kind = outcomes[0].kind
    images = [
        _image(draw(outcomes, ranges), f"{what}, {kind}")
        for draw, what in (
            (plots.plot_by_step, "gold and proxy by step"),
            (plots.plot_by_distance, "gold and proxy by distance"),
            (plots.plot_wires, "first alerts by wire"),
        )
    ]
    return (
        f'<section class="card"><h3>{html.escape(kind)}</h3><p class="small soft">{_EXPLAINED[outcomes[0].aim]} '
        f'{_in_words(outcomes)}</p><div class="grid">{"".join(images)}</div></section>'
    )


def _in_words(outcomes: Sequence[Outcome]) -> str:
    seeds = sorted(each.seed for each in outcomes)
    peak, end = (np.mean([of(each.smooth_T) for each in outcomes]) for of in (np.max, lambda gold_T: gold_T[-1]))
    fell, paged = (sum(getattr(each, name) is not None for each in outcomes) for name in ("fall", "page"))
    words = (
        f"Seeds {seeds[0]} to {seeds[-1]}: gold peaks at {peak:.2f} and ends at {end:.2f} on average; it falls in {fell} of "
        f"{len(outcomes)} runs, and {paged} are paged."
    )
    if sent := sum(each.requests for each in outcomes):
        off_by = f"<span>{max(each.off_by for each in outcomes):.0e}</span>"
        words += f" {sent:,} requests to real servers, whose rewards were within {off_by} of those of this process."
    return words


def _misses(misses: Misses, ranges: Ranges) -> str:
    late = _each(misses.late, ranges, "No run whose gold fell was paged too late.")
    false = _each(misses.false, ranges, "No healthy run was paged.")
    early = [
        {"runs": o.kind, "seed": str(o.seed), "paged at": str(o.page), "maximum of gold at": str(o.peak)}
        for o in misses.early
    ]
    return (
        f"<h3>Gold fell, and the page came too late or not at all</h3>{late}<h3>Healthy runs that were paged</h3>{false}"
        "<h3>Mild runs that were paged while gold rose</h3>"
        + (
            '<p class="small soft">Exploited features grow in these runs, and the KL penalty then limits them: such a page is a '
            f'reason to inspect the run.</p><div class="card scroll">{_table(early)}</div>'
            if early
            else '<p class="soft">None.</p>'
        )
    )


def _each(runs: Sequence[Outcome], ranges: Ranges, none: str) -> str:
    if not runs:
        return f'<p class="soft">{none}</p>'
    shown = [
        f"<div><h3>{html.escape(run.kind)}, seed {run.seed}</h3>{_verdict(run)}"
        f"{_image(plots.plot_run(run, ranges), f'alerts, gold and proxy of {run.kind}, seed {run.seed}')}</div>"
        for run in runs
    ]
    return f'<div class="card"><div class="grid">{"".join(shown)}</div></div>'


def _verdict(run: Outcome) -> str:
    fell = "gold does not fall" if run.fall is None else f"gold falls at {run.fall}"
    paged = "never paged" if run.page is None else f"paged at {run.page}, {run.drop:.2f} below the peak so far"
    return f'<p class="small"><span class="bad">{paged}</span>; gold has its maximum at {run.peak}, {fell}</p>'


def _image(png: str, what: str) -> str:
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{png}">'


if __name__ == "__main__":
    main()
