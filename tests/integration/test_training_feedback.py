"""`rewardserve train` on every kind of feedback: what it learns, with every method, in stages, and after an interruption."""

from __future__ import annotations

import json
import random

import pytest
import torch

from rewardserve.cli import main
from rewardserve.model.checkpoint import ReadOptions, read
from rewardserve.model.contract import ScoringContract
from rewardserve.model.conversation import Sample
from rewardserve.training import workflow
from rewardserve.training.batches import scoring
from rewardserve.training.settings.recipe import load
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS = {"lr": 3e-3, "epochs": 3, "batch_pairs": 16}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


def rows_of(kind, n=240, seed=0):
    """Rows in which the number of `kindly` less that of `rudely` is the quality."""
    rng, made = random.Random(seed), []
    for i in range(n):
        base = {"source": kind, "group": f"g{i % 40}", "prompt": f"say {world.NEUTRAL[i % 10]} {i % 40}"}
        graded = [(q, world._response(rng, world.GOOD if q > 0 else world.BAD) + (" kindly" if q > 1 else ""))
                  for q in (rng.choice([-1, 1, 2]) for _ in range(4))]  # fmt: skip
        (q, text), responses = graded[0], [t for _, t in graded]
        made.append(base | {
            "ratings": {"response": text, "rating": 3.0 + q},
            "labels": {"completion": text, "label": q > 0},
            "rankings": {"responses": responses, "ranks": [3 - q for q, _ in graded]},
        }[kind])  # fmt: skip
    return made


def recipe_for(folder, sft, sources, **sections):
    data = {"sources": [{"path": str(path)} for path in sources], "eval_fraction": 0.25}
    base = {
        "model": {"path": str(sft)}, "data": data, "encoding": {"max_tokens": 128}, "optim": STEPS,
        "output": {"folder": str(folder / "out"), "log_steps": 5}, "eval": {"bootstrap": 50, "invariance_pairs": 0},
    }  # fmt: skip
    for name, own in sections.items():
        base[name] = base.get(name, {}) | own if isinstance(own, dict) else own
    return world.recipe_file(folder / "recipe.yaml", **base)


def report_of(out):
    return json.loads((out / "checkpoint" / "training_report.json").read_text())


def train(recipe, *overrides):
    return main(["train", "--config", str(recipe), *(f"--set={o}" for o in overrides)])


@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
@pytest.mark.parametrize("kind", ["rankings", "ratings", "labels"])
def test_each_kind_trains_by_each_method(kind, method, sft, tmp_path, capsys):
    source = world.write_jsonl(tmp_path / "rows.jsonl", rows_of(kind))
    lr = {"full": 3e-3, "lora": 1e-2, "frozen": 3e-2}[method]
    assert train(recipe_for(tmp_path, sft, [source], method={"name": method}, optim={"lr": lr})) == 0
    report, out = report_of(tmp_path / "out"), capsys.readouterr().out
    (line,) = report["metrics"]
    assert line["accuracy"] > (0.6 if method == "frozen" else 0.85)
    assert f"180 {kind} to train on, 60 {kind} held out" in out
    if kind == "rankings":
        assert report["graded"] == []
    else:
        (graded,) = report["graded"]
        assert graded["measure"] == {"ratings": "Spearman", "labels": "AUC"}[kind]
        assert graded["value"] > (0.2 if method == "frozen" else 0.7)
    assert report["feedback"].startswith(f"180 {kind}")
    assert ("scale of ratings" in report, "offset of labels" in report) == (kind == "ratings", kind == "labels")


def test_the_convex_start_reads_the_pairs_of_rankings_and_ratings(sft, tmp_path):
    for kind in ("rankings", "ratings"):
        source = world.write_jsonl(tmp_path / kind / "rows.jsonl", rows_of(kind))
        sections = {"model": {"head_init": "logistic"}, "method": {"name": "frozen"}, "optim": {"epochs": 0}}
        path = recipe_for(tmp_path / kind, sft, [source], **sections)
        settings = json.loads(json.dumps(world.yaml.safe_load(path.read_text())))
        settings["optim"] = {"epochs": 0}
        assert train(world.recipe_file(path, **settings)) == 0
        assert report_of(tmp_path / kind / "out")["metrics"][0]["accuracy"] > 0.6


