"""Cells hold any text, anchors are those of the site, and a link that leads nowhere is found."""

from __future__ import annotations

from docs.markdown import anchors, spaced, table, text
from docs.pages import linked
from tests.links import broken


def test_text_is_shown_as_it_is_and_code_stays_code():
    assert text("a|b <c> *d* [e](f) `x|*y*`\n z") == r"a&#124;b &lt;c&gt; \*d\* \[e\](f) `x|*y*` z"


def test_a_table_has_a_line_for_its_head():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_anchors_are_lower_case_words_and_count_repeats():
    page = "# A *page*\n## `POST /score`\n```\n# no heading\n```\n## What, then?\n## What, then?\n"
    assert anchors(page) == {"a-page", "post-score", "what-then", "what-then-1"}


def test_links_to_nowhere_are_found():
    pages = {
        "a.md": "[x](b.md) [x](b.md#two) [x](#one) `[x](nowhere.md)` [x](https://example.org/y)\n# One\n",
        "k8s/c.md": "[x](../b.md#three) [x](../gone.md)\n",
        "b.md": "# Two\n",
    }
    assert [list(broken(name, pages, pages.__contains__)) for name in pages] == [
        [],
        ["k8s/c.md: ../b.md#three: b.md has no heading of that name", "k8s/c.md: ../gone.md: there is no gone.md"],
        [],
    ]


def test_links_of_a_page_are_those_of_the_site_and_a_file_that_is_no_page_is_words():
    places = {"k8s/README.md": "how-to/kubernetes.md", "docs/how-to/webhook.md": "how-to/webhook.md"}
    page = "[a](../docs/how-to/webhook.md#x) [b](base/) [c](https://example.org)"
    assert linked("k8s/README.md", page, places) == "[a](webhook.md#x) b [c](https://example.org)"
    assert linked("docs/how-to/webhook.md", "[a](../../k8s/)", places) == "[a](kubernetes.md)"


def test_lists_and_tables_begin_after_an_empty_line():
    page = "Words:\n- one\n  more\n- two\nlazy\n\nWords\n| a |\n|---|\n| b |\n```\nx\n- y\n```\n## T\n1. one\n2. two\n"
    assert spaced(page) == (
        "Words:\n\n- one\n  more\n- two\nlazy\n\nWords\n\n| a |\n|---|\n| b |\n```\nx\n- y\n```\n## T\n\n1. one\n2. two\n"
    )
    assert spaced(spaced(page)) == spaced(page)
