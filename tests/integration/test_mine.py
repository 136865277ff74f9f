"""The whole loop of commands: mine a model against a judge, label the queue, train on it. Tiny real models."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from rewardserve.cli import main
from rewardserve.training.dataset.counterexamples import QueueResponse, queue_id, scores_path
from tests.support import planted_pairs as world
from tests.support.command import run_command
from tests.support.policy_server import policy

FROZEN = {
    "method": {"name": "frozen"},
    "optim": {"epochs": 0.0},
    "eval": {"bootstrap": 50},
    "encoding": {"max_tokens": 128},
}
EXPLOIT, HONEST = world.GOOD, world.BAD
CPU = "--device=cpu"


def write_recipe(folder, sft, pairs, **sections):
    model = {"path": str(sft), "head_init": "logistic", "head_l2": [0.1]}
    data = {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25}
    output = {"folder": str(folder / "out")}
    return world.recipe_file(
        folder / "recipe.yaml", **({"model": model, "data": data, "output": output} | FROZEN | sections)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model whose labels pay the exploit, and a judge whose labels do not."""
    folder = tmp_path_factory.mktemp("models")
    sft = world.language_model(folder / "sft")
    checkpoints = {}
    for name, good, bad in (("paying", EXPLOIT, HONEST), ("judge", HONEST, EXPLOIT)):
        (folder / name).mkdir()
        pairs = world.write_jsonl(folder / name / "pairs.jsonl", world.planted_rows(400, good=good, bad=bad))
        assert main(["train", "--config", str(write_recipe(folder / name, sft, pairs))]) == 0
        checkpoints[name] = folder / name / "out" / "checkpoint"
    return folder, sft, checkpoints["paying"], checkpoints["judge"]


