"""The whole of `rewardserve train`, from a file of pairs to a folder that another library loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.cli import main
from rewardserve.model.calibration import Calibration
from rewardserve.model.check import main as check
from rewardserve.model.checkpoint import ReadOptions, read
from rewardserve.model.checkpoint.writing import score_single_row
from rewardserve.model.contract import ScoringContract, sample_from_dict, verify
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.padding import left_pad, position_ids
from rewardserve.training import workflow
from rewardserve.training.batches import scoring
from rewardserve.training.loop.methods import fit_logistic
from rewardserve.training.loop.step_checkpoints import last_complete
from rewardserve.training.settings.recipe import load
from tests.support import planted_pairs as world
from tests.support.separate_python import scored_in_separate_python

pytestmark = pytest.mark.usefixtures("undrawn")  # fixtures of the module draw theirs

FULL = {"optim": {"lr": 3e-3, "epochs": 2, "batch_pairs": 16}, "eval": {"steps": 15, "bootstrap": 50}}
METHODS = {
    "full": FULL,
    "lora": {"method": {"name": "lora", "rank": 4}, "optim": {"lr": 1e-2, "epochs": 2}},
    "frozen": {"method": {"name": "frozen"}, "model": {"head_init": "logistic"}, "optim": {"lr": 1e-3, "epochs": 2}},
    "members": {"model": {"members": 3}, "optim": {"lr": 3e-3, "epochs": 3}},
    "sft": {**FULL, "loss": {"sft": 0.1}},
    "grouped": {"optim": {"lr": 3e-3, "epochs": 3, "batching": "grouped", "batch_sequences": 24, "ema": 0.9}},
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return world.write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", world.planted_rows(400))


def recipe_for(folder, sft, pairs, **sections):
    model = {"path": str(sft), **sections.pop("model", {})}
    data = {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25, **sections.pop("data", {})}
    output = {"folder": str(folder / "out"), "log_steps": 5, **sections.pop("output", {})}
    base = {"model": model, "data": data, "encoding": {"max_tokens": 128}, "output": output, "eval": {"bootstrap": 50}}
    return world.recipe_file(folder / "recipe.yaml", **(base | sections))


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory, sft, pairs):
    folder = tmp_path_factory.mktemp(request.param)
    assert main(["train", "--config", str(recipe_for(folder, sft, pairs, **METHODS[request.param]))]) == 0
    return folder / "out"


def report_of(out):
    return json.loads((out / "checkpoint" / "training_report.json").read_text())


def test_it_learns_the_planted_preference_on_groups_it_never_saw(trained):
    report = report_of(trained)
    (line,) = report["metrics"]
    assert line["accuracy"] > 0.9
    assert report["before"] == [], "a fresh head is not judged"
    assert line["n_groups"] + 30 == 40
    assert report["training pairs"] + report["held-out pairs"] == 400


def test_the_folder_scores_the_same_in_plain_transformers(trained):
    """Left-padded batch, position ids from the mask, `AutoModelForSequenceClassification`: nothing of ours."""
    contract = ScoringContract.load(trained / "checkpoint")
    plain = AutoModelForSequenceClassification.from_pretrained(trained / "checkpoint", dtype=torch.float32).eval()
    ids, mask = left_pad([p.ids for p in contract.probes], plain.config.pad_token_id)
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits[:, 0]
    assert logits.tolist() == pytest.approx([p.score for p in contract.probes], abs=1e-5)
    assert plain.config.pad_token_id not in contract.end_ids


def test_plain_transformers_encodes_a_conversation_to_the_same_ids(trained):
    contract = ScoringContract.load(trained / "checkpoint")
    tok = AutoTokenizer.from_pretrained(trained / "checkpoint")
    for probe in contract.probes:
        conversation = [{"role": m.role, "content": m.content} for m in sample_from_dict(probe.sample).conversation()]
        text = tok.apply_chat_template(conversation, tokenize=False)
        assert tuple(tok(text, add_special_tokens=False)["input_ids"]) == probe.ids
        whole = tok.apply_chat_template(conversation, tokenize=True, return_dict=True)
        assert tuple(whole["input_ids"]) == probe.ids


@pytest.mark.sweep(1)
@pytest.mark.parametrize("method", ["lora", "full", "frozen"])
def test_a_benchmark_without_code_of_ours_finds_the_accuracy_of_the_report(tmp_path, sft, pairs, method):
    """RewardBench: `apply_chat_template`, transformers' classifier, the share of pairs with the higher chosen one."""
    rows = [
        {**row, "group": f"held out {i}", "prompt": [{"role": "user", "content": f"now say stone {i}"}]}
        for i, row in enumerate(world.planted_rows(120, seed=5))
    ]
    for row in rows[::5]:  # preferences that nothing explains, so that the accuracy is none of the round ones
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    held_out = world.write_jsonl(tmp_path / "held_out.jsonl", rows)
    data = {"eval_sources": [{"path": str(held_out)}], "eval_fraction": 0.0}
    assert main(["train", "--config", str(recipe_for(tmp_path, sft, pairs, data=data, **METHODS[method]))]) == 0
    report = report_of(tmp_path / "out")
    assert report["held-out pairs"] == len(rows)
    talks = [
        row | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")} for row in rows
    ]
    found = scored_in_separate_python(tmp_path / "out" / "checkpoint", talks, tmp_path)
    assert found["accuracy"] == report["metrics"][0]["accuracy"]
    assert 0.6 < found["accuracy"] < 0.95
    encode, network = (checkpoint := read(str(tmp_path / "out" / "checkpoint"))).encoder, checkpoint.network
    for i, row in enumerate(talks[:10]):
        for k, side in enumerate(("chosen", "rejected")):
            messages = tuple(Message(**turn) for turn in (*row["prompt"], *row[side]))
            ours = score_single_row(network, encode(Sample(messages=messages)).ids)
            assert found["scores"][2 * i + k] == pytest.approx(ours, abs=1e-5)


