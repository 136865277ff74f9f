"""An ensemble that is trained in one run: its members over one backbone, through every verb of training and into service."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from rewardserve.cli import main
from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import read
from rewardserve.model.reward import RewardSettings, build_pipeline
from rewardserve.model.scorer import TokenBatch
from tests.integration.test_training import recipe_for
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")  # fixtures of the module draw theirs

ONE_RUN = {
    "model": {"members": 3, "head_init": "logistic"},
    "method": {"name": "frozen"},
    "optim": {"epochs": 0},
}


@pytest.fixture(scope="module")
def world_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return world.language_model(folder / "sft"), world.write_jsonl(folder / "pairs.jsonl", world.planted_rows(300))


@pytest.fixture(scope="module")
def run(tmp_path_factory, world_of):
    folder = tmp_path_factory.mktemp("members")
    recipe = recipe_for(folder, *world_of, **ONE_RUN)
    assert main(["train", "--config", str(recipe)]) == 0
    return recipe, folder / "out"


def test_members_differ_and_the_report_has_the_accuracy_of_each_beside_that_of_all(run):
    _, out = run
    network = read(str(out / "checkpoint")).network
    assert network.head_names == ("1/score", "2/score", "3/score")
    assert len({tuple(row) for row in network.heads.weight.tolist()}) == 3
    report = json.loads((out / "checkpoint" / "training_report.json").read_text())
    assert report["members"].startswith("accuracy of each alone ")
    (line,) = report["metrics"]
    assert (line["head"], line["accuracy"] > 0.9) == ("score", True)


def test_it_is_served_as_an_ensemble_with_the_spread_of_its_members(run):
    _, out = run
    loaded = load("torch", ModelSpec(str(out / "checkpoint"), device="cpu"))
    assert loaded.report.holds
    members = loaded.ensemble_members
    assert [member.name for member in members] == ["1/score", "2/score", "3/score"]
    pipeline = build_pipeline(members, RewardSettings())
    assert pipeline.combination.method == "softmin"
    (row,) = loaded.scorer.score(TokenBatch(((1, 2, 3, 4),))).rows
    reward = pipeline.one(row)
    z = [(row[m.name] - m.calibration.mean) / m.calibration.std for m in members]
    assert reward.spread == pytest.approx(float(torch.tensor(z).std(correction=0)), rel=1e-5)
    assert min(z) < reward.value < sum(z) / 3


def test_heads_alone_have_the_scores_of_the_checkpoint(run):
    _, out = run
    whole, alone = (read(str(out / name)).network for name in ("checkpoint", "heads"))
    assert (whole.head_names, whole.head_weights) == (alone.head_names, alone.head_weights)
    assert torch.equal(whole.heads.weight, alone.heads.weight)


def test_other_verbs_take_the_members(run, world_of, tmp_path, capsys):
    recipe, out = run
    checkpoint = f"--checkpoint={out / 'checkpoint'}"
    assert main(["evaluate", "--config", str(recipe), checkpoint, "--invariance"]) == 0
    assert main(["calibrate", "--config", str(recipe), checkpoint, "--set", f"output.folder={tmp_path / 'cal'}"]) == 0
    calibrated = read(str(tmp_path / "cal" / "checkpoint"))
    assert [head.name for head in calibrated.calibration.heads] == ["1/score", "2/score", "3/score"]
    assert main(["crossvalidate", "--config", str(recipe), "--folds", "3"]) == 0
    other = tmp_path / "other"
    sections = {**ONE_RUN, "model": {**ONE_RUN["model"], "head_l2": [0.2]}}
    other.mkdir()
    assert main(["train", "--config", str(recipe_for(other, *world_of, **sections))]) == 0
    mean = tmp_path / "mean"
    second = f"--checkpoint={other / 'out' / 'checkpoint'}"
    assert main(["average", "--config", str(recipe), "--set", f"output.folder={mean}", checkpoint, second]) == 0
    assert read(str(mean / "checkpoint")).network.head_names == ("1/score", "2/score", "3/score")
    capsys.readouterr()


def test_a_recipe_goes_on_from_members_with_as_many(run, world_of, tmp_path, capsys):
    _, out = run
    start = {"path": str(out / "checkpoint"), "start": "reward"}
    optim = {"lr": 1e-3, "max_steps": 2}
    wrong = recipe_for(tmp_path, *world_of, model=start, optim=optim)
    assert main(["train", "--config", str(wrong)]) == 2
    assert "model.members to the number of its members" in capsys.readouterr().err
    right = recipe_for(tmp_path, *world_of, model=start | {"members": 3}, optim=optim)
    assert main(["train", "--config", str(right)]) == 0
    assert read(str(tmp_path / "out" / "checkpoint")).network.head_names == ("1/score", "2/score", "3/score")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": ["a", "b"], "members": 2}, "an ensemble of one head"),
        ({"heads": ["1/a"]}, "names without a slash"),
        ({"member_data": "folds"}, "model.members: 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message, world_of, tmp_path, capsys):
    assert main(["train", "--config", str(recipe_for(tmp_path, *world_of, model=settings))]) == 2
    assert message in capsys.readouterr().err


def test_the_audit_judge_beside_members_has_one_head(world_of, tmp_path):
    sections = {**ONE_RUN, "model": {**ONE_RUN["model"], "member_data": "folds"}, "audit_judge": {"n_layers": 1}}
    assert main(["train", "--config", str(recipe_for(tmp_path, *world_of, **sections))]) == 0
    checkpoint = tmp_path / "out" / "checkpoint"
    assert read(str(checkpoint)).network.head_names == ("1/score", "2/score", "3/score")
    assert read(str(checkpoint / "audit_judge")).network.head_names == ("score",)


def test_a_run_of_members_resumes_to_the_weights_of_one_that_was_not_stopped(world_of, tmp_path):
    optim = {"lr": 1e-3, "batch_pairs": 32, "max_steps": 4, "schedule": "constant"}
    found = []
    for name, steps in (("whole", (4,)), ("in parts", (2, 4))):
        for n, max_steps in enumerate(steps):
            (tmp_path / name).mkdir(exist_ok=True)
            recipe = recipe_for(
                tmp_path / name, *world_of, model={"members": 2}, optim={**optim, "max_steps": 4},
                output={"save_steps": 2, "resume": n > 0},
            )  # fmt: skip
            if max_steps == 2:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("rewardserve.training.workflow.run.finish", _crash)
                    with pytest.raises(RuntimeError, match="power cut"):
                        main(["train", "--config", str(recipe)])
                shutil.rmtree(tmp_path / name / "out" / "steps" / "checkpoint-4")
            else:
                assert main(["train", "--config", str(recipe)]) == 0
        found.append(read(str(tmp_path / name / "out" / "checkpoint")).network.state_dict())
    for tensor_name, tensor in found[0].items():
        torch.testing.assert_close(found[1][tensor_name], tensor, rtol=0, atol=1e-6)


def _crash(*_arguments):
    raise RuntimeError("power cut")