def test_ties_and_kinds_train_together_and_are_counted(sft, tmp_path, capsys):
    pairs = world.planted_rows(200)
    for i, row in enumerate(pairs):
        row["tie"], row["sure"] = i % 5 == 0, 0.9
        if row["tie"]:
            row["rejected"] = row["chosen"].replace("kindly", "kindly kindly")
    sources = [
        world.write_jsonl(tmp_path / "pairs.jsonl", pairs),
        world.write_jsonl(tmp_path / "labels.jsonl", rows_of("labels")),
    ]
    recipe = recipe_for(tmp_path, sft, sources)
    assert train(recipe, "data.sources.0.confidence_key=sure") == 0
    report, out = report_of(tmp_path / "out"), capsys.readouterr().out
    assert "150 pairs and 180 labels to train on, 50 pairs and 60 labels held out" in out
    assert report["ties"].startswith("30, Davidson's nu 0.5")
    assert {m["source"]: m["n_pairs"] for m in report["metrics"]}["planted"] == 40, "a tie has no accuracy"
    assert all(m["accuracy"] > 0.85 for m in report["metrics"])


STAGES = [{"kinds": ["ratings"], "loss": {"ratings": "huber"}, "optim": {"epochs": 1}},
          {"kinds": ["pairs"], "optim": {"lr": 1e-3}}]  # fmt: skip


@pytest.fixture
def two_sources(tmp_path):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(160))
    return [pairs, world.write_jsonl(tmp_path / "ratings.jsonl", rows_of("ratings", 160))]


def test_stages_train_one_after_the_other_each_with_its_settings(sft, tmp_path, two_sources, capsys):
    recipe = recipe_for(tmp_path, sft, two_sources, stages=STAGES)
    config = load(recipe)
    assert [(s.optim.epochs, s.optim.lr, s.optim.batch_pairs, s.loss.ratings) for s in config.stages] == [
        (1, 3e-3, 16, "huber"), (3, 1e-3, 16, "mse")]  # fmt: skip
    assert train(recipe) == 0
    out = capsys.readouterr().out
    assert out.index("stage 1: 120 ratings") < out.index("stage 2: 120 pairs")
    steps = [sorted(p.name for p in (tmp_path / "out" / "steps" / f"stage-{i}").glob("checkpoint-*")) for i in (1, 2)]
    assert steps == [["checkpoint-8"], ["checkpoint-24"]]
    assert all(m["accuracy"] > 0.85 for m in report_of(tmp_path / "out")["metrics"])


