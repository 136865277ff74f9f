"""The exported checkpoint is the best step by a held-out metric, and training ends when no better one comes."""

from __future__ import annotations

import json
import math

import pytest
from safetensors.torch import load_file

from rewardserve.cli import main
from rewardserve.model.checkpoint import ReadOptions, read
from rewardserve.training import workflow
from rewardserve.training.batches import scoring
from rewardserve.training.errors import Stopped
from rewardserve.training.evaluation import evaluate
from rewardserve.training.loop import step_checkpoints, trainer
from rewardserve.training.loop.trainer import RewardTrainer
from rewardserve.training.settings.recipe import load
from rewardserve.training.workflow import run
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

METHODS = {
    "full": {},
    "lora": {"method": {"name": "lora", "rank": 2, "dropout": 0.1}},
    "frozen": {"method": {"name": "frozen"}, "model": {"head_init": "logistic", "head_l2": [0.1]}},
    "ema": {"optim": {"ema": 0.8}},
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


def recipe_in(folder, sft, *, method="full", **evaluation):
    """Steps that are far too large after a while: the best step is in the middle."""
    folder.mkdir(exist_ok=True)
    rows = world.planted_rows(160)
    for row in rows[::4]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    pairs = world.write_jsonl(folder / "pairs.jsonl", rows)
    extra = METHODS[method]
    return str(
        world.recipe_file(
            folder / "recipe.yaml",
            model={"path": str(sft), **extra.get("model", {})},
            data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
            encoding={"max_tokens": 64},
            optim={"lr": 0.02, "max_steps": 24, "batch_pairs": 8, "schedule": "constant"} | extra.get("optim", {}),
            method=extra.get("method", {"name": "full"}),
            eval={"bootstrap": 10, "steps": 3, "best_by": "nll", **evaluation},
            output={"folder": str(folder / "out"), "log_steps": 1, "save_steps": 5, "keep": 9},
        )
    )


def report_of(out):
    return json.loads((out / "checkpoint" / "training_report.json").read_text())


def history_of(out):
    last = step_checkpoints.last_complete(out / "steps")
    return json.loads((last / "trainer_state.json").read_text())["log_history"]


def judged_again(recipe, checkpoint):
    """Accuracy and NLL of a written checkpoint on the held-out pairs of the recipe."""
    config = load(recipe)
    table = workflow.encode(config, workflow.load_start(config)).held_out
    network = (found := read(str(checkpoint), ReadOptions(dtype="float32"))).network
    rows = [s.ids for s in table.sequences]
    scores_NH = scoring.score(network, rows, pad_id=found.pad_id, batch_tokens=512)
    return evaluate.overall(table, scores_NH, network.head_names)


@pytest.mark.parametrize("method", METHODS)
def test_the_exported_checkpoint_is_the_best_step(tmp_path, sft, method):
    from pathlib import Path

    recipe = Path(recipe_in(tmp_path / "run", sft, method=method))
    assert main(["train", "--config", str(recipe)]) == 0
    out = tmp_path / "run" / "out"
    seen = {line["step"]: line["eval_nll"] for line in history_of(out) if "eval_nll" in line}
    assert sorted(seen) == [3, 6, 9, 12, 15, 18, 21, 24]
    best = min(seen, key=seen.get)
    assert best < 24, "the last step is not the best, or this test shows nothing"
    assert report_of(out)["best step"] == {"step": best, "metric": "nll", "value": seen[best]}
    assert f"{best} of 24: the best nll ({seen[best]:.4g}) of 8 evaluations" in (out / "report.html").read_text()
    assert judged_again(recipe, out / "checkpoint")["nll"] == pytest.approx(seen[best], rel=1e-4)
    assert report_of(out)["metrics"][0]["nll"] == pytest.approx(seen[best], rel=1e-4)


def test_patience_ends_training_and_a_resumed_run_ends_at_the_same_step(tmp_path, sft, monkeypatch):
    recipe = recipe_in(tmp_path / "run", sft, patience=2)
    assert main(["train", "--config", recipe]) == 0
    out = tmp_path / "run" / "out"
    seen = {line["step"]: line["eval_nll"] for line in history_of(out) if "eval_nll" in line}
    best = min(seen, key=seen.get)
    assert max(seen) == best + 6 < 24, "two evaluations after the best"
    assert step_checkpoints.last_complete(out / "steps").name == f"checkpoint-{max(seen)}"

    # The same run, stopped after its best step, and once more after its last.
    other = recipe_in(tmp_path / "other", sft, patience=2)
    real = RewardTrainer.compute_loss

    def stopping(self, *args, **kwargs):
        if self.state.global_step == best + 3:
            raise Stopped("here")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "compute_loss", stopping)
        assert main(["train", "--config", other, "--set", "output.save_steps=1"]) == 130
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--config", other, "--set", "output.resume=true"])
    assert main(["train", "--config", other, "--set", "output.resume=true"]) == 0
    again = tmp_path / "other" / "out"
    assert step_checkpoints.last_complete(again / "steps").name == f"checkpoint-{max(seen)}", "not one step more"
    assert report_of(again)["best step"] == pytest.approx(report_of(out)["best step"])
    weights = [load_file(each / "checkpoint" / "model.safetensors") for each in (out, again)]
    for name, tensor in weights[0].items():
        assert tensor.flatten().tolist() == pytest.approx(weights[1][name].flatten().tolist(), abs=1e-5), name


