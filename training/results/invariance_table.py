"""The section of a report that shows an `InvarianceReport`, as HTML. Computes no figure."""

from __future__ import annotations

import html

from rewardserve.training.evaluation.invariance import InvarianceReport, TransformFigures
from rewardserve.training.transforms import TRANSFORMS

_COLUMNS = (
    "transform",
    "why the meaning stays",
    "responses",
    "mean shift (sd)",
    "mean size (sd)",
    "flips: winner",
    "loser",
    "both",
)


def section(report: InvarianceReport | None) -> str:
    """Heading, table and note; empty without a report."""
    if report is None:
        return ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in _COLUMNS)
    refused = f" {report.n_refused} changed responses were too long and are left out." if report.n_refused else ""
    return (
        f'<h2>Invariance</h2><table class="figures"><tr>{head}</tr>{"".join(map(_line, report.transforms))}</table>'
        f'<p class="note">Changes of a response that keep its meaning, on {report.n_responses:,} responses of {report.n_pairs:,} '
        "held-out pairs. The shift is in standard deviations of the score over these responses, with its 95 % interval over "
        "groups. Flips: share of pairs in which the response with the lower score gets the higher one when the winner, the "
        f"loser, or both are changed.{refused} A judge of content has zeros here.</p>"
    )


def _line(line: TransformFigures) -> str:
    interval = "" if line.shift_low is None else f" <small>{line.shift_low:+.3f} to {line.shift_high:+.3f}</small>"
    cells = [
        html.escape(line.name),
        html.escape(TRANSFORMS[line.name].reason),
        f"{line.n_responses:,}",
        f"{line.shift:+.3f}{interval}" if line.shift is not None else "none changed",
        _number(line.abs_shift, 3),
        *(_number(share, 3) for share in (line.winner_flips, line.loser_flips, line.both_flips)),
    ]
    names = zip(_COLUMNS, cells, strict=True)
    return "<tr>" + "".join(f'<td data-name="{html.escape(name)}"><span>{c}</span></td>' for name, c in names) + "</tr>"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