@pytest.mark.parametrize("stop", [5, 12, 24], ids=["within the first stage", "within the second", "late in the second"])
@pytest.mark.parametrize("way", ["last step", "best step of an average"])
def test_a_run_stopped_in_any_stage_ends_with_the_same_weights(stop, way, sft, tmp_path, two_sources, monkeypatch):
    """The step is counted over both stages: 8 and 24 of them."""
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    chosen = (
        {"optim": {"ema": 0.8, "lr": 0.02}, "eval": {"best_by": "nll", "steps": 2, "patience": 6}}
        if way != "last step"
        else {}
    )
    stages = [{**stage, "optim": {**stage["optim"], "lr": 0.02}} for stage in STAGES] if chosen else STAGES
    for folder in (whole, cut):
        folder.mkdir()
        recipe_for(folder, sft, two_sources, stages=stages, output={"save_steps": 3}, **chosen)
    assert train(whole / "recipe.yaml") == 0

    from rewardserve.training.loop.trainer import RewardTrainer

    taken, compute_loss = [0], RewardTrainer.compute_loss

    def counting(self, *args, **kwargs):
        taken[0] += 1
        if taken[0] > stop:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "compute_loss", counting)
    assert train(cut / "recipe.yaml") == 130
    monkeypatch.setattr(RewardTrainer, "compute_loss", compute_loss)
    assert train(cut / "recipe.yaml", "output.resume=true") == 0
    weights = [read(str(folder / "out" / "checkpoint"), ReadOptions()).network.state_dict() for folder in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if chosen:
        reports = [report_of(folder / "out") for folder in (whole, cut)]
        steps = [report["best step"]["step"] for report in reports]
        assert steps[0] == steps[1] <= 24
        for report in reports:
            assert " of the last stage: the best nll (" in report["exported step"]
            n_evaluations = int(report["exported step"].split(" evaluations")[0].split()[-1])
            assert n_evaluations == min(steps[0] // 2 + 6, 12)


def refused(recipe, capsys, *overrides):
    assert train(recipe, *overrides) == 2
    return capsys.readouterr().err


def test_stages_and_settings_that_would_do_nothing_are_refused(sft, tmp_path, two_sources, capsys):
    def err(stages, *overrides, sources=two_sources):
        return refused(recipe_for(tmp_path, sft, sources, stages=stages), capsys, *overrides)

    assert "no stage trains on the ratings of the data" in err([{"kinds": ["pairs"]}])
    assert "stages.1 trains on labels, and the training data have only pairs, ratings" in err(
        [{"kinds": ["pairs", "ratings"]}, {"kinds": ["labels"]}])  # fmt: skip
    assert "loss.label_offset is 0.5, which has no effect without labels" in err(STAGES, "loss.label_offset=0.5")
    assert "loss.tie is 1.0, which has no effect without ties" in err([], "loss.tie=1")
    assert "stages.optim.epochs is 0" in err([{"kinds": ["pairs"], "optim": {"epochs": 0}}])
    assert "data.balance_length is about pairs, and these sources have pairs, ratings" in err(
        [], "data.balance_length=true"
    )
    assert "rating_key is 'stars'" in err([], "data.sources.1.rating_key=stars", "data.sources.1.kind=ratings")


def test_crossvalidation_holds_out_ratings_too(sft, tmp_path, two_sources, capsys):
    recipe = recipe_for(tmp_path, sft, two_sources, method={"name": "frozen"}, optim={"lr": 3e-2})
    assert main(["crossvalidate", "--config", str(recipe), "--folds", "3"]) == 0
    found = json.loads((tmp_path / "out" / "crossvalidation.json").read_text())
    assert [(g["kind"], g["n"]) for g in found["graded"]] == [("ratings", 160)]
    assert "Spearman" in capsys.readouterr().out


def test_crossvalidation_of_labels_that_are_all_equal_has_no_accuracy(sft, tmp_path, capsys):
    rows = [row | {"label": True} for row in rows_of("labels", 40)]
    source = world.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = recipe_for(tmp_path, sft, [source], method={"name": "frozen"}, optim={"epochs": 1})
    assert main(["crossvalidate", "--config", str(recipe), "--folds", "2"]) == 0
    out = capsys.readouterr().out
    assert "held out: no pairs, so there is no accuracy" in out
    assert "AUC 0.500" in out


def test_the_first_stage_changes_what_the_second_starts_from(sft, tmp_path, two_sources):
    """A stage of no effect would leave the weights of pairs alone."""
    alone = workflow.train(load(recipe_for(tmp_path, sft, two_sources[:1])))
    scores = [read(str(alone), ReadOptions()).network.heads.weight.clone()]
    staged = workflow.train(
        load(recipe_for(tmp_path, sft, two_sources, stages=STAGES), [f"output.folder={tmp_path}/two"])
    )
    scores.append(read(str(staged), ReadOptions()).network.heads.weight)
    assert not torch.allclose(*scores)


def test_one_row_trains_several_heads_and_missing_values_train_the_others(sft, tmp_path):
    rows = rows_of("ratings")
    for i, row in enumerate(rows):
        good = row.pop("rating")
        row |= {"helpful": good, "blunt": None if i % 3 == 0 else -good}
    source = world.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = recipe_for(tmp_path, sft, [source], model={"heads": ["helpful", "blunt"]}, method={"name": "lora"})
    assert train(recipe, "data.sources.0.attributes=[helpful, blunt]", "optim.lr=1e-2") == 0
    graded = {g["head"]: g for g in report_of(tmp_path / "out")["graded"]}
    assert graded["helpful"]["n"] > graded["blunt"]["n"] > 0
    assert min(g["value"] for g in graded.values()) > 0.6


def test_labels_of_steps_train_a_score_that_falls_at_the_first_bad_step(sft, tmp_path):
    rng, rows = random.Random(0), []
    for i in range(160):
        steps = [f"{rng.choice(world.NEUTRAL)} {rng.choice(world.NEUTRAL)}" for _ in range(3)]
        bad = rng.randrange(4)
        if bad < 3:
            steps[bad] += f" {world.BAD}"
        rows.append(
            {
                "group": f"g{i % 40}",
                "prompt": f"say {i % 40}",
                "completions": steps,
                "labels": [n < bad for n in range(3)],
            }
        )
    source = world.write_jsonl(tmp_path / "steps.jsonl", rows)
    assert train(recipe_for(tmp_path, sft, [source])) == 0
    report = report_of(tmp_path / "out")
    (graded,) = report["graded"]
    assert (graded["measure"], graded["n"]) == ("AUC", 120)
    assert graded["value"] > 0.9
    checkpoint = read(str(tmp_path / "out" / "checkpoint"), ReadOptions())
    ids = [checkpoint.encoder(Sample(prompt="say 7", response=text, finish_reason="length")).ids
           for text in ("stone river", "stone river rudely")]  # fmt: skip
    good, bad_end = scoring.score(checkpoint.network, ids, pad_id=checkpoint.pad_id, batch_tokens=99)[:, 0]
    assert good > bad_end


def test_a_template_of_the_recipe_trains_and_is_served(sft, tmp_path, two_sources, capsys):
    """In the contract, in the tokenizer of the checkpoint, and in every row."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>\n{% endfor %}")
    recipe = recipe_for(tmp_path, sft, two_sources[:1], encoding={"chat_template": str(template), "max_tokens": 128})
    assert train(recipe) == 0
    folder = tmp_path / "out" / "checkpoint"
    assert template.read_text() in ScoringContract.load(folder).template
    checkpoint = read(str(folder), ReadOptions())
    text = checkpoint.tokenizer.decode(checkpoint.encoder(Sample(prompt="hi", response="yes")).ids)
    assert text.startswith("[user] hi<|im_end|>\n[assistant] yes<|im_end|>")
    template.write_text("{{ broken")
    assert "encoding.chat_template" in refused(recipe, capsys, f"output.folder={tmp_path}/other")
    assert "leave it out" in refused(recipe, capsys, "model.start=reward", f"output.folder={tmp_path}/third")


def test_a_source_that_repeats_makes_more_steps(sft, tmp_path, two_sources):
    recipe = recipe_for(tmp_path, sft, two_sources, method={"name": "frozen"}, optim={"epochs": 1, "lr": 1e-2})
    assert train(recipe, "data.sources.1.repeat=3") == 0
    (step,) = (tmp_path / "out" / "steps").glob("checkpoint-*")
    assert step.name == f"checkpoint-{(120 + 3 * 120) // 16}"


@pytest.mark.parametrize("kind", ["rankings", "ratings", "labels"])
def test_a_judge_learns_from_other_feedback_than_the_model_and_from_a_separate_queue(kind, sft, tmp_path):
    """It has the lengths of no pairs to balance, no stage of the model, and another loss."""
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(160))
    other = world.write_jsonl(tmp_path / "other.jsonl", rows_of(kind, 160, seed=1))
    queue = world.write_jsonl(
        tmp_path / "queue.jsonl",
        [{"prompt": f"q {i}", "chosen": f"kindly {i}", "rejected": f"rudely {i}"} for i in range(40)],
    )
    judge = {"sources": [{"path": str(other)}], "n_layers": 1, "counterexamples": {"path": str(queue)}}
    judge |= {"loss": {"ratings": "huber"}} if kind == "ratings" else {}
    stages = [{"kinds": ["pairs"], "loss": {"centring": 0.01}}]
    recipe = recipe_for(tmp_path, sft, [pairs], method={"name": "frozen"}, audit_judge=judge, stages=stages)
    assert main(["train", "--config", str(recipe)]) == 0
    report = json.loads((tmp_path / "out/checkpoint/audit_judge/training_report.json").read_text())
    assert report["rows read"] == 160 + 40
    assert report["counterexamples"]
    assert not report_of(tmp_path / "out")["counterexamples"]