def test_the_contract_holds_when_read_back_and_its_probes_are_spread_over_lengths(trained):
    checkpoint = read(str(trained / "checkpoint"), ReadOptions(dtype="float32"))
    contract, encoder = checkpoint.contract, checkpoint.encoder
    ids = tuple(encoder(sample_from_dict(p.sample)).ids for p in contract.probes)
    scores = scoring.score(checkpoint.network, ids, pad_id=checkpoint.pad_id, batch_tokens=512)
    raw = tuple((scores @ checkpoint.network.head_weights).tolist())
    report = verify(contract, checkpoint.facts, ids, raw)
    assert report.holds, [str(b) for b in report.breaches]
    assert len(contract.probes) == 16
    lengths = [len(p.ids) for p in contract.probes]
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]


def test_the_calibration_is_of_the_held_out_responses(trained):
    calibration = Calibration.load(trained / "checkpoint")
    report = report_of(trained)
    config = json.loads((trained / "checkpoint" / "config.json").read_text())
    assert calibration.data_digest == report["held-out data"]
    assert (config["mean"], config["std"]) == (calibration.mean, calibration.std)
    assert 100 < calibration.n <= 200
    assert calibration.cap_low < 0 < calibration.cap_high


def test_how_usual_hidden_states_lie_travels_with_the_calibration(trained):
    """Both from the file alone: the states of the held-out responses, as transformers gives them, and the distance."""
    folder = trained / "checkpoint"
    calibration, stored = Calibration.load(folder), load_file(folder / "hidden_reference.safetensors")
    n_directions = calibration.n // 10
    assert report_of(trained)["hidden states"] == f"{n_directions} directions of 32, {calibration.n} responses"
    assert (stored["mean"].shape, stored["whitening"].shape) == ((32,), (n_directions, 32))
    config = load(trained.parent / "recipe.yaml")
    responses = workflow.encode(config, workflow.load_start(config)).held_out.sequences
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        outs = [model(torch.tensor([s.ids]), output_hidden_states=True).hidden_states[-1][0, -1] for s in responses]
    distances = ((torch.stack(outs) - stored["mean"]) @ stored["whitening"].T).square().sum(1).log()
    usual = {trait.name: trait for trait in calibration.traits}["distance"]
    assert (usual.mean, usual.std) == pytest.approx(
        (float(distances.mean()), float(distances.std(correction=0))), abs=1e-3
    )
    assert read(str(folder)).hidden.digest == calibration.hidden_reference


def test_everything_a_run_owes_is_there(trained):
    assert list((trained / "logs").glob("events.*"))
    assert "<!doctype html>" in (trained / "report.html").read_text()
    (last,) = (path.parent for path in (trained / "steps").glob("checkpoint-*/complete"))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "learning_rate"} <= set(history[0])
    report = report_of(trained)
    assert report["training data"].startswith("sha256:")
    assert report["versions"]["torch"] == torch.__version__
    assert report["recipe"]["data"]["salt"] == "rewardserve"
    assert report["contract"] == ScoringContract.load(trained / "checkpoint").digest


def test_the_report_and_the_model_card_have_curves_data_and_figures(trained):
    report, page = report_of(trained), (trained / "report.html").read_text()
    card = (trained / "checkpoint" / "README.md").read_text()
    (line,) = report["metrics"]
    assert [step for step, _ in report["curves"]["loss"]][:2] == [1, 5]
    assert {"loss", "accuracy", "learning_rate", "margin"} <= set(report["curves"])
    for name in ("loss", "accuracy", "learning rate"):
        assert f'alt="{name} over the steps"' in page
    assert line["length_balanced"] == pytest.approx((line["longer_chosen"] + line["shorter_chosen"]) / 2)
    assert len(report["style"]["accuracy"]) == 3
    assert report["style"]["n_prompts"] == min(100, report["held-out pairs"])
    for name in ("duplicate pairs", "contradicting pairs", "sequences truncated", "pairs dropped", "began", "took"):
        assert f"<td>{name}</td>" in page
        assert f"| {name} | " in card
    assert f"{line['accuracy']:.3f} [{line['accuracy_low']:.3f}, {line['accuracy_high']:.3f}]" in card
    for text in (page, card):
        assert f"{line['length_balanced']:.3f}" in text
        assert f"{report['style']['hard']:.3f}" in text
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-classification"
    assert "reward-model" in front["tags"]
    assert str(trained.parent) not in card, "a card is published, and folders of the machine are not"


