"""Every layout, chat template and pad token: the server's scores are those of the layout's code; the page has them all."""

from __future__ import annotations

import pytest

from tests import score_table

pytestmark = pytest.mark.slow

ALL = sorted({(layout, template) for layout, template, _ in score_table.combinations()})


@pytest.mark.sweep(8)
@pytest.mark.parametrize(("layout", "template"), ALL, ids=[" / ".join(each) for each in ALL])
def test_a_score_is_that_of_the_layouts_own_code(layout, template):
    pads = [pad for a, b, pad in score_table.combinations() if (a, b) == (layout, template)]
    assert {pad: score_table.difference(layout, template, pad) for pad in pads} == pytest.approx(
        dict.fromkeys(pads, 0.0), abs=1e-5
    )


def test_the_page_has_every_combination_and_no_difference():
    lines = score_table.PAGE.read_text().partition(score_table.BEGIN)[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert [tuple(row[:3]) for row in cells] == list(score_table.combinations())
    assert max(float(row[3]) for row in cells) <= 1e-5
