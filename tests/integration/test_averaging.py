"""`rewardserve average`: the mean of several trainings, refused where the path between them is not straight."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rewardserve.cli import main
from rewardserve.training.averaging import LinearPath
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")  # fixtures of the module draw theirs

WIDTH = 32


def recipe_for(folder, sft, pairs, **sections):
    base = {
        "model": {"path": str(sft)},
        "data": {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
        "encoding": {"max_tokens": 128},
        "optim": {"lr": 1e-3, "head_lr": 1e-2, "epochs": 2},
        "output": {"folder": str(folder / "out")},
        "eval": {"bootstrap": 50},
    }
    folder.mkdir(exist_ok=True)
    return str(world.recipe_file(folder / "recipe.yaml", **(base | sections)))


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two trainings of one model, and their recipe. They go on from one set of heads, as WARM asks for."""
    folder = tmp_path_factory.mktemp("members")
    sft = world.language_model(folder / "sft")
    pairs = world.write_jsonl(folder / "pairs.jsonl", world.planted_rows(300))
    first = recipe_for(folder / "first", sft, pairs)
    assert main(["train", "--config", first]) == 0
    start = {"path": str(folder / "first" / "out" / "checkpoint"), "start": "reward"}
    for name, seed in (("a", 1), ("b", 2)):
        recipe = recipe_for(folder / name, sft, pairs, model=start, seed=seed)
        assert main(["train", "--config", recipe]) == 0
    return folder


def average(members, out, *names):
    paths = [f"--checkpoint={members / name / 'out' / 'checkpoint'}" for name in names]
    recipe = str(members / "a" / "recipe.yaml")
    return main(["average", "--config", recipe, "--set", f"output.folder={out}", *paths])


def weights(folder):
    files = [f for f in folder.glob("*.safetensors") if f.name != "hidden_reference.safetensors"]
    return {name: tensor for f in files for name, tensor in load_file(f).items()}


def test_every_weight_is_the_mean_of_the_members(members, tmp_path, capsys):
    assert average(members, tmp_path / "out", "a", "b") == 0
    a, b = (weights(members / name / "out" / "checkpoint") for name in "ab")
    for name, tensor in weights(tmp_path / "out" / "checkpoint").items():
        torch.testing.assert_close(tensor.double(), (a[name].double() + b[name].double()) / 2, rtol=0, atol=1e-6)
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert capsys.readouterr().out.count("half way") == 2
    report = json.loads((tmp_path / "out" / "checkpoint" / "training_report.json").read_text())
    assert report["made by"] == "rewardserve average"
    assert report["metrics"][0]["accuracy"] > 0.9
    assert len([note for note in report["notes"] if note.startswith("averaged")]) == 2
    assert (
        report["training data"]
        == json.loads((members / "a/out/checkpoint/training_report.json").read_text())["training data"]
    )
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_mean_of_three_weighs_each_alike(members, tmp_path):
    assert average(members, tmp_path / "out", "a", "b", "first") == 0
    parts = [weights(members / name / "out" / "checkpoint") for name in ("a", "b", "first")]
    for name, tensor in weights(tmp_path / "out" / "checkpoint").items():
        mean = sum(part[name].double() for part in parts) / 3
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)


def test_the_mean_of_adapters_is_that_of_the_models_with_them(members, tmp_path):
    """Not the mean of their two matrices, whose product is another one."""
    settings = yaml.safe_load((members / "first" / "recipe.yaml").read_text())
    settings["method"], settings["model"]["head_init"] = {"name": "lora", "rank": 2}, "logistic"
    for seed, name in enumerate("xy"):
        folder = {"output": {"folder": str(tmp_path / name)}, "seed": seed}
        assert main(["train", "--config", str(world.recipe_file(tmp_path / "recipe.yaml", **(settings | folder)))]) == 0
    given = [f"--checkpoint={tmp_path / name / 'adapter'}" for name in "xy"]
    recipe = ["--config", str(tmp_path / "recipe.yaml"), "--set", f"output.folder={tmp_path / 'mean'}"]
    assert main(["average", *recipe, *given]) == 0
    x, y, mean = (weights(tmp_path / name / "checkpoint") for name in ("x", "y", "mean"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (x[name] + y[name]) / 2, rtol=0, atol=1e-6)
    assert any(not torch.equal(x[name], y[name]) for name in x)


def test_no_heads_are_written_over_the_base_of_another_run(members, tmp_path):
    """A model that learned whole is calibrated by a recipe of heads alone: over the base, its heads have other scores."""
    recipe = ["--config", str(members / "first" / "recipe.yaml"), "--set", "method.name=frozen"]
    given = f"--checkpoint={members / 'first' / 'out' / 'checkpoint'}"
    assert main(["calibrate", *recipe, "--set", f"output.folder={tmp_path}", given]) == 0
    assert (tmp_path / "checkpoint").is_dir()
    assert not (tmp_path / "heads").exists()


def permuted(checkpoint, to):
    """The same function with the units of its hidden states in another order: equal scores, other weights."""
    shutil.copytree(checkpoint, to)
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3))
    for file in (to / "model.safetensors", to / "reward_heads.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        state = load_file(file)
        for name, tensor in state.items():
            writes = name.endswith(("o_proj.weight", "down_proj.weight")) or tensor.ndim == 1
            state[name] = (tensor[order] if writes else tensor[:, order]).contiguous()
        save_file(state, file, metadata=metadata)


def test_models_that_are_not_linearly_connected_are_refused(members, tmp_path, capsys):
    permuted(members / "a" / "out" / "checkpoint", tmp_path / "permuted")
    recipe = str(members / "a" / "recipe.yaml")
    folders = (members / "a" / "out" / "checkpoint", tmp_path / "permuted")
    given = [f"--checkpoint={folder}" for folder in folders]
    assert main(["average", "--config", recipe, "--set", f"output.folder={tmp_path / 'out'}", *given]) == 1
    assert "not linearly connected" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_model_of_another_size_is_refused_by_what_differs(members, tmp_path, capsys):
    other = world.language_model(tmp_path / "sft", layers=1)
    recipe = recipe_for(tmp_path / "other", other, members / "pairs.jsonl")
    assert main(["train", "--config", recipe]) == 0
    paths = [f"--checkpoint={f}" for f in (members / "a/out/checkpoint", tmp_path / "other/out/checkpoint")]
    code = main(
        ["average", "--config", str(members / "a/recipe.yaml"), "--set", f"output.folder={tmp_path}/out", *paths]
    )
    assert code == 1
    assert "differ in shapes of weights: only trainings of one model, encoded" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a",), ("a", "a")])
def test_fewer_than_two_different_models_are_a_mistake(members, tmp_path, capsys, names):
    assert average(members, tmp_path / "out", *names) == 2
    assert "two or more different checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("middle", "whole", "barrier"), [(0.8, 0.8, 0.0), (0.9, 0.9, -0.1), (0.75, 0.8, 0.05), (0.8, 0.7, 0.1)]
)
def test_the_barrier_is_what_the_worse_point_loses(middle, whole, barrier):
    path = LinearPath("a", start=0.8, middle=middle, average=whole, expected=0.8)
    assert path.barrier == pytest.approx(barrier)