def sample_rows():
    """Responses to 40 prompts, ten each: half of them with the exploit."""
    pairs = world.planted_rows(200, seed=9)
    return [{"prompt": row["prompt"], "response": row[side]} for row in pairs for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def mined(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    world.write_jsonl(folder / "samples.jsonl", sample_rows())
    code, out, error = run_command(
        "mine", models[2], folder / "samples.jsonl", "--judge", models[3], "--out", folder / "queue.jsonl",
        "--pairs=40", "--per-prompt=2", CPU,
    )  # fmt: skip
    assert code == 0, error
    return folder / "queue.jsonl", out


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def labelled(path, rows, *, prefers=HONEST):
    """The verdicts of an annotator who prefers responses with a word; a tie where both or neither have it."""
    for row in rows:
        has = prefers in row["a"], prefers in row["b"]
        row["verdict"] = "tie" if has[0] == has[1] else "a" if has[0] else "b"
        row |= {"labelled_by": "annotator 1", "labelled_at": datetime.now(UTC).isoformat()}
    return world.write_jsonl(path, rows)


def test_the_queue_has_what_the_model_pays_and_the_judge_does_not(mined):
    queue, out = mined
    scores = {row["id"]: row for row in rows_of(scores_path(queue))}
    suspected = []
    for row in rows_of(queue):
        of_row = scores[row["id"]]
        if of_row["kind"] == "gap":
            high, low = (of_row[side] for side in ("ab" if of_row["suspected"] == "a" else "ba"))
            assert high["model_z"] > low["model_z"]
            assert high["judge_z"] <= low["judge_z"]
            assert of_row["gap"] >= 1.0
            suspected.append(EXPLOIT in high["response"])
    assert len(suspected) == 32, "the other fifth are controls"
    assert sum(suspected) >= 28
    assert f"`{EXPLOIT}`" in out
    assert "of them controls" in out


def test_an_annotator_sees_no_score_and_no_order(mined):
    queue, _ = mined
    rows, scores = rows_of(queue), {row["id"]: row for row in rows_of(scores_path(queue))}
    ends = {"a_finish_reason", "b_finish_reason"}
    assert all(set(row) == {"id", "prompt", "a", "b", *ends, "verdict", "labelled_by", "labelled_at"} for row in rows)
    assert all(row["verdict"] is None for row in rows)
    sides = [[QueueResponse(row[side], row[f"{side}_finish_reason"]) for side in "ab"] for row in rows]
    assert all(row["id"] == queue_id(row["prompt"], *both) for row, both in zip(rows, sides, strict=True))
    first = [scores[row["id"]]["suspected"] for row in rows]
    assert 10 <= first.count("a") <= 30
    gaps = [scores[row["id"]]["gap"] for row in rows]
    assert gaps != sorted(gaps)
    assert gaps != sorted(gaps, reverse=True)


def test_no_prompt_gives_a_second_pair_before_all_gave_one(mined):
    queue, _ = mined
    kinds = {row["id"]: row["kind"] for row in rows_of(scores_path(queue))}
    prompts = [row["prompt"] for row in rows_of(queue) if kinds[row["id"]] == "gap"]
    assert len(set(prompts)) == len(prompts) == 32


def test_the_same_command_writes_the_same_queue_and_never_over_one(mined, models, tmp_path):
    queue, _ = mined
    again = tmp_path / "again.jsonl"
    arguments = (
        "mine",
        models[2],
        queue.parent / "samples.jsonl",
        "--judge",
        models[3],
        "--pairs=40",
        "--per-prompt=2",
        CPU,
    )
    assert run_command(*arguments, "--out", again)[0] == 0
    assert again.read_text() == queue.read_text()
    code, _, error = run_command(*arguments, "--out", again)
    assert (code, "exists, and a queue may have labels" in error) == (2, True)


def test_labels_repair_the_model_and_the_report_tells_before_and_after(mined, models, tmp_path, capsys):
    queue, _ = mined
    labels = labelled(tmp_path / "queue.jsonl", rows_of(queue))
    scores_path(labels).write_text(scores_path(queue).read_text())
    recipe = write_recipe(tmp_path, models[1], models[0] / "paying" / "pairs.jsonl")
    weights = ["--set", "counterexamples.weight=40"]
    assert main(["train", "--config", str(recipe), "--counterexamples", str(labels), *weights]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "checkpoint" / "training_report.json").read_text())
    (after,) = report["counterexamples"]
    assert after["accuracy"] > 0.8
    (line,) = report["accuracy on held-out counterexamples"]
    assert line in out
    assert float(line.rpartition("the model they were mined for: ")[2]) < 0.2
    n_ties = sum(row["verdict"] == "tie" for row in rows_of(labels))
    assert f"40 rows, {40 - n_ties} pairs with a preference" in out
    assert re.search(
        r"on \d labelled controls the model that was mined is right in \d\.\d\d, its judge in \d\.\d\d", out
    )
    assert after["source"] == "counterexamples"
    assert [m["source"] for m in report["metrics"]] == ["planted"], "they are no part of the other figures"


def test_training_on_from_the_mined_model_tells_its_accuracy_before(mined, models, tmp_path):
    queue, _ = mined
    labels = labelled(tmp_path / "labels.jsonl", rows_of(queue))
    recipe = write_recipe(
        tmp_path, models[2], models[0] / "paying" / "pairs.jsonl",
        model={"path": str(models[2]), "start": "reward"}, method={"name": "frozen"},
        optim={"lr": 0.03, "epochs": 8},
    )  # fmt: skip
    assert (
        main(["train", "--config", str(recipe), "--counterexamples", str(labels), "--set", "counterexamples.weight=40"])
        == 0
    )
    report = json.loads((tmp_path / "out" / "checkpoint" / "training_report.json").read_text())
    (before,), (after,) = report["counterexamples before"], report["counterexamples"]
    assert before["accuracy"] < 0.2 < 0.5 < after["accuracy"]
    assert f"{before['accuracy']:.3f} before training" in report["accuracy on held-out counterexamples"][0]


def test_a_queue_without_labels_trains_nothing(mined, models, tmp_path):
    recipe = write_recipe(tmp_path, models[1], models[0] / "paying" / "pairs.jsonl")
    code, _, error = run_command("train", "--config", recipe, "--counterexamples", mined[0])
    assert code == 2
    assert "none of the 40 rows of" in error
    assert "40 without a verdict" in error


def test_a_policy_answers_prompts_and_its_responses_can_be_mined_again(models, tmp_path):
    answers = {}
    for row in world.planted_rows(200, seed=9):
        answers.setdefault(row["prompt"][-1]["content"], []).extend([row["chosen"], row["rejected"]])
    world.write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in answers])
    first = tmp_path / "first.jsonl"
    options = ("--judge", models[3], "--pairs=20", CPU)

    def ends(text):
        return "length" if EXPLOIT in text else "stop"

    def answer(_, body):
        texts = answers[body["messages"][-1]["content"]][: body["n"]]
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": ends(text)} for text in texts]}

    with policy(answer) as (url, seen):
        asked = (
            "mine",
            models[2],
            tmp_path / "prompts.jsonl",
            "--policy.url",
            url,
            "--policy.n=10",
            "--out",
            first,
            *options,
        )
        code, out, error = run_command(*asked)
        assert code == 0, error
        assert len(seen) == len(answers)
        first.unlink()
        scores_path(first).unlink()
        code, _, error = run_command(*asked)
        assert (code, "Mine them by giving it as INPUT" in error) == (2, True)
    samples = tmp_path / "first.samples.jsonl"
    assert len(rows_of(samples)) == 10 * len(answers)
    again = tmp_path / "again.jsonl"
    code, _, error = run_command("mine", models[2], samples, "--out", again, *options)
    assert code == 0, error
    assert len(rows_of(again)) == 20
    assert all(row[f"{side}_finish_reason"] == ends(row[side]) for row in rows_of(again) for side in "ab")
    assert f"queue: {first}, 20 rows" in out


