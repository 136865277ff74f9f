"""Politeness test: how often a polite, useful answer scores above a rude one of the same length, for every head and the reward.

The 24 pairs are hand-written (training/recipes/politeness.jsonl); the good answer is the longer one in five of them, so
length is no advantage. `--pairs training/recipes/injections.jsonl` compares honest answers with the same or none beside text
that is addressed to the judge: 140 pairs of 20 texts that share no three words with the phrases of `augment`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Sample
from rewardserve.model.scorer import TokenBatch

PAIRS = Path(__file__).resolve().parent.parent / "training" / "recipes" / "politeness.jsonl"


def main() -> None:
    """Print one line a head."""
    parser = argparse.ArgumentParser(description="Compare the scores of good and rude answers of the same length.")
    parser.add_argument("--model", default="", help="folder or hub name; empty: the embedded default model")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="rows with prompt, chosen and rejected")
    given = parser.parse_args()
    model = load("torch", ModelSpec(given.model))
    pairs = [json.loads(line) for line in given.pairs.read_text("utf-8").splitlines()]
    samples = [Sample(prompt=p["prompt"], response=p[side]) for p in pairs for side in ("chosen", "rejected")]
    rows = model.scorer.score(TokenBatch(tuple(model.encode(s).ids for s in samples))).rows
    scores = {name: [row[name] for row in rows] for name, _ in model.identity.heads}
    scores["(reward)"] = [model.identity.raw(row) for row in rows]
    scores["(longer text)"] = [float(len(s.response or "")) for s in samples]
    for name, values in scores.items():
        print(f"{name:16} {sum(a > b for a, b in zip(values[::2], values[1::2], strict=True))} of {len(pairs)}")


if __name__ == "__main__":
    main()
