"""`python -m tests.prose`: count constructions that hide the subject of a sentence in the prose of the repository.

Counts per 1,000 words of docstrings, comments and messages, and of the documentation, against limits that only go down:
a change that exceeds one fails, and a change that gets well below one lowers it (`--limits` prints the table to paste).
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PATTERNS = {
    "who": re.compile(r"\b(?:who|whom|whoever|nobody|somebody|anybody|everybody)\b", re.IGNORECASE),
    "what": re.compile(
        r"\bwhat (?:is|are|was|were|has|have|had|can|cannot|may|must|will|would|comes?|stands?|does|did|goes|belongs?|follows?)\b",
        re.IGNORECASE,
    ),
    "own": re.compile(r"\b(?:of (?:its|their|his) own|anew)\b", re.IGNORECASE),
}
"""Words that stand for a person or a thing with a name: a client, a request, an operator, a field."""

AREAS = {
    "model": ("model/*.py",),
    "service": ("service/*.py",),
    "training": ("training/*.py",),
    "client": ("client/*.py", "client/README.md"),
    "benchmarks": ("benchmarks/*.py", "gym/*.py"),
    "tools": ("monitoring/*.py", "k8s/*.py", "docs/*.py", "examples/*.py"),
    "docs": (
        *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"),
        *("docs/*.md", ":!docs/decisions", "k8s/*.md", "monitoring/*.md", "examples/*.md"),
    ),
    "records": ("DECISIONS.md", "CHANGELOG.md", "docs/decisions/*.md"),
}

LIMITS: dict[str, dict[str, float]] = {
    "model": {"who": 0.1, "what": 0.1, "own": 0.1},
    "service": {"who": 0.0, "what": 0.1, "own": 0.0},
    "training": {"who": 0.0, "what": 0.0, "own": 0.0},
    "client": {"who": 0.0, "what": 0.0, "own": 0.0},
    "benchmarks": {"who": 0.0, "what": 0.0, "own": 0.0},
    "tools": {"who": 0.0, "what": 0.9, "own": 0.0},
    "docs": {"who": 0.0, "what": 0.1, "own": 0.0},
    "records": {"who": 0.1, "what": 0.1, "own": 0.1},
}
"""Most occurrences per 1,000 words."""

LEAST_YOU = 8.0
"""Fewest `you` and `your` per 1,000 words of the documentation, which speaks to its reader."""

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_YOU = re.compile(r"\byou(?:r|rs|rself)?\b", re.IGNORECASE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LIST = re.compile(r"<!-- list: .*?<!-- end of the list -->", re.DOTALL)
"""Generated from code, whose words are counted there."""
_FEWEST_WORDS = 4
"""Words of a string from which it is a message and no name."""


def main() -> int:
    """Print the rates. Return the exit code: 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limits", action="store_true", help="print today's numbers as limits")
    given = parser.parse_args()
    found = {area: rates(prose_of(area)) for area in AREAS}
    if given.limits:
        for area, each in found.items():
            print(f"    {area!r}: { ({name: each[name] for name in PATTERNS}) },".replace("'", '"'))
        return 0
    faults = [
        f"{area}: {rate} {name!r} per 1,000 words, at most {LIMITS[area][name]}"
        for area, each in found.items()
        for name, rate in each.items()
        if name != "you" and rate > LIMITS[area][name]
    ]
    if (you := found["docs"]["you"]) < LEAST_YOU:
        faults.append(f"docs: {you} 'you' per 1,000 words, at least {LEAST_YOU}")
    print(*(f"{area}: {each}" for area, each in found.items()), *faults, sep="\n")
    return int(bool(faults))


def rates(prose: str) -> dict[str, float]:
    """Occurrences of each construction per 1,000 words, rounded up to a tenth."""
    n_words = max(1, len(_WORD.findall(prose)))
    patterns = {**PATTERNS, "you": _YOU}
    return {name: -(-len(pattern.findall(prose)) * 10_000 // n_words) / 10 for name, pattern in patterns.items()}


def prose_of(area: str) -> str:
    """The sentences of the tracked files of an area, code left out."""
    listed = subprocess.run(
        ["git", "ls-files", *AREAS[area]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    texts = [(name, (ROOT / name).read_text(encoding="utf-8")) for name in listed]
    parts = (part for name, text in texts for part in (_sentences(text) if name.endswith(".py") else [text]))
    return _CODE.sub(" ", _LIST.sub(" ", "\n".join(parts)))


def _sentences(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") >= _FEWEST_WORDS:
            yield node.value


if __name__ == "__main__":
    sys.exit(main())