def test_the_styles_of_a_file_of_rm_bench_are_those_of_the_report(tmp_path, sft, pairs):
    def row(i, word):
        return [f"{word} stone", f"{word} stone river table", f"**{word}** stone river table"]

    styles = [
        {
            "id": str(i),
            "prompt": f"say {i}",
            "chosen": row(i, " kindly"),
            "rejected": row(i, " rudely"),
            "domain": "chat",
        }
        for i in range(8)
    ]
    styles[3]["chosen"][1] += " stone" * 200  # longer than the limit
    file = world.write_jsonl(tmp_path / "rm_bench.jsonl", styles)
    recipe = recipe_for(
        tmp_path, sft, pairs, optim={"max_steps": 3}, encoding={"max_tokens": 64, "truncation": "error"},
        eval={"style_file": str(file), "bootstrap": 10, "invariance_pairs": 0},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    style = report_of(tmp_path / "out")["style"]
    assert style["n_prompts"] == 7
    assert "1 prompts with a response that is too long left out" in style["origin"]
    found = read(str(tmp_path / "out" / "checkpoint"))
    won = []
    for line in styles[:3] + styles[4:]:
        raw = [
            [
                score_single_row(found.network, found.encoder(Sample(prompt=line["prompt"], response=text)).ids)
                for text in line[side]
            ]
            for side in ("chosen", "rejected")
        ]
        won.append([[c > r for r in raw[1]] for c in raw[0]])
    assert torch.tensor(style["accuracy"]).numpy() == pytest.approx(torch.tensor(won).float().mean(0).numpy(), abs=1e-6)


@pytest.mark.parametrize("trained", ["lora"], indirect=True)
def test_the_lora_adapter_alone_scores_as_the_merged_checkpoint(trained):
    contract = ScoringContract.load(trained / "checkpoint")
    scores = [p.score for p in contract.probes]
    ours = read(str(trained / "adapter"), ReadOptions(dtype="float32"))
    assert ours.calibration == Calibration.load(trained / "checkpoint")
    assert ours.hidden.digest == ours.calibration.hidden_reference
    assert [p.ids for p in ours.contract.probes] == [p.ids for p in contract.probes]
    got = scoring.score(ours.network, [p.ids for p in contract.probes], pad_id=ours.pad_id, batch_tokens=512)
    assert got[:, 0].tolist() == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("trained", ["lora"], indirect=True)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_alone_loads_the_adapter_with_its_head(trained):
    from peft import AutoPeftModelForSequenceClassification

    contract = ScoringContract.load(trained / "checkpoint")
    model = AutoPeftModelForSequenceClassification.from_pretrained(trained / "adapter", num_labels=1).eval()
    with torch.no_grad():
        got = [model.base_model.model.model(torch.tensor([p.ids])).last_hidden_state[0, -1] for p in contract.probes]
        scores = [model.base_model.model.score(h).item() for h in got]
    assert scores == pytest.approx([p.score for p in contract.probes], abs=1e-4)


# -- no gradient steps ------------------------------------------------------------------------------------


def two_sources(folder):
    """Two heads with opposite tastes over the same words: what one calls good, the other calls bad."""
    kind = world.write_jsonl(folder / "kind.jsonl", world.planted_rows(200))
    rude = [{**r, "group": f"h{r['group']}"} for r in world.planted_rows(160, seed=3, good=world.BAD, bad=world.GOOD)]
    return [
        {"path": str(kind), "head": "kind", "name": "kind"},
        {"path": str(world.write_jsonl(folder / "rude.jsonl", rude)), "head": "rude", "name": "rude"},
    ]


HEADS_ALONE = {"heads": ["kind", "rude"], "head_weights": [2, 1], "head_init": "logistic", "head_l2": [0.01, 1]}


@pytest.fixture(scope="module")
def convex(tmp_path_factory, sft, pairs):
    folder = tmp_path_factory.mktemp("convex")
    recipe = recipe_for(
        folder, sft, pairs, model=HEADS_ALONE, data={"sources": two_sources(folder)},
        method={"name": "frozen"}, optim={"epochs": 0},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    return folder


def test_without_steps_every_head_is_its_own_convex_solution(convex):
    config = load(convex / "recipe.yaml")
    start = workflow.load_start(config)
    table = workflow.encode(config, start).train
    hidden = scoring.last_hidden(start.network, [s.ids for s in table.sequences], pad_id=start.pad_id, batch_tokens=999)
    trained = read(str(convex / "out" / "checkpoint"))
    for name, l2, weight in zip(("kind", "rude"), (0.01, 1.0), trained.network.heads.weight, strict=True):
        expected = fit_logistic(hidden, table, name, l2=l2)
        assert weight.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
    assert not (convex / "out" / "steps").exists()
    assert trained.network.heads.weight[1].norm() < trained.network.heads.weight[0].norm(), "the larger ridge"


def test_the_heads_alone_score_as_the_merged_checkpoint(convex, capsys):
    alone, merged = (read(str(convex / "out" / name), ReadOptions(dtype="float32")) for name in ("heads", "checkpoint"))
    probes = merged.contract.probes
    rows = [p.ids for p in probes]
    by_head = [scoring.score(c.network, rows, pad_id=c.pad_id, batch_tokens=512) for c in (alone, merged)]
    assert by_head[0] == pytest.approx(by_head[1], abs=1e-5)
    assert [p.ids for p in alone.contract.probes] == rows
    assert [p.score for p in alone.contract.probes] == pytest.approx([p.score for p in probes], abs=1e-5)
    assert alone.contract.heads == merged.contract.heads
    assert alone.calibration == merged.calibration
    report = json.loads((convex / "out" / "heads" / "training_report.json").read_text())
    assert report["base"] == report_of(convex / "out")["recipe"]["model"]["path"]
    assert sorted(f.name for f in (convex / "out" / "heads").iterdir()) == [
        "calibration.json", "chat_template.jinja", "hidden_reference.safetensors", "reward_heads.safetensors",
        "scoring_contract.json", "training_report.json",
    ]  # fmt: skip
    assert sum(f.stat().st_size for f in (convex / "out" / "heads").iterdir()) < 100_000
    assert check(["--device", "cpu", str(convex / "out" / "heads")]) == 0
    shown = capsys.readouterr().out
    assert "every clause holds" in shown
    assert "\ngolden probes " in shown


def test_two_heads_are_also_judged_on_each_others_pairs(convex):
    lines = {(m["head"], m["source"]): m for m in report_of(convex / "out")["cross-use"]}
    assert set(lines) == {("kind", "rude"), ("rude", "kind"), ("(combined)", "kind"), ("(combined)", "rude")}
    assert lines["kind", "rude"]["accuracy"] < 0.1, "the opposite taste"
    assert lines["(combined)", "kind"]["accuracy"] > 0.5, "it weighs twice"
    assert "Cross-use" in (convex / "out" / "report.html").read_text()


def test_how_sure_a_head_may_be_is_said_by_the_pairs_that_are_its_own(convex):
    lines = {m["head"]: m["temperature"] for m in report_of(convex / "out")["metrics"]}
    fitted = {head.name: head.temperature for head in Calibration.load(convex / "out" / "checkpoint").heads}
    assert fitted == pytest.approx({name: lines[name] for name in ("kind", "rude")}, rel=1e-6)


# -- the other verbs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sft, pairs):
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_for(folder, sft, pairs, optim={"lr": 3e-3, "max_steps": 30}, output={"save_steps": 10})
    assert main(["train", "--config", str(recipe)]) == 0
    return folder


def test_evaluate_finds_what_training_reported(finished, tmp_path, capsys):
    out = f"output.folder={tmp_path}"
    checkpoint = str(finished / "out" / "checkpoint")
    assert main(["evaluate", "--config", str(finished / "recipe.yaml"), "--checkpoint", checkpoint, "--set", out]) == 0
    (line,) = json.loads((tmp_path / "evaluation.json").read_text())
    (expected,) = report_of(finished / "out")["metrics"]
    for key in ("accuracy", "nll", "margin", "length_spearman", "longer"):
        assert line[key] == pytest.approx(expected[key], abs=1e-5)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"held out, score planted: accuracy {line['accuracy']:.3f} [{line['accuracy_low']:.3f}, {line['accuracy_high']:.3f}] of "
        f"{line['n_pairs']} pairs in {line['n_groups']} groups, mean margin {line['margin']:.3g}; "
        f"longer text wins {line['longer']:.3f}",
        f"report: {tmp_path}/evaluation.html",
    ], "the words of train"


def test_every_training_measures_invariance_and_evaluate_does_on_request(finished, tmp_path, capsys):
    checkpoint = str(finished / "out" / "checkpoint")
    wanted = report_of(finished / "out")["invariance"]
    assert wanted["n_pairs"] > 0
    assert len(wanted["transforms"]) == 12
    assert "<h2>Invariance</h2>" in (finished / "out" / "report.html").read_text()
    command = ["evaluate", "--config", str(finished / "recipe.yaml"), "--checkpoint", checkpoint]
    assert main([*command, "--invariance", "--set", f"output.folder={tmp_path}"]) == 0
    found = json.loads((tmp_path / "invariance.json").read_text())
    assert found["mean_abs_shift"] == pytest.approx(wanted["mean_abs_shift"], abs=1e-4)
    assert "invariance: a change that keeps the meaning" in capsys.readouterr().out
    assert "<h2>Invariance</h2>" in (tmp_path / "evaluation.html").read_text()
    none = ["--set", "eval.invariance_pairs=0", "--set", f"output.folder={tmp_path}"]
    assert main([*command, "--invariance", *none]) == 2
    assert "eval.invariance_pairs: 0 would score no response" in capsys.readouterr().err


INDIFFERENT = {
    "penalties": {"indifference": {"length": 1.0, "markup": 0.5}, "consistency": {"weight": 0.5, "twins": 2}},
    "length_head": {
        "length_head": {"correlation": 1.0, "orthogonality": 1.0},
        "consistency": {"weight": 0.5, "transforms": []},
    },
}


@pytest.mark.parametrize("options", INDIFFERENT)
@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_terms_against_length_and_layout_train_every_method_and_leave_one_head(tmp_path, sft, method, options):
    rows = world.planted_rows(120)
    for i, row in enumerate(rows):
        row["chosen"] += "\n- one" * (i % 3)
        row["paraphrase"] = f"So: {row['chosen']}" if i % 2 else None
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    data = {"sources": [{"path": str(pairs), **({"paraphrase_key": "paraphrase"} if options == "length_head" else {})}]}
    sections = {k: v for k, v in METHODS[method].items() if k != "eval"} | INDIFFERENT[options]
    how = {"steps": 5, "bootstrap": 50, "best_by": "nll" if options == "length_head" else None}
    recipe = recipe_for(tmp_path, sft, pairs, data=data, **sections, eval=how)
    assert main(["train", "--config", str(recipe), "--set", "output.save_steps=10"]) == 0
    report = report_of(tmp_path / "out")
    assert report["twins"] == (
        2 * report["training sequences"] if options == "penalties" else pytest.approx(45, abs=12)
    )
    checkpoint = read(str(tmp_path / "out" / "checkpoint"))
    assert checkpoint.network.heads.out_features == 1
    assert check([str(tmp_path / "out" / "checkpoint")]) == 0
    log = [line for line in history_of(tmp_path / "out") if "loss" in line]
    logged = (
        ("correlation_length", "correlation_markup")
        if options == "penalties"
        else ("correlation_quality_head", "heads_overlap")
    )
    assert all(name in log[-1] for name in (*logged, "inconsistency"))
    # A stopped run is finished from its step with the same head.
    for name in ("checkpoint", "adapter", "heads"):
        shutil.rmtree(tmp_path / "out" / name, ignore_errors=True)
    (tmp_path / "out" / "report.html").unlink()
    assert main(["finish", "--config", str(recipe), "--set", "output.save_steps=10"]) == 0
    again = read(str(tmp_path / "out" / "checkpoint"))
    assert torch.allclose(again.network.heads.weight, checkpoint.network.heads.weight, atol=1e-6)


def history_of(out):
    return json.loads((last_complete(out / "steps") / "trainer_state.json").read_text())["log_history"]


def test_calibrate_writes_statistics_of_other_data_and_the_same_scores(finished, tmp_path):
    other = world.write_jsonl(tmp_path / "other.jsonl", world.planted_rows(80, seed=9, n_groups=80))
    args = [
        "calibrate",
        "--config",
        str(finished / "recipe.yaml"),
        "--checkpoint",
        str(finished / "out" / "checkpoint"),
    ]
    sets = [f"output.folder={tmp_path / 'new'}", f"data.sources.0.path={other}", "data.eval_fraction=0.9"]
    assert main([*args, *(x for s in sets for x in ("--set", s))]) == 0
    old, new = finished / "out" / "checkpoint", tmp_path / "new" / "checkpoint"
    assert Calibration.load(new).data_digest != Calibration.load(old).data_digest
    trained_on = [report_of(finished / "out")["training data"], report_of(tmp_path / "new")["training data"]]
    assert trained_on[0] == trained_on[1], "the pairs of the recipe are not those that the checkpoint was trained on"
    assert "is not known" in (tmp_path / "new" / "calibration.html").read_text()
    rows = [p.ids for p in ScoringContract.load(old).probes]
    scores = [scoring.score(read(str(f)).network, rows, pad_id=0, batch_tokens=512)[:, 0].tolist() for f in (old, new)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_too_few_responses_say_nothing_of_hidden_states_and_the_report_says_so(finished, tmp_path):
    few = world.write_jsonl(tmp_path / "few.jsonl", world.planted_rows(60, seed=9, n_groups=60))
    sets = [f"output.folder={tmp_path / 'new'}", f"data.sources.0.path={few}", "data.eval_fraction=0.5"]
    checkpoint = str(finished / "out" / "checkpoint")
    recipe = str(finished / "recipe.yaml")
    assert (finished / "out" / "checkpoint" / "hidden_reference.safetensors").is_file()
    assert (
        main(["calibrate", "--config", recipe, "--checkpoint", checkpoint, *(x for s in sets for x in ("--set", s))])
        == 0
    )
    new = read(str(tmp_path / "new" / "checkpoint"))
    assert (new.hidden, new.calibration.hidden_reference) == (None, "")
    assert "distance" not in {trait.name for trait in new.calibration.traits}
    assert not (tmp_path / "new" / "checkpoint" / "hidden_reference.safetensors").exists()
    assert "held-out responses are too few" in report_of(tmp_path / "new")["hidden states"]


def test_export_finishes_a_run_from_its_last_whole_step(finished, tmp_path):
    shutil.copytree(finished / "out" / "steps", tmp_path / "steps")
    assert main(["finish", "--config", str(finished / "recipe.yaml"), "--set", f"output.folder={tmp_path}"]) == 0
    scores = [[p.score for p in ScoringContract.load(f / "checkpoint").probes] for f in (finished / "out", tmp_path)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_folder_in_use_is_neither_overwritten_nor_resumed_by_another_recipe(finished, tmp_path, capsys):
    recipe = str(finished / "recipe.yaml")
    assert main(["train", "--config", recipe]) == 2
    assert "holds a finished run (checkpoint, report.html)" in capsys.readouterr().err
    shutil.copytree(finished / "out" / "steps", tmp_path / "steps")
    assert main(["train", "--config", recipe, "--set", f"output.folder={tmp_path}"]) == 2
    assert "Resume from it with --set output.resume=true" in capsys.readouterr().err
    assert main(["train", "--config", recipe, "--set", "output.resume=true", "--set", "seed=5"]) == 2
    assert "another recipe: seed" in capsys.readouterr().err


def test_training_goes_on_from_a_reward_model(finished, tmp_path, pairs):
    start = finished / "out" / "checkpoint"
    recipe = recipe_for(tmp_path, start, pairs, model={"start": "reward"}, optim={"lr": 1e-6, "max_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0
    report = report_of(tmp_path / "out")
    (expected,) = report_of(finished / "out")["metrics"]
    assert report["before"][0]["nll"] == pytest.approx(expected["nll"], abs=1e-4)


def test_training_that_goes_on_from_a_head_with_a_bias_says_what_became_of_it(tmp_path, sft, pairs, capsys):
    start = Path(shutil.copytree(sft, tmp_path / "start"))
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([3.7])}
    save_file(head, start / "value_head.safetensors", metadata={"format": "pt"})
    recipe = recipe_for(tmp_path, start, pairs, model={"start": "reward"}, optim={"lr": 1e-12, "max_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0
    assert "bias of 3.7" in capsys.readouterr().err
    assert "bias of 3.7" in (tmp_path / "out" / "report.html").read_text()
    assert any("bias of 3.7" in note for note in report_of(tmp_path / "out")["notes"])
    before, after = read(str(start)), read(str(tmp_path / "out" / "checkpoint"))
    for probe in after.contract.probes:
        assert before.encoder(sample_from_dict(probe.sample)).ids == probe.ids
        assert score_single_row(before.network, probe.ids) - 3.7 == pytest.approx(probe.score, abs=1e-4)


def test_pairs_of_plain_text_are_served_as_they_were_trained(tmp_path, sft, capsys):
    rows = [
        {"group": r["group"], "prompt": f"Q: {r['prompt'][0]['content']} A:", "chosen": _said(r["chosen"]),
         "rejected": _said(r["rejected"])}
        for r in world.planted_rows(80)
    ]  # fmt: skip
    plain = world.write_jsonl(tmp_path / "plain.jsonl", rows)
    sources = [{"path": str(plain), "strings": "raw"}]
    assert (
        main(["train", "--config", str(recipe_for(tmp_path, sft, plain, data={"sources": sources}, **METHODS["lora"]))])
        == 0
    )
    assert "plain text that the chat template did not render" in capsys.readouterr().err
    folder = tmp_path / "out" / "checkpoint"
    encode, tok = read(str(folder)).encoder, AutoTokenizer.from_pretrained(folder)
    for row in rows[:8]:
        prompt, response = row["prompt"], row["chosen"]
        trained = tuple(tok(prompt + response + tok.eos_token, add_special_tokens=False)["input_ids"])
        assert encode(Sample(prompt=prompt, response=response)).ids == trained
        assert encode(Sample(text=prompt + response)).ids == trained
    turns = world.write_jsonl(tmp_path / "turns.jsonl", world.planted_rows(80))
    mixed = recipe_for(tmp_path, sft, plain, data={"sources": [*sources, {"path": str(turns)}]},
                       output={"folder": str(tmp_path / "mixed")})  # fmt: skip
    assert main(["train", "--config", str(mixed)]) == 2
    assert "80 of 160 pairs are plain text" in capsys.readouterr().err


def _said(side):
    return side if isinstance(side, str) else side[-1]["content"]


def test_two_heads_learn_opposite_tastes_and_their_sum_is_of_normalised_heads(tmp_path, sft):
    kind = world.write_jsonl(tmp_path / "kind.jsonl", world.planted_rows(200))
    short = [
        {
            **r,
            "chosen": " " + " ".join(r["chosen"].split()[:2]),
            "rejected": r["rejected"] + " table" * 4,
            "group": f"h{i % 40}",
        }
        for i, r in enumerate(world.planted_rows(200, seed=3, good="stone", bad="stone"))
    ]
    brief = world.write_jsonl(tmp_path / "brief.jsonl", short)
    probes = world.write_jsonl(tmp_path / "probes.jsonl", [{"prompt": "q", "response": f"r{i}"} for i in range(4)])
    sources = [
        {"path": str(kind), "head": "kind", "name": "kind"},
        {"path": str(brief), "head": "brief", "name": "brief"},
    ]
    recipe = recipe_for(
        tmp_path, sft, kind,
        model={"heads": ["kind", "brief"], "head_weights": [2, 1], "head_init": "logistic", "n_layers": 1},
        data={"sources": sources}, method={"name": "lora", "layers": [0]}, optim={"lr": 3e-3, "epochs": 3},
        export={"probes": str(probes)},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    report = report_of(tmp_path / "out")
    lines = {(m["head"], m["source"]): m for m in report["metrics"]}
    assert lines["kind", "kind"]["accuracy"] > 0.9
    assert lines["brief", "brief"]["accuracy"] > 0.9
    assert ("(combined)", "(all)") in lines
    checkpoint = read(str(tmp_path / "out" / "checkpoint"))
    assert checkpoint.network.head_names == ("kind", "brief")
    assert [p.sample["response"] for p in checkpoint.contract.probes] == ["r0", "r1", "r2", "r3"]
    ids = [(5, 6, 7, 2), (9, 8, 2)]
    by_head = scoring.score(checkpoint.network, ids, pad_id=0, batch_tokens=64)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint").eval()
    logits = [plain(torch.tensor([row])).logits[0, 0].item() for row in ids]
    assert (by_head @ checkpoint.network.head_weights).tolist() == pytest.approx(logits, abs=1e-4)
    held_out = workflow.encode(load(recipe), checkpoint).held_out.sequences
    spread = scoring.score(checkpoint.network, [s.ids for s in held_out], pad_id=0, batch_tokens=4096).std(axis=0)
    assert spread * checkpoint.network.head_weights == pytest.approx([2, 1], rel=1e-4)
    # Calibrated again, in place: the weights are of the normalised heads as before, not divided twice.
    before = (tmp_path / "out" / "report.html").read_bytes()
    assert main(["calibrate", "--config", str(recipe)]) == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == before, "the report of the training stays"
    assert "rewardserve calibrate" in (tmp_path / "out" / "calibration.html").read_text()
    again = read(str(tmp_path / "out" / "checkpoint"))
    assert again.network.head_weights == pytest.approx(checkpoint.network.head_weights, rel=1e-3)
    assert again.calibration.mean == pytest.approx(checkpoint.calibration.mean, rel=1e-3, abs=1e-4)
    assert not (tmp_path / "out" / "checkpoint.new").exists()


# -- what goes wrong --------------------------------------------------------------------------------------


def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, sft, pairs, capsys):
    recipe = str(recipe_for(tmp_path, sft, pairs))
    for override, says in {
        "optim.lrr=1": "did you mean 'optim.lr'",
        "data.sources.0.path=gone.jsonl": "is not a file",
        "model.path=/gone": "not a folder",
        "model.start=reward": "head",
        "encoding.max_tokens=3": "longer than encoding.max_tokens",
        "data.eval_fraction=0.0001": "data.eval_fraction is 0.0001, and of 40 groups (400 pairs) none is held out",
        "loss.name=hinge": "logsigmoid, logexp",
        "model.n_layers=9": "2 layers",
        "optim.schedule=sometimes": "sometimes",
        "optim.optimizer=sgdd": "sgdd",
        "optim.warmup=500": "optim.warmup is 500 steps, and the run has 19: the learning rate would never reach optim.lr",
        "model.heads=[score, other]": "no pair trains 'other' of model.heads (pairs by head: {'score': 300, 'other': 0})",
        "method={name: lora, targets: [q_proj, qq_proj]}": "no module is called qq_proj; linear ones are down_proj, ",
        "method={name: lora, layers: [7]}": "layers [7] do not exist",
        "export.probes=/gone.jsonl": "export.probes: /gone.jsonl holds no samples",
        "data.sources.0.split=validation": "is a file, of which all rows are read: split: validation has no effect",
        "data.sources.0.subset=en": "is a file, of which all rows are read: subset: en has no effect",
    }.items():
        is_of_model = override in ("model.path=/gone", "model.n_layers=9", "model.start=reward")
        assert main(["train", "--config", recipe, "--set", override]) == (1 if is_of_model else 2), override
        assert says in capsys.readouterr().err


def test_a_run_that_breaks_stops_with_exit_code_1_and_names_rows(tmp_path, sft, pairs, capsys):
    recipe = recipe_for(tmp_path, sft, pairs, optim={"lr": 100, "optimizer": "sgd", "schedule": "constant",
                                                    "max_steps": 40, "max_grad_norm": 0})  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 1
    output = capsys.readouterr().err
    assert "weights are already not finite" in output
    assert f"{pairs}:" in output
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_margins_are_not_dropped_in_silence(tmp_path, sft, capsys):
    rows = [{**r, "margin": 1.0} for r in world.planted_rows(40)]
    pairs = world.write_jsonl(tmp_path / "margins.jsonl", rows)
    assert main(["train", "--config", str(recipe_for(tmp_path, sft, pairs, loss={"name": "logexp"}))]) == 2
    assert "ignores margins" in capsys.readouterr().err


def test_without_held_out_pairs_there_is_no_calibration_and_it_says_so(tmp_path, sft, pairs):
    recipe = recipe_for(tmp_path, sft, pairs, data={"eval_fraction": 0}, optim={"max_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0
    assert Calibration.load(tmp_path / "out" / "checkpoint") is None
    assert report_of(tmp_path / "out")["calibration"] is None


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_trains_and_exports_float32_scores(tmp_path, sft, pairs, precision):
    recipe = recipe_for(tmp_path, sft, pairs, optim={"lr": 3e-3, "max_steps": 40, "precision": precision,
                                                    "gradient_checkpointing": True})  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    (line,) = report_of(tmp_path / "out")["metrics"]
    assert line["accuracy"] > 0.9
    assert main(["evaluate", "--config", str(recipe)]) == 0
    (again,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert again["margin"] == pytest.approx(line["margin"], rel=1e-5), "the autocast of training is gone"


@pytest.mark.parametrize("method", ["frozen", "lora"])
def test_made_pairs_are_trained_on_counted_apart_and_never_judged(tmp_path, sft, pairs, method, capsys):
    augment = {"repeated": 0.2, "markup": 0.1, "other_prompt": 0.1, "weight": 0.5}
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS[method], augment=augment)
    assert main(["train", "--config", str(recipe)]) == 0
    out = tmp_path / "out"
    report, counted = report_of(out), capsys.readouterr().out
    made = report["pairs made"]
    assert list(made) == ["other_prompt", "repeated", "markup"]
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in made.items())
    assert f"  made of these: {sum(made.values()):,} more pairs to train on ({kinds})" in counted
    assert report["training pairs"] + report["held-out pairs"] == report["rows read"]
    assert sum(m["n_pairs"] for m in report["metrics"]) == report["held-out pairs"]
    assert main(["evaluate", "--config", str(recipe)]) == 0
    assert "made of these" not in capsys.readouterr().out
    assert "this checkpoint was trained on the training pairs of this recipe" in (out / "evaluation.html").read_text()


# -- audit judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_a_judge_of_other_pairs_and_another_depth_is_trained_beside_the_model(tmp_path, sft, pairs, method):
    augment = {"empty": 0.1}
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS[method], audit_judge={"n_layers": 1}, augment=augment)
    assert main(["train", "--config", str(recipe)]) == 0
    out = tmp_path / "out"
    model, judge = report_of(out), json.loads((out / "checkpoint/audit_judge/training_report.json").read_text())
    assert judge["training pairs"] == model["held-out pairs"] > 0
    assert judge["held-out pairs"] == model["training pairs"]
    assert (list(model["pairs made"]), judge["pairs made"]) == (["empty"], {})
    assert judge["recipe"]["seed"] != model["recipe"]["seed"]
    read_back = read(str(out / "checkpoint" / "audit_judge"))
    assert read_back.network.config.num_hidden_layers == 1
    assert read_back.contract is not None
    assert read_back.calibration is not None
    if method == "frozen":
        small = out / "heads" / "audit_judge"
        assert sum(f.stat().st_size for f in small.glob("*.safetensors")) < 20_000
        ids = read_back.contract.probes[0].ids
        again = read(str(small))
        assert score_single_row(again.network, ids) == pytest.approx(score_single_row(read_back.network, ids), abs=1e-5)


def test_a_judge_stays_with_a_checkpoint_that_is_calibrated_again(tmp_path, sft, pairs):
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS["frozen"], audit_judge={})
    assert main(["train", "--config", str(recipe)]) == 0
    before = (tmp_path / "out/checkpoint/audit_judge/scoring_contract.json").read_text()
    assert main(["calibrate", "--config", str(recipe)]) == 0
    assert (tmp_path / "out/checkpoint/audit_judge/scoring_contract.json").read_text() == before


def test_a_judge_learns_from_its_own_sources(tmp_path, sft, pairs):
    own = world.write_jsonl(tmp_path / "own.jsonl", world.planted_rows(120, seed=9))
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS["frozen"], audit_judge={"sources": [{"path": str(own)}]})
    assert main(["train", "--config", str(recipe)]) == 0
    judge = json.loads((tmp_path / "out/checkpoint/audit_judge/training_report.json").read_text())
    assert judge["rows read"] == 120
    assert report_of(tmp_path / "out")["rows read"] == 400


def test_a_finished_judge_is_kept_where_the_run_continues(tmp_path, sft, pairs, capsys):
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS["frozen"], audit_judge={})
    assert main(["train", "--config", str(recipe)]) == 0
    made = (tmp_path / "out/audit_judge/checkpoint/training_report.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "checkpoint")
    assert main(["train", "--config", str(recipe), "--set", "output.resume=true"]) == 0
    assert (tmp_path / "out/audit_judge/checkpoint/training_report.json").stat().st_mtime_ns == made
    assert (tmp_path / "out/checkpoint/audit_judge/scoring_contract.json").is_file()
    capsys.readouterr()
    assert main(["train", "--config", str(recipe)]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_a_finished_judge_of_another_recipe_is_refused(tmp_path, sft, pairs, capsys):
    recipe = recipe_for(tmp_path, sft, pairs, **METHODS["frozen"], audit_judge={})
    assert main(["train", "--config", str(recipe)]) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoint")
    changed = ["--set", "output.resume=true", "--set", "audit_judge.balance_length=false"]
    assert main(["train", "--config", str(recipe), *changed]) == 2
    assert "audit_judge was started by another recipe: data differ" in capsys.readouterr().err


def test_a_judge_beside_a_reward_model_is_refused(tmp_path, sft, pairs, capsys):
    recipe = recipe_for(tmp_path, sft, pairs, model={"start": "reward"}, audit_judge={})
    assert main(["train", "--config", str(recipe)]) == 2
    assert "REWARD_AUDIT_MODEL" in capsys.readouterr().err


def test_a_judge_of_one_head_reads_the_sources_of_this_head_alone(tmp_path, sft, pairs):
    other = world.write_jsonl(tmp_path / "other.jsonl", world.planted_rows(120, seed=9))
    sources = [{"path": str(pairs), "head": "a"}, {"path": str(other), "head": "b"}]
    model = {"head_init": "logistic", "heads": ["a", "b"], "head_weights": [0.9, 0.1], "head_l2": [0.1, 0.3]}
    data = {"sources": sources, "eval_fraction": 0.25}
    recipe = recipe_for(
        tmp_path, sft, pairs, method={"name": "frozen"}, optim={"epochs": 0}, model=model, data=data,
        audit_judge={"heads": ["b"]},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    judge = json.loads((tmp_path / "out/checkpoint/audit_judge/training_report.json").read_text())
    assert (judge["rows read"], judge["heads"], judge["recipe"]["model"]["head_l2"]) == (120, {"b": 1.0}, [0.3])
    assert main(["train", "--config", str(recipe), "--set", "audit_judge.heads=[c]"]) == 2


def test_swapped_data_needs_held_out_pairs(tmp_path, sft, pairs, capsys):
    recipe = recipe_for(tmp_path, sft, pairs, data={"eval_fraction": 0.0, "swap": True})
    assert main(["train", "--config", str(recipe)]) == 2
    assert "data.eval_fraction: 0" in capsys.readouterr().err
