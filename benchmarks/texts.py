"""Real text of ragged length, from preference files if given, else from the pages of this project."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def samples(data: Path | None, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` samples in the wire form of `POST /score`, shuffled, the same for the same seed."""
    pool = _from_preferences(data) if data else _from_pages()
    random.Random(seed).shuffle(pool)
    return [pool[i % len(pool)] for i in range(n)]


def _from_preferences(folder: Path) -> list[dict[str, Any]]:
    """Both answers of every pair in the `.jsonl` and `.jsonl.gz` files of a folder. Other rows (rankings, ratings) are left out."""
    out: list[dict[str, Any]] = []
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                pair = json.loads(line)
                out += [
                    {"prompt": pair["prompt"], "response": pair[side]}
                    for side in ("chosen", "rejected")
                    if pair.get(side)
                ]
    if not out:
        raise SystemExit(f"{folder} has no .jsonl or .jsonl.gz with preference pairs")
    return out


def _from_pages() -> list[dict[str, Any]]:
    """Paragraphs of the documentation, each with a prompt made of its first words."""
    out: list[dict[str, Any]] = []
    for page in sorted(ROOT.glob("*.md")):
        paragraphs = [p.strip() for p in page.read_text().split("\n\n") if len(p.strip()) > 40]
        for i, paragraph in enumerate(paragraphs):
            words = paragraph.split()
            body = "\n\n".join(paragraphs[i : i + 1 + i % 4])
            out.append({"prompt": f"Continue: {' '.join(words[: 3 + i % 40])}", "response": body})
    return out
