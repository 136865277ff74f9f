"""`python -m tests.links`: check that every link of the documentation has a target. Opens no connection.

Checked are relative links of all Markdown files with their anchors, the links between the pages of the site with its generated
lists, and every path of a page of `docs/` that any file names, as messages and alert rules do. The words of a link to a module,
`module.name`, must be a name that the module defines.
"""

from __future__ import annotations

import ast
import os.path
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from docs.markdown import anchors, without_code
from docs.pages import site

ROOT = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_NAME_LINK = re.compile(r"\[`(\w+(?:\.\w+)*)`\]\(([^)\s]+\.py)\)")
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_NAMED = re.compile(r"(?<![\w./-])docs/[\w./-]+\.md\b")


def main() -> int:
    """Print broken links. Return the exit code: 1 where there is one."""
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
        *(fault for name, page in pages.items() for fault in undefined(name, page)),
    ]
    print(f"links: {len(pages)} files, {len(built)} pages of the site", *faults, sep="\n")
    return int(bool(faults))


def broken(name: str, pages: Mapping[str, str], exists: Callable[[str], bool]) -> Iterator[str]:
    """Yield the links of a page without a target."""
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
    """Yield paths of pages that a file names and that do not exist."""
    try:
        text = (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return
    for path in sorted(set(_NAMED.findall(text))):
        if not (ROOT / path).is_file():
            yield f"{name}: names {path}, which does not exist"


def undefined(name: str, page: str) -> Iterator[str]:
    """Links of a page to modules whose words, `module.name`, are no name of the module."""
    for words, link in _NAME_LINK.findall(page):
        path = ROOT / os.path.dirname(name) / link
        module = path.parent.name if path.stem == "__init__" else path.stem
        first, _, rest = words.partition(".")
        if path.is_file() and rest != "py" and (first != module or (rest and rest not in defined(path))):
            yield f"{name}: `{words}`: {link} does not define it"


@cache
def defined(path: Path) -> frozenset[str]:
    """Names that a module defines: its functions, classes and variables, and methods and fields of its classes as `Class.name`."""
    return frozenset(_names(ast.parse(path.read_text("utf-8")).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{name}" for name in _names(node.body))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


if __name__ == "__main__":
    sys.exit(main())
