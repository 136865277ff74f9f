"""Rows of a queue whose responses are both bad lower the scores of such responses, where the recipe labels them."""

from __future__ import annotations

import pytest

from rewardserve.cli import main
from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Sample
from rewardserve.model.scorer import TokenBatch
from rewardserve.training.dataset.counterexamples import QueueResponse, queue_id
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")


def queue_row(prompt, a, b, verdict):
    number = queue_id(prompt, QueueResponse(a), QueueResponse(b))
    return {"id": number, "prompt": prompt, "a": a, "b": b, "verdict": verdict}


def test_labels_of_bad_responses_lower_their_scores(tmp_path, capsys):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(60))
    rows = [queue_row(f"stone {i}", f"metal metal {i}", f"cloud metal {i}", "both_bad") for i in range(12)]
    rows += [queue_row(f"river {i}", f"green {i} kindly", f"green {i} rudely", "a") for i in range(12)]
    queue = world.write_jsonl(tmp_path / "queue.jsonl", rows)
    mean = {}
    for both_bad in ("leave_out", "labels"):
        recipe = world.recipe_file(
            tmp_path / f"{both_bad}.yaml",
            model={"path": str(sft)},
            data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.2},
            counterexamples={"path": str(queue), "both_bad": both_bad},
            encoding={"max_tokens": 128},
            optim={"lr": 2e-3, "batch_pairs": 8, "max_steps": 20},
            eval={"bootstrap": 10, "invariance_pairs": 0},
            output={"folder": str(tmp_path / both_bad)},
        )
        assert main(["train", "--config", str(recipe)]) == 0
        model = load("torch", ModelSpec(str(tmp_path / both_bad / "checkpoint"), device="cpu"))
        ids = [model.encode(Sample(prompt=f"stone {i}", response=f"metal cloud {i}")).ids for i in range(20, 30)]
        mean[both_bad] = sum(row["score"] for row in model.scorer.score(TokenBatch(tuple(ids))).rows) / len(ids)
        model.scorer.close()
    assert mean["labels"] < min(0, mean["leave_out"]) - 0.2
    out = capsys.readouterr().out
    assert "12 both bad" in out
    assert "24 bad labels, of rows whose responses are both bad" in out


def test_convex_heads_refuse_labels_that_they_would_not_read(tmp_path, capsys):
    recipe = world.recipe_file(
        tmp_path / "recipe.yaml",
        model={"path": "m", "head_init": "logistic"},
        data={"sources": [{"path": "pairs.jsonl"}]},
        counterexamples={"path": "queue.jsonl", "both_bad": "labels"},
        method={"name": "frozen"},
        optim={"epochs": 0},
        output={"folder": str(tmp_path / "out")},
    )
    assert main(["train", "--config", str(recipe)]) == 2
    assert "counterexamples.both_bad: labels has no effect with optim.epochs: 0" in capsys.readouterr().err
