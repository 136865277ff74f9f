"""`rewardserve evaluate --benchmark`: the same numbers from a checkpoint and from a server, in the authors' files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewardserve.cli import main
from rewardserve.model.checkpoint import read
from rewardserve.model.checkpoint.writing import score_single_row
from rewardserve.model.conversation import Message, Sample
from tests.support import planted_pairs as world
from tests.support.server_in_process import serve_in_process

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pairs = world.write_jsonl(folder / "pairs.jsonl", world.planted_rows(120))
    recipe = world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(world.language_model(folder / "sft")), "head_init": "logistic"},
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
        encoding={"max_tokens": 64, "truncation": "error"}, method={"name": "frozen"}, optim={"epochs": 0},
        eval={"bootstrap": 10, "invariance_pairs": 0}, output={"folder": str(folder / "judge")},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 0
    return folder / "judge" / "checkpoint"


@pytest.fixture(scope="module")
def server(checkpoint):
    with serve_in_process(str(checkpoint), "--device=cpu", "--max-samples-per-request=7") as running:
        yield running


def responses(i, word, n):
    return [f" {word} {' '.join(world.NEUTRAL[(i + k) % 10] for k in range(2 + j))}" for j in range(n)]


def rows_of(kind):
    rows = []
    for i in range(12):
        words = (world.GOOD, world.BAD) if i % 4 else (world.BAD, world.GOOD)
        n_chosen, n_rejected = {"rewardbench": (1, 1), "rewardbench2": (1, 3), "rm-bench": (3, 3)}[kind]
        row = {
            "id": str(i),
            "prompt": f"say {i}",
            "chosen": responses(i, words[0], n_chosen),
            "rejected": responses(i, words[1], n_rejected),
        }
        if kind == "rewardbench":
            row |= {
                "chosen": row["chosen"][0],
                "rejected": row["rejected"][0],
                "subset": ("hep-cpp", "math-prm")[i % 2],
            }
        elif kind == "rewardbench2":
            row |= {"subset": ("Math", "Focus")[i % 2], "num_correct": 1, "total_completions": 4}
            if i >= 8:
                pair, many = (i - 8) // 2, i % 2
                row |= {"subset": "Ties", "id": f"{'tied' if many else 'ref'}:{pair}"}
                row["chosen"] = responses(i, words[0], 2 if many else 1)
                row["num_correct"] = len(row["chosen"])
        else:
            row |= {"domain": ("chat", "code")[i % 2]}
        rows.append(row)
    return rows


def read_results(folder):
    (figures,), (scores,) = (list((folder / part).iterdir()) for part in ("eval-set", "eval-set-scores"))
    return json.loads(figures.read_text()), json.loads(scores.read_text())


def numbers(value):
    """All numbers in a value, in order."""
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in numbers(value[key])]
    if isinstance(value, list):
        return [n for each in value for n in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("kind", ["rewardbench", "rewardbench2", "rm-bench"])
def test_a_checkpoint_and_its_server_give_the_same_results(tmp_path, checkpoint, server, kind, capsys):
    file = world.write_jsonl(tmp_path / "file.jsonl", rows_of(kind))
    for name, judge in (("checkpoint", str(checkpoint)), ("url", server.url)):
        assert main(["evaluate", "--benchmark", str(file), f"--{name}", judge, "--output", str(tmp_path / name)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "component=" not in line]
    assert shown[: len(shown) // 2 - 1] == shown[len(shown) // 2 : -1], "but for the place of the results"
    by_checkpoint, by_url = (read_results(tmp_path / name) for name in ("checkpoint", "url"))
    assert numbers(by_url[0]) == pytest.approx(numbers(by_checkpoint[0]), abs=1e-6), "figures"
    assert numbers(by_url[1]) == pytest.approx(numbers(by_checkpoint[1]), abs=1e-4), "raw scores"
    assert len(set(numbers(by_url[1]))) > 12
    found = read(str(checkpoint))
    first, scores = rows_of(kind)[0], by_checkpoint[1]
    expected = []
    for side in ("chosen", "rejected"):
        for text in [first[side]] if isinstance(first[side], str) else first[side]:
            sample = Sample(messages=(Message("user", first["prompt"]), Message("assistant", text)))
            expected.append(score_single_row(found.network, found.encoder(sample).ids))
    if kind == "rewardbench":
        assert [scores["scores_chosen"][0], scores["scores_rejected"][0]] == pytest.approx(expected, abs=1e-5)
        figures = by_checkpoint[0]
        assert figures["hep-cpp"] == pytest.approx(sum(scores["results"][0::2]) / 6)
        assert {"model", "model_type", "chat_template", "hep-cpp", "math-prm"} == set(figures)
    elif kind == "rewardbench2":
        assert scores["scores"][0] == pytest.approx(expected, abs=1e-5)
        assert {"Focus", "Math", "Ties"} < set(by_checkpoint[0])
        assert scores["num_correct"][-1] == 2
    else:
        assert [*scores[0]["score_chosen"], *scores[0]["score_rejected"]] == pytest.approx(expected, abs=1e-5)
        assert {"hard_acc", "normal_acc", "easy_acc", "chat", "code"} < set(by_checkpoint[0])


def test_a_row_with_a_response_without_a_score_is_left_out_and_counted(tmp_path, checkpoint, server, capsys):
    rows = rows_of("rewardbench")
    rows[2]["rejected"] += " stone" * 100
    file = world.write_jsonl(tmp_path / "file.jsonl", rows)
    for name, judge in (("checkpoint", str(checkpoint)), ("url", server.url)):
        assert main(["evaluate", "--benchmark", str(file), f"--{name}", judge, "--output", str(tmp_path / name)]) == 3
        assert "left out: 1 of 12 rows" in capsys.readouterr().out
        figures, scores = read_results(tmp_path / name)
        assert figures["rows_left_out"] == 1
        assert "2" not in scores["id"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--benchmark", "FILE"], "either --checkpoint CHECKPOINT or --url URL"),
        (["--benchmark", "FILE", "--url", "u", "--checkpoint", "c"], "either"),
        (["--benchmark", "FILE", "--url", "u", "--config", "r.yaml"], "--config has no effect with --benchmark"),
        (["--url", "u", "--config", "r.yaml"], "--url is for --benchmark"),
        (["--checkpoint", "c"], "write --config RECIPE, or --benchmark FILE"),
        (["--benchmark", "FILE", "--checkpoint", "c", "--key-file", "k"], "--key-file is for --url"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_server_that_is_not_there_and_a_file_of_another_kind_end_in_one_line(tmp_path, capsys):
    file = world.write_jsonl(tmp_path / "file.jsonl", rows_of("rewardbench"))
    words = ["evaluate", "--benchmark", str(file), "--output", str(tmp_path / "out")]
    assert main([*words, "--url", "http://127.0.0.1:9"]) == 1
    assert "no server of RewardServe" in capsys.readouterr().err
    other = world.write_jsonl(tmp_path / "other.jsonl", world.planted_rows(3))
    assert main(["evaluate", "--benchmark", str(other), "--checkpoint", "x"]) == 2
    assert "column 'subset' is missing" in capsys.readouterr().err
    assert not Path("results").exists()