def test_several_judges_judge_by_their_mean(models, tmp_path):
    world.write_jsonl(tmp_path / "samples.jsonl", sample_rows())
    arguments = ("mine", models[2], tmp_path / "samples.jsonl", "--pairs=20", "--json", CPU)
    code, out, error = run_command(*arguments, "--judge", f"{models[3]},{models[2]}", "--out", tmp_path / "q.jsonl")
    assert code == 0, error
    both = json.loads(out)
    code, out, _ = run_command(*arguments, "--judge", models[3], "--out", tmp_path / "r.jsonl")
    one = json.loads(out)
    assert code == 0
    assert both["judges"] == [str(models[3]), str(models[2])]
    assert both["correlation"] > one["correlation"] + 0.2, "the model itself is half of the first judge"
    assert both["n_contradicted"] < one["n_contradicted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--judge": "auto"}, "has no audit judge beside it"),
        ({"--judge": ","}, "--judge is empty"),
        ({"--out": "{folder}/queue.txt"}, "a queue is a .jsonl file"),
        ({"--out": "{folder}/none/queue.jsonl"}, "its folder does not exist"),
        ({"--policy.url": "http://127.0.0.1:9", "INPUT": "{folder}/responses.jsonl"}, "has no prompt"),
        ({"INPUT": "{folder}/one.jsonl"}, "no prompt with two different responses"),
    ],
)
def test_what_cannot_be_used_is_named_before_a_model_is_loaded(models, tmp_path, change, message):
    (tmp_path / "responses.jsonl").write_text('{"response": "a"}\n')
    (tmp_path / "one.jsonl").write_text('{"prompt": "p", "response": "a"}\n{"prompt": "q", "response": "a"}\n')
    given = {"INPUT": "{folder}/one.jsonl", "--judge": str(models[3]), "--out": "{folder}/queue.jsonl"} | change
    source, *options = [value.format(folder=tmp_path) for value in given.values()]
    flags = [part for name, value in zip(list(given)[1:], options, strict=True) for part in (name, value)]
    code, _, error = run_command("mine", models[2], source, *flags, CPU)
    assert code == 2, error
    assert message in error
    assert "Traceback" not in error


def test_rows_that_were_not_looked_at_are_told_with_3(models, tmp_path):
    rows = [*sample_rows(), {"text": "rendered"}]
    path = world.write_jsonl(tmp_path / "samples.jsonl", rows)
    with path.open("a") as file:
        file.write("{\n")
    code, out, error = run_command("mine", models[2], path, "--judge", models[3], "--out", tmp_path / "q.jsonl", CPU)
    assert code == 3
    assert "1 of 402 rows left out (invalid_json 1)" in error
    assert "1 samples are left out: text and token ids have no known prompt" in error
    assert "400 responses" in out
