"""The section of a report that shows a `StyleMatrix`, as HTML. Computes no figure."""

from __future__ import annotations

import html

from rewardserve.training.evaluation.benchmark_files import StyleMatrix


def section(matrix: StyleMatrix | None) -> str:
    """Heading, table and note; empty without a matrix."""
    if matrix is None:
        return ""
    head = "".join(f"<th>{html.escape(f'rejected: {style}')}</th>" for style in matrix.styles)
    rows = "".join(
        f"<tr><td>{html.escape(f'chosen: {style}')}</td>"
        + "".join(
            f'<td data-name="{html.escape(f"rejected: {other}")}"><span>{share:.3f}</span></td>'
            for other, share in zip(matrix.styles, shares, strict=True)
        )
        + "</tr>"
        for style, shares in zip(matrix.styles, matrix.accuracy, strict=True)
    )
    return (
        f'<h2>Style</h2><table class="figures"><tr><th></th>{head}</tr>{rows}</table>'
        f'<p class="note">Share of {matrix.n_prompts:,} prompts whose chosen response, in the style of the row, scores higher than '
        f"the rejected one in that of the column ({html.escape(matrix.origin)}). Hard (the rejected response has the richer style) "
        f"{matrix.hard:.3f}, normal (equal styles) {matrix.normal:.3f}, easy {matrix.easy:.3f}. A judge of content has three equal "
        "figures.</p>"
    )
