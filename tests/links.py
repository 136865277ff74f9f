"""`python -m tests.links`: whether every link of the documentation leads somewhere. Asks no server.

Checked are relative links of all Markdown files with their anchors, the links between the pages of the site with its generated
lists, and every path of a page of `docs/` that any file names, as messages and alert rules do.
"""

from __future__ import annotations

import os.path
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from docs.markdown import anchors, without_code
from docs.pages import site

ROOT = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_NAMED = re.compile(r"(?<![\w./-])docs/[\w./-]+\.md\b")


def main() -> int:
    """The exit code: 1 where a link leads nowhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    pages = {name: (ROOT / name).read_text("utf-8") for name in names if name.endswith(".md")}
    built = site()
    images = {name.removeprefix("docs/") for name in names if name.startswith("docs/images/")}
    faults = [
        *(fault for name in pages for fault in broken(name, pages, lambda path: (ROOT / path).exists())),
        *(
            f"site: {fault}"
            for name in built
            for fault in broken(name, built, lambda path: path in built or path in images)
        ),
        *(fault for name in names for fault in named_nowhere(name)),
    ]
    print(f"links: {len(pages)} files, {len(built)} pages of the site", *faults, sep="\n")
    return int(bool(faults))


def broken(name: str, pages: Mapping[str, str], exists: Callable[[str], bool]) -> Iterator[str]:
    """The links of a page that lead nowhere."""
    for link in _LINK.findall(_INLINE_CODE.sub("", without_code(pages[name]))):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
        if not exists(path):
            yield f"{name}: {link}: there is no {path}"
        elif anchor and path in pages and anchor not in anchors(pages[path]) and not _is_in_list(path, pages):
            yield f"{name}: {link}: {path} has no heading of that name"


def _is_in_list(path: str, pages: Mapping[str, str]) -> bool:
    """Whether headings of this page are generated; the page of the site has them."""
    return "<!-- list: " in pages[path]


def named_nowhere(name: str) -> Iterator[str]:
    """Paths of pages that a file names, and that are not there."""
    try:
        text = (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return
    for path in sorted(set(_NAMED.findall(text))):
        if not (ROOT / path).is_file():
            yield f"{name}: names {path}, which is not there"


if __name__ == "__main__":
    sys.exit(main())
