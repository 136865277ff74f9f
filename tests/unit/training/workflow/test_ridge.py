"""The ridge of a head is that of the lowest loss on pairs whose group no fit has seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rewardserve.cli import main
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.evaluation import folds
from rewardserve.training.loop.methods import fit_logistic
from rewardserve.training.workflow.ridge import FALLBACK, GRID, N_FOLDS, choose_ridge
from tests.support import planted_pairs as planted
from tests.unit.training.loop.test_trainer import COMPARISONS, table_of

WIDTH = 16


def world(n_pairs: int, n_groups: int, noise: float) -> tuple[torch.Tensor, FeedbackTable]:
    """Pairs over separate sequences whose first feature is right, with labels that are often wrong."""
    rng = np.random.default_rng(0)
    hidden_ND = rng.normal(size=(2 * n_pairs, WIDTH))
    small = table_of(COMPARISONS)
    rows = []
    for p in range(n_pairs):
        a, b = 2 * p, 2 * p + 1
        better = hidden_ND[a, 0] - hidden_ND[b, 0] + noise * rng.normal() > 0
        rows.append((a, b) if better else (b, a))
    item, sequence = small.items[0], small.sequences[0]
    items = [replace(item, id=str(p), group=f"g{p % n_groups}") for p in range(n_pairs)]
    sequences = [
        replace(sequence, ids=(1, n), sample=replace(sequence.sample, text=f"text {n}")) for n in range(2 * n_pairs)
    ]
    return torch.tensor(hidden_ND, dtype=torch.float32), FeedbackTable(tuple(items), tuple(sequences), tuple(rows), {})


def test_few_noisy_pairs_get_a_stronger_ridge_than_many_clean_ones():
    noisy = choose_ridge(*world(40, 10, noise=4.0), "score", "salt")
    clean = choose_ridge(*world(400, 10, noise=0.2), "score", "salt")
    assert noisy.l2 >= 0.3 > clean.l2
    assert "'score'" in str(noisy)
    assert f"{noisy.l2:g}: " in str(noisy)


def test_the_losses_are_those_of_pairs_that_no_fit_has_seen():
    hidden_ND, table = world(60, 6, noise=1.0)
    found = choose_ridge(hidden_ND, table, "score", "salt")
    fold_P = folds.assign_folds(table.items, N_FOLDS, "salt")
    for l2 in GRID[::3]:
        loss = 0.0
        for fold in set(fold_P):
            held_in = subset(table, [f != fold for f in fold_P], renumber=False)
            w_D = fit_logistic(hidden_ND, held_in, "score", l2=l2)
            for f, (chosen, rejected) in zip(fold_P, table.rows, strict=True):
                if f == fold:
                    loss += float(torch.nn.functional.softplus(-(hidden_ND[chosen] - hidden_ND[rejected]) @ w_D))
        assert found.loss_of[l2] == pytest.approx(loss / 60, rel=1e-5)
    assert found.loss_of[found.l2] == min(found.loss_of.values())


def test_pairs_of_one_group_get_the_fallback():
    found = choose_ridge(*world(20, 1, noise=1.0), "score", "salt")
    assert (found.l2, found.loss_of) == (FALLBACK, {})
    assert "one group" in str(found)


def test_the_report_names_a_ridge_that_was_chosen_and_none_that_was_set(tmp_path, capsys):
    pairs = planted.write_jsonl(tmp_path / "pairs.jsonl", planted.planted_rows(60))
    recipe = planted.recipe_file(
        tmp_path / "recipe.yaml",
        model={"path": str(planted.language_model(tmp_path / "sft", layers=1)), "head_init": "logistic"},
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.2},
        method={"name": "frozen"},
        optim={"epochs": 0},
        encoding={"max_tokens": 128},
        eval={"bootstrap": 10, "invariance_pairs": 0},
        output={"folder": str(tmp_path / "chosen")},
    )
    assert main(["train", "--config", str(recipe)]) == 0
    assert (
        main(
            ["train", "--config", str(recipe), "--set", "model.head_l2=[0.1]", "--set", f"output.folder={tmp_path}/set"]
        )
        == 0
    )
    reports = [json.loads((tmp_path / n / "checkpoint/training_report.json").read_text()) for n in ("chosen", "set")]
    assert any("ridge of head 'score'" in note for note in reports[0]["notes"])
    assert not any("ridge" in note for note in reports[1].get("notes", []))
    assert capsys.readouterr().out.count("ridge of head 'score'") == 1
