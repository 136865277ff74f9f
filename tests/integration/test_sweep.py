"""`rewardserve sweep`, where Optuna is installed (extra `sweep`); its search space everywhere."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import yaml

from rewardserve.cli import main
from rewardserve.training import crossvalidate, sweep
from rewardserve.training.errors import NonFiniteLoss
from rewardserve.training.settings.recipe import load
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.sweep import Dimension, parse_space
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=1e-5..1e-3:log", Dimension("optim.lr", low=1e-5, high=1e-3, is_log=True)),
        ("optim.batch_pairs=8..64", Dimension("optim.batch_pairs", low=8, high=64)),
        ("method.rank=8|16|32", Dimension("method.rank", (8, 16, 32))),
        ("optim.schedule=linear|cosine", Dimension("optim.schedule", ("linear", "cosine"))),
        ("method.targets=[q_proj]|[q_proj, v_proj]", Dimension("method.targets", (["q_proj"], ["q_proj", "v_proj"]))),
    ],
)
def test_a_dimension_is_a_range_or_choices(text, expected):
    assert parse_space([text]) == (expected,)


@pytest.mark.parametrize(
    "text",
    ["", "optim.lr", "optim.lr=", "optim.lr=1..", "optim.lr=2..1", "optim.lr=0..1:log", "optim.lr=a..b", "optim.lr=1"],
)
def test_a_dimension_that_is_none_is_refused_in_words(text):
    with pytest.raises(ConfigError, match="--space"):
        parse_space([text])


def test_a_setting_that_is_named_twice_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.lr twice"):
        parse_space(["optim.lr=1e-5..1e-3", "optim.lr=1|2"])


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"), layers=1)


@pytest.fixture
def recipe(tmp_path, sft):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(80, n_groups=8))
    return world.recipe_file(
        tmp_path / "recipe.yaml",
        model={"path": str(sft)}, data={"sources": [{"path": str(pairs)}]}, encoding={"max_tokens": 64},
        optim={"lr": 1e-5, "max_steps": 20}, eval={"bootstrap": 10},
        output={"folder": str(tmp_path / "out")}, seed=1,
    )  # fmt: skip


SPACE = ["--space", "optim.lr=1e-6..0.1:log", "--space", "optim.batch_pairs=8|16"]


def run(recipe, *words, trials=4):
    return main(["sweep", "--config", str(recipe), "--folds", "2", "--trials", str(trials), *SPACE, *words])


def table_of(folder):
    with (folder / "out" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_recipe_is_that_of_the_best_trial_and_cross_validates_to_its_accuracy(tmp_path, recipe, capsys):
    pytest.importorskip("optuna")
    assert run(recipe) == 0
    rows = table_of(tmp_path)
    assert len(rows) == 4
    assert {row["trial"] for row in rows} == {"0", "1", "2", "3"}
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    (own,) = (row for row in rows if row["trial"] == "0")
    assert (float(own["optim.lr"]), own["optim.batch_pairs"]) == (1e-5, "16"), "the recipe itself is the first trial"
    assert accuracies[0] > float(own["accuracy"])
    best = tmp_path / "out" / "best.yaml"
    config = load(best)
    assert config.optim.lr == pytest.approx(float(rows[0]["optim.lr"]))
    assert config.output.folder == str(tmp_path / "out")
    again = tmp_path / "again"
    assert main(["crossvalidate", "--config", str(best), "--folds", "2", "--set", f"output.folder={again}"]) == 0
    (line,) = json.loads((again / "crossvalidation.json").read_text())["metrics"]
    assert line["accuracy"] == pytest.approx(accuracies[0])
    shown = capsys.readouterr().out
    assert f"accuracy {accuracies[0]:.3f} [" in shown
    assert f"best recipe: {best}" in shown
    assert yaml.safe_load(best.read_text())["seed"] == 1


def test_a_stopped_sweep_goes_on_and_repeats_no_trial(tmp_path, recipe, monkeypatch, capsys):
    pytest.importorskip("optuna")
    real, seen = crossvalidate.crossvalidate, []

    def stopping(config, n_folds):
        seen.append(config.optim.lr)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(config, n_folds)

    monkeypatch.setattr(crossvalidate, "crossvalidate", stopping)
    assert run(recipe) == 130
    assert run(recipe) == 0
    assert "goes on after 2 of 4 trials" in capsys.readouterr().err
    assert len(seen) == 5
    assert len(set(seen)) == 5, "another seed after the stop, or the first values would come again"
    assert len(table_of(tmp_path)) == 4
    assert run(recipe, trials=4) == 0
    assert len(seen) == 5, "nothing is left to do"
    assert run(recipe, "--set", "optim.max_steps=5") == 2
    assert "another recipe, --space or --folds" in capsys.readouterr().err


def test_a_trial_that_breaks_is_counted_with_its_reason_and_the_sweep_goes_on(tmp_path, recipe, monkeypatch):
    pytest.importorskip("optuna")
    real, seen = crossvalidate.crossvalidate, []

    def breaking(config, n_folds):
        seen.append(config)
        if len(seen) == 2:
            raise NonFiniteLoss("step 3: the loss is not finite")
        return real(config, n_folds)

    monkeypatch.setattr(crossvalidate, "crossvalidate", breaking)
    assert run(recipe, trials=3) == 0
    rows = table_of(tmp_path)
    assert [bool(row["accuracy"]) for row in rows] == [True, True, False]
    assert rows[-1]["reason"] == "step 3: the loss is not finite"


def test_without_two_responses_that_can_be_compared_a_sweep_ends_in_words(tmp_path, recipe, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(crossvalidate, "crossvalidate", lambda config, n_folds: SimpleNamespace(metrics=()))
    assert run(recipe) == 2
    assert "no two held-out responses can be compared" in capsys.readouterr().err


def test_a_sweep_goes_on_in_a_folder_of_any_name(tmp_path, recipe, monkeypatch):
    pytest.importorskip("optuna")
    line = SimpleNamespace(
        source="pairs", head="score", n_pairs=9, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, nll=0.7
    )
    monkeypatch.setattr(crossvalidate, "crossvalidate", lambda config, n_folds: SimpleNamespace(metrics=(line,)))
    folder = tmp_path / "is {it} 100%? #1\nyes"
    place = ("--set", f"output.folder={json.dumps(str(folder))}")
    assert [run(recipe, *place, trials=1), run(recipe, *place, trials=2)] == [0, 0]
    assert {path.name for path in folder.iterdir()} == {".lock", "best.yaml", "sweep.db", "trials.csv"}
    assert len((folder / "trials.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--space", "optim.learning=1..2"], "unknown setting 'optim.learning'"),
        (["--space", "optim.weight_decay=0..99"], "optim.weight_decay is 99"),
        (["--space", "output.keep=1..3"], "changes no weight"),
        (["--trials", "0"], "--trials is 0"),
        (["--set", "data.eval_sources.0.path=x.jsonl"], "leave data.eval_sources out"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused_before_a_trial(tmp_path, recipe, capsys, words, says):
    pytest.importorskip("optuna")
    assert run(recipe, *words) == 2
    assert says in capsys.readouterr().err


def test_without_optuna_the_sweep_says_what_to_install(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    assert run(recipe) == 1
    assert "pip install 'rewardserve[sweep]'" in capsys.readouterr().err
