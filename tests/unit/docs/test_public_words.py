"""Public names are made of the words in `public_words.txt`, and no name in the source of coined words that were replaced.

A new word is added to the list where the field's documentation uses it for the same thing; see `docs/decisions/docs-and-tests.md`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import rewardserve_client
from docs import reference

ROOT = Path(__file__).parents[3]
WORDS = Path(__file__).with_name("public_words.txt")
COINED = {
    "allowance", "baits", "corked", "commons", "exhibit", "house", "intake", "jury", "kin", "latecomer", "likeness", "lookout",
    "manners", "memo", "patience", "roster", "seams", "sung", "tally", "tenure", "yardstick",
}  # fmt: skip
"""Replaced by standard terms (`ModelRegistry`, `baseline`, `honeypots`, ...)."""
SOURCES = ("client", "model", "service", "training", "gym", "benchmarks")


def words(name: str) -> set[str]:
    """`RewardTripwirePaged` -> reward, tripwire, paged."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def public_names() -> Iterator[str]:
    yield from (each.variable for each in reference.settings())
    for metric in reference.metrics():
        yield from (metric.name, *metric.labels)
    for event in reference.log_events():
        yield from (event.name, *event.fields)
    yield from (each.code for each in reference.errors())
    yield from (each.name for each in reference.alerts())
    yield from (each.name for each in reference.wires())
    yield from rewardserve_client.__all__


def defined_names(path: Path) -> Iterator[str]:
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_public_names_are_made_of_listed_words():
    listed = WORDS.read_text(encoding="utf-8").split()
    assert listed == sorted(set(listed)), "one word a line, sorted"
    used = {word for name in public_names() for word in words(name)}
    assert used - set(listed) == set(), "words without an entry in the list"
    assert set(listed) - used == set(), "listed words that no public name has"


def test_replaced_words_do_not_come_back():
    paths = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 200
    found = {
        f"{path.relative_to(ROOT)}: {name}" for path in paths for name in defined_names(path) if words(name) & COINED
    }
    assert found == set()
