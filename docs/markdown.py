"""Write Markdown: tables whose cells may hold any text, and headings with their anchors. Knows nothing of the product."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"([\\*_\[\]])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "|": "&#124;"}
_FENCE = re.compile(r"^( {0,3})(```|~~~).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_IN_LIST = re.compile(r"(?:[-*]|\d+\.) | {2,}\S")
_ROW = re.compile(r"\|")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")


def text(words: str) -> str:
    """Escape words for Markdown: only text between backticks is code."""
    parts = _CODE.split(" ".join(words.split()))
    return "".join(part if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(words: str) -> str:
    return "".join(_ENTITIES.get(each, each) for each in _MARKUP.sub(r"\\\1", words))


def code(value: object) -> str:
    """Write a value as code; an empty one as no text."""
    return f"`{value}`" if str(value) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already. A vertical bar within code is none between cells."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page, as code forges and the site make them."""
    seen: dict[str, int] = {}
    found = set()
    for heading in _HEADING.findall(without_code(page)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = _NOT_IN_ANCHOR.sub("", words.replace("*", "")).strip().lower().replace(" ", "-")
        n = seen.get(slug, 0)
        seen[slug] = n + 1
        found.add(f"{slug}-{n}" if n else slug)
    return found


def spaced(page: str) -> str:
    """A page with an empty line before each list and table, which the builder needs and code forges do not."""
    lines: list[str] = []
    in_fence = False
    for line in page.split("\n"):
        before = lines[-1] if lines else ""
        opens = (_ITEM.match(line) and not _IN_LIST.match(before)) or (_ROW.match(line) and not _ROW.match(before))
        if opens and before.strip() and not in_fence:
            lines.append("")
        in_fence ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


def without_code(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page)