def test_all_ranks_choose_by_the_figures_of_the_first(tmp_path, sft, monkeypatch):
    """Each would evaluate to its own last digits, and some would stop while others wait for them."""
    monkeypatch.setattr(trainer, "broadcast_object_list", lambda own: [{"accuracy": 0.5, "nll": 0.125}])
    recipe = recipe_in(tmp_path / "run", sft, method="frozen", patience=2)
    assert main(["train", "--config", recipe]) == 0
    assert report_of(tmp_path / "run" / "out")["best step"] == {"step": 3, "metric": "nll", "value": 0.125}


def test_finish_exports_the_best_step_of_a_stopped_run(tmp_path, sft, monkeypatch):
    recipe = recipe_in(tmp_path / "run", sft)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--config", recipe])
    out = tmp_path / "run" / "out"
    best = step_checkpoints.read_best(out / "steps", "nll")
    assert main(["finish", "--config", recipe]) == 0
    assert report_of(out)["metrics"][0]["nll"] == pytest.approx(best.value, rel=1e-4)
    assert report_of(out)["best step"]["step"] == best.step


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["eval.steps=0"], "set eval.steps"),
        (["eval.best_by=null", "eval.patience=3"], "set eval.best_by"),
        (["data.eval_fraction=0"], "no pair is held out"),
        (["optim.epochs=0", "optim.max_steps=-1"], "has no effect with optim.epochs: 0"),
    ],
)
def test_a_best_step_that_cannot_be_chosen_is_refused(tmp_path, sft, capsys, sets, says):
    recipe = recipe_in(tmp_path / "run", sft, method="frozen")
    assert main(["train", "--config", recipe, *(word for each in sets for word in ("--set", each))]) == 2
    assert says in capsys.readouterr().err


def test_a_fold_is_not_stopped_by_the_pairs_that_judge_it(tmp_path, sft, capsys):
    recipe = recipe_in(tmp_path / "run", sft, method="frozen", patience=1)
    assert main(["crossvalidate", "--config", recipe, "--folds", "2"]) == 0
    assert "eval.best_by is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("accuracy", [0.5, 0.7, math.nan, 0.7], 2), ("nll", [0.6, 0.4, 0.9, 0.4], 2)]
)
def test_the_earliest_of_equal_steps_is_the_best_and_nan_is_none(tmp_path, metric, values, best):
    from types import SimpleNamespace

    from rewardserve.training.settings.output_config import EvalConfig

    keep = step_checkpoints.KeepBest(EvalConfig(steps=1, best_by=metric), dict)
    args = SimpleNamespace(output_dir=str(tmp_path))
    for step, value in enumerate(values, 1):
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        keep.on_evaluate(args, state, SimpleNamespace(), {f"eval_{metric}": value})
    assert step_checkpoints.read_best(tmp_path, metric).step == best
