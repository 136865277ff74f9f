"""DECISIONS.md lists every entry of the pages of decisions, in their order, with its date."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_decision_is_listed_under_its_area():
    index = (ROOT / "DECISIONS.md").read_text()
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    listed = re.findall(
        r"^- \[(.+?)\]\(docs/decisions/([\w-]+\.md)#[\w-]+\) \((20\d\d-\d\d-\d\d)\)$", index, re.MULTILINE
    )
    assert len(pages) > 10
    assert len(listed) == index.count("\n- ")
    for page in pages:
        entries = re.findall(r"^### (.+) \((20\d\d-\d\d-\d\d)\)$", page.read_text(), re.MULTILINE)
        assert entries == [(title, date) for title, name, date in listed if name == page.name], page.name
