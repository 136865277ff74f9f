"""Two processes train what one process trains with twice the accumulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from rewardserve.cli import main
from rewardserve.model.contract import ScoringContract
from rewardserve.training.loop.step_checkpoints import read_best
from rewardserve.training.workflow import data_checks
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]


def recipe_in(folder: Path, sft: Path, pairs: Path, sections: dict[str, Any] | None = None, **optim: float) -> Path:
    folder.mkdir()
    return world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(sft)},
        # No pair is held out: 96 pairs are 12 batches of 8, so no batch is repeated to make the ranks even.
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0},
        encoding={"max_tokens": 128},
        optim={"lr": 1e-3, "max_steps": 10, "batch_pairs": 8, **optim},
        output={"folder": str(folder / "out"), "log_steps": 1},
        **(sections or {}),
    )


def curve(folder: Path) -> list[tuple[float, float]]:
    states = sorted((folder / "out" / "steps").glob("**/checkpoint-*/trainer_state.json"))
    lines = [line for state in states for line in json.loads(state.read_text())["log_history"]]
    return [(line["loss"], line["accuracy"]) for line in lines if "loss" in line]


ACCELERATE = ROOT / "training/recipes/accelerate"


def fsdp_settings() -> dict[str, str]:
    """What `accelerate launch` makes of the shipped file."""
    config = yaml.safe_load((ACCELERATE / "fsdp.yaml").read_text())["fsdp_config"]
    plain = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in config.items()}
    return {"ACCELERATE_USE_FSDP": "true", **{name.upper(): value for name, value in plain.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "rank": 2}], ids=["full", "lora"])
def test_sharded_weights_walk_the_path_of_whole_ones_to_the_same_best_step(tmp_path, method):
    """FSDP of accelerate, on two processes of gloo: the settings of the shipped file."""
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(96))
    held_out = world.write_jsonl(tmp_path / "held_out.jsonl", world.planted_rows(40, seed=7, n_groups=7))
    for name, accumulate in (("one", 2), ("two", 1)):
        recipe = recipe_in(tmp_path / name, sft, pairs, accumulate=accumulate, lr=0.01)
        sections = yaml.safe_load(recipe.read_text())
        sections["data"]["eval_sources"] = [{"path": str(held_out)}]
        sections["data"]["max_dropped"] = 1.0
        sections["eval"] = {"steps": 2, "best_by": "nll", "bootstrap": 10, "invariance_pairs": 0}
        world.recipe_file(recipe, **sections, method=method)
    assert main(["train", "--config", str(tmp_path / "one" / "recipe.yaml")]) == 0
    in_two_ranks(tmp_path / "two" / "recipe.yaml", "tests.support.fsdp_on_cpu", **fsdp_settings())
    assert_same_path(tmp_path)
    best = [read_best(tmp_path / n / "out" / "steps", "nll") for n in ("one", "two")]
    assert best[1].step == best[0].step
    assert best[1].value == pytest.approx(best[0].value, abs=1e-6)


@pytest.mark.parametrize("name", ["fsdp.yaml", "deepspeed_zero2.yaml", "deepspeed_zero3.yaml"])
def test_the_shipped_files_of_accelerate_are_read_by_it(name):
    config = load_config_from_file(str(ACCELERATE / name))
    assert config.distributed_type.value == name.partition(".")[0].partition("_")[0].upper()
    assert f"--config_file training/recipes/accelerate/{name} -m rewardserve train" in (ACCELERATE / name).read_text()


def test_a_network_names_the_layers_that_are_sharded_one_by_one(tmp_path):
    from rewardserve.model.network import RewardNetwork
    from rewardserve.training.loop.methods import adapt
    from tests.unit.training.loop.test_trainer import COMPARISONS, config, llama, table_of, trainer_of

    for method in ("full", "lora"):
        network: RewardNetwork = llama()
        if method == "lora":
            adapt(network, config("method.name=lora", "method.rank=2").method)
        trainer_of(network, table_of(COMPARISONS), config(), tmp_path / method)
        assert network._no_split_modules == ["LlamaDecoderLayer"]


@pytest.mark.slow
def test_two_ranks_walk_the_path_of_one(tmp_path):
    sft = world.language_model(tmp_path / "sft")
    rows = [{**row, "margin": 0.1 * (i % 5)} for i, row in enumerate(world.planted_rows(96))]
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert main(["train", "--config", str(recipe_in(tmp_path / "one", sft, pairs, accumulate=2))]) == 0
    in_two_ranks(recipe_in(tmp_path / "two", sft, pairs))
    assert_same_path(tmp_path)


SHARDED = {
    "length_head": {"length_head": {"correlation": 1.0, "orthogonality": 0.5, "memory": 0}},
    "stages": {"stages": [{"kinds": ["pairs"]}, {"kinds": ["pairs"], "optim": {"lr": 1e-4}}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SHARDED)
def test_stages_and_length_heads_of_sharded_weights_walk_the_path_of_whole_ones(tmp_path, setting):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(96))
    one = recipe_in(tmp_path / "one", sft, pairs, SHARDED[setting], batch_pairs=16)
    assert main(["train", "--config", str(one)]) == 0
    two = recipe_in(tmp_path / "two", sft, pairs, SHARDED[setting])
    in_two_ranks(two, "tests.support.fsdp_on_cpu", **fsdp_settings())
    assert_same_path(tmp_path, n_steps=20 if setting == "stages" else 10)


NEED_WHOLE = {
    "stages": ({"stages": [{"kinds": ["pairs"]}]}, "ACCELERATE_USE_DEEPSPEED"),
    "length_head": ({"length_head": {"correlation": 1.0}}, "ACCELERATE_USE_DEEPSPEED"),
    "optim.ema": ({"optim": {"ema": 0.9}}, "ACCELERATE_USE_FSDP"),
    "loss.sft": ({"loss": {"sft": 0.1}}, "ACCELERATE_USE_FSDP"),
    "method.quantize": ({"method": {"name": "lora", "quantize": "nf4"}}, "ACCELERATE_USE_FSDP"),
}


@pytest.mark.parametrize("setting", NEED_WHOLE)
def test_settings_that_need_whole_weights_are_refused_under_shards_before_the_model_is_loaded(
    tmp_path, capsys, monkeypatch, setting
):
    sections, flag = NEED_WHOLE[setting]
    monkeypatch.setenv(flag, "true")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(8))
    recipe = recipe_in(tmp_path / "run", tmp_path / "no model", pairs)
    world.recipe_file(recipe, **(yaml.safe_load(recipe.read_text()) | sections))
    assert main(["train", "--config", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert f"{setting} needs whole weights on every rank" in said
    assert ("FSDP" if "FSDP" in flag else "DeepSpeed") in said


def test_a_line_says_that_shards_are_for_gpus_alone(capsys, monkeypatch):
    from rewardserve.training.loop import sharding
    from tests.unit.training.loop.test_trainer import config

    monkeypatch.setattr(sharding.torch.cuda, "is_available", lambda: False)
    sharding.check_sharding(config())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharding.check_sharding(config())
    assert "FSDP shards on GPUs alone" in capsys.readouterr().err


def test_processes_that_have_read_other_rows_do_not_train(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_checks, "n_processes", lambda: 2)
    monkeypatch.setattr(data_checks, "gather_object", lambda own: [*own, "sha256:of another process"])
    sft = world.language_model(tmp_path / "sft", layers=1)
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(8))
    assert main(["train", "--config", str(recipe_in(tmp_path / "run", sft, pairs))]) == 2
    assert "the processes have read different rows" in capsys.readouterr().err


TERMS = {
    "penalties": {"indifference": {"length": 1.0, "memory": 0}, "consistency": {"weight": 0.5}},
    "length_head": {"length_head": {"correlation": 1.0, "orthogonality": 0.5, "memory": 0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
def test_correlations_of_two_ranks_are_those_of_one_batch_of_both(tmp_path, terms):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(96))
    one = recipe_in(tmp_path / "one", sft, pairs, TERMS[terms], batch_pairs=16)
    assert main(["train", "--config", str(one)]) == 0
    in_two_ranks(recipe_in(tmp_path / "two", sft, pairs, TERMS[terms]), "tests.support.threads_at_end")
    assert_same_path(tmp_path)


def in_two_ranks(two: Path, module: str = "rewardserve", **env: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, "-m", module, "train", "--config", str(two)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


def assert_same_path(tmp_path: Path, n_steps: int = 10) -> None:
    assert len(curve(tmp_path / "one")) == n_steps
    for ours, theirs in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    scores = [
        [p.score for p in ScoringContract.load(tmp_path / n / "out" / "checkpoint").probes] for n in ("one", "two")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
