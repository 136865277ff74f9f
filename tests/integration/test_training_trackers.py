"""The curves of a run in the trackers that a recipe names. The real ones are tested where they are installed, without a network."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rewardserve.cli import main
from rewardserve.training.errors import NonFiniteLoss
from rewardserve.training.loop.trainer import RewardTrainer
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
SECRET = "k" * 24 + "0123456789abcdef"
ACCOUNTS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"), layers=1)


def recipe_in(folder, sft, **sections):
    pairs = world.write_jsonl(folder / "pairs.jsonl", world.planted_rows(60))
    base = {
        "model": {"path": str(sft)},
        "data": {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
        "encoding": {"max_tokens": 64},
        "optim": {"lr": 1e-3, "max_steps": 4, "batch_pairs": 8},
        "eval": {"bootstrap": 10, "steps": 2},
    }
    output = {"folder": str(folder / "out"), "log_steps": 1, **sections.pop("output", {})}
    return str(world.recipe_file(folder / "recipe.yaml", **(base | sections), output=output))


def train(recipe, folder, **env):
    """In its own process: trackers keep their run in globals, and begin threads."""
    secrets = dict.fromkeys(ACCOUNTS, SECRET)
    run = subprocess.run(
        [sys.executable, "-m", "rewardserve", "train", "--config", recipe],
        cwd=ROOT, env={**os.environ, **secrets, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    said = run.stdout + run.stderr
    assert SECRET not in said
    for file in folder.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    (state,) = (folder / "out" / "steps").glob("checkpoint-*/trainer_state.json")
    return [line for line in json.loads(state.read_text())["log_history"] if "loss" in line]


@pytest.mark.slow
def test_mlflow_has_the_curves_under_the_name_of_the_run_and_no_key(tmp_path, sft):
    pytest.importorskip("mlflow")
    recipe = recipe_in(tmp_path, sft, output={"report_to": ["mlflow", "tensorboard"], "run_name": "first try"})
    store = tmp_path / "mlruns"
    history = train(recipe, tmp_path, MLFLOW_TRACKING_URI=store.as_uri(), MLFLOW_ALLOW_FILE_STORE="true")
    (run,) = (path.parent for path in store.glob("*/*/meta.yaml") if (path.parent / "metrics").is_dir())
    for ours, theirs in (("loss", "loss"), ("accuracy", "accuracy"), ("learning_rate", "learning_rate")):
        lines = [line.split() for line in (run / "metrics" / theirs).read_text().splitlines()]
        assert [(int(step), float(value)) for _, value, step in lines] == [
            (h["step"], pytest.approx(h[ours])) for h in history
        ]
    assert len(list((run / "metrics").rglob("accuracy"))) == 2, "that of the held-out pairs too"
    assert (run / "tags" / "mlflow.runName").read_text() == "first try"
    assert "status: 3" in (run / "meta.yaml").read_text(), "FINISHED"
    assert list((tmp_path / "out" / "logs").glob("events.*"))


@pytest.mark.slow
def test_trackio_has_the_curves_and_the_audit_judge_has_a_run_of_its_own(tmp_path, sft):
    pytest.importorskip("trackio")
    recipe = recipe_in(tmp_path, sft, output={"report_to": "trackio"}, audit_judge={"n_layers": 1})
    history = train(recipe, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, *_ in rows} == {"out", "out-audit_judge"}
    logged = [json.loads(metrics) for name, _, metrics in rows if name == "out"]
    assert [m["train/loss"] for m in logged if "train/loss" in m] == pytest.approx([h["loss"] for h in history])
    assert not (tmp_path / "out" / "logs").exists(), "TensorBoard was not named"


@pytest.mark.slow
def test_wandb_has_one_run_for_each_training_and_keeps_no_key(tmp_path, sft):
    pytest.importorskip("wandb")
    recipe = recipe_in(tmp_path, sft, output={"report_to": "wandb"}, audit_judge={"n_layers": 1})
    history = train(recipe, tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path / "wandb"))
    logs = sorted((tmp_path / "wandb").rglob("run-*.wandb"))
    assert len(logs) == 2, "the audit judge's and the model's"
    names = [b"out-audit_judge" in log.read_bytes() for log in logs]
    assert sorted(names) == [False, True]
    assert str(history[-1]["loss"]).encode() in logs[names.index(False)].read_bytes()


def fake_mlflow(kept):
    """What `transformers.integrations.MLflowCallback` calls of the library, in memory."""
    library = ModuleType("mlflow")
    library.__version__ = "3.0"
    library.__spec__ = SimpleNamespace(name="mlflow")
    validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    library.utils = SimpleNamespace(validation=validation)
    library.is_tracking_uri_set = lambda: True
    library.get_tracking_uri = lambda: "memory"
    library.active_run = lambda: kept.get("run")
    library.set_tags = library.log_params = lambda *args, **kwargs: None

    def start_run(run_name, nested):
        kept.update(name=run_name, run=SimpleNamespace(info=SimpleNamespace(run_id="1")), metrics=[])

    def log_metrics(metrics, step, synchronous=True):
        kept["metrics"].append((step, metrics))

    def end_run(status="FINISHED"):
        kept.update(run=None, status=status)

    library.start_run, library.log_metrics, library.end_run = start_run, log_metrics, end_run
    return library


@pytest.mark.parametrize("fails", [False, True])
def test_a_tracker_gets_the_curves_from_transformers_and_learns_how_the_run_ended(tmp_path, sft, monkeypatch, fails):
    """A fake library behind the callback of transformers: the real ones are not among the packages of the tests."""
    kept = {}
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(kept))
    if fails:
        monkeypatch.setattr(RewardTrainer, "compute_loss", failing)
    assert main(["train", "--config", recipe_in(tmp_path, sft, output={"report_to": "mlflow"})]) == int(fails)
    assert kept["name"] == "out"
    assert (kept["run"], kept["status"]) == (None, "FAILED" if fails else "FINISHED")
    if not fails:
        assert [step for step, metrics in kept["metrics"] if "loss" in metrics] == [1, 2, 3, 4]
        assert [step for step, metrics in kept["metrics"] if "eval_score/planted/accuracy" in metrics] == [2, 4]


def failing(*args, **kwargs):
    raise NonFiniteLoss("step 1")


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_the_data_are_read(tmp_path, sft, monkeypatch, capsys, name):
    from rewardserve.training.loop import reporting

    monkeypatch.setattr(reporting, "find_spec", lambda package: None)
    recipe = recipe_in(tmp_path, sft, output={"report_to": name})
    assert main(["train", "--config", recipe]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"output.report_to names {name}" in line
    assert f"pip install 'rewardserve[{name}]'" in line
    assert not (tmp_path / "out" / "steps").exists()


def test_an_account_that_is_refused_ends_the_run_before_the_data_are_read(tmp_path, sft, monkeypatch, capsys):
    def login():
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    library = ModuleType("wandb")
    library.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    library.login = login
    library.__spec__ = SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", library)
    assert main(["train", "--config", recipe_in(tmp_path, sft, output={"report_to": "wandb"})]) == 2
    captured = capsys.readouterr()
    assert "wandb cannot be used here: No API key configured. Use `wandb login`" in captured.err
    assert "rows read" not in captured.out


@pytest.mark.parametrize("value", ["neptune", ["wandb", "wandb"]])
def test_a_tracker_that_is_unknown_or_named_twice_is_refused(tmp_path, sft, capsys, value):
    assert main(["train", "--config", recipe_in(tmp_path, sft, output={"report_to": value})]) == 2
    assert "output.report_to" in capsys.readouterr().err
