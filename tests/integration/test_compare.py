"""`rewardserve compare`: two real checkpoints on a file, against what transformers and counting make of it."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.checkpoints import reward_model
from tests.support.command import run_command

WORDS = ("stone", "river", "table", "cloud", "paper", "green", "seven", "north")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b")):
        reward_model(folder / name, seed=seed)
    return folder / "a", folder / "b"


def text(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


@pytest.fixture(scope="module")
def labelled():
    rng = random.Random(5)
    prompts = [text(rng, 5) for _ in range(12)]
    return [
        {"prompt": prompts[i % 12], "chosen": text(rng, 1 + i % 7), "rejected": text(rng, 2 + i % 5)} for i in range(36)
    ]


def by_transformers(folder, prompt, response):
    """The score of one conversation, alone, with the checkpoint's own template: nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return float(model(**ids).logits[0, 0])


def test_pairs_are_judged_as_transformers_scores_them(models, labelled, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    code, out, output = run_command("compare", *models, path, "--json", "--device=cpu")
    assert code == 0, output
    found = json.loads(out)
    diffs = [
        [by_transformers(folder, r["prompt"], r["chosen"]) - by_transformers(folder, r["prompt"], r["rejected"]) for r in labelled]
        for folder in models
    ]  # fmt: skip
    right = [[d > 0 for d in of_model] for of_model in diffs]
    assert 0.2 < sum(right[0]) / 36 < 0.8, "a random head is right by chance"
    assert found["accuracy"]["a"]["value"] == pytest.approx(sum(right[0]) / 36)
    assert found["accuracy"]["b"]["value"] == pytest.approx(sum(right[1]) / 36)
    assert found["accuracy"]["difference"]["value"] == pytest.approx((sum(right[1]) - sum(right[0])) / 36)
    assert found["accuracy"]["n_only_a"] == sum(a and not b for a, b in zip(*right, strict=True))
    assert found["disagreement"]["value"] == pytest.approx(sum(a != b for a, b in zip(*right, strict=True)) / 36)
    assert (found["n_pairs"], found["n_prompts"], found["rows"]) == (36, 12, 36)
    assert found["models"]["a"]["contract"] != found["models"]["b"]["contract"]


def test_as_text_a_model_agrees_with_itself(models, labelled, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    code, out, _ = run_command("compare", models[0], models[0], path, "--device=cpu")
    assert code == 0
    assert f"A  {models[0]}  sha256:" in out
    assert "36 labelled pairs, 12 prompts" in out
    assert "B minus A             +0.000 [-0." in out
    assert "rank correlation       1.000 over all responses" in out


def test_responses_without_labels_are_ordered_within_their_prompt(models, tmp_path):
    rng = random.Random(2)
    rows = [{"prompt": f"stone {i % 4}", "response": text(rng, 3 + i % 3)} for i in range(20)]
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "p", "response": ""}\n')
    code, out, output = run_command("compare", *models, path, "--json", "--device=cpu")
    assert code == 3
    assert "1 of 21 rows left out (empty_response 1)" in output
    found = json.loads(out)
    assert found["accuracy"] is None
    scores = [[by_transformers(folder, r["prompt"], r["response"]) for r in rows] for folder in models]
    same = [(i, j) for i in range(20) for j in range(i) if i % 4 == j % 4]
    differing = sum((scores[0][i] > scores[0][j]) != (scores[1][i] > scores[1][j]) for i, j in same)
    assert (found["n_pairs"], found["n_ranked_prompts"]) == (len(same), 4)
    assert found["disagreement"]["value"] == pytest.approx(differing / len(same))


def test_a_file_without_two_responses_to_a_prompt_says_that_it_has_no_pairs(models, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": word, "response": f"{word} river"}) + "\n" for word in WORDS))
    code, out, _ = run_command("compare", *models, path, "--device=cpu")
    assert code == 0
    assert "ordered differently    unknown: no prompt has two responses, so there are no pairs" in out
    assert " over all responses" in out


def test_without_a_score_no_order_is_claimed_to_be_equal(models, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "stone " * 300, "rejected": "river"}) + "\n")
    code, out, _ = run_command("compare", *models, path, "--device=cpu", "--max-input-tokens=64")
    assert code == 3
    assert "rank correlation       none (1 responses have the scores of both models)" in out
    assert "all the same score" not in out


def test_a_sample_that_a_model_gives_no_score_is_counted_and_left_out(models, tmp_path):
    path = tmp_path / "rows.jsonl"
    long = {"prompt": "p", "chosen": "stone " * 300, "rejected": "river"}
    path.write_text(json.dumps(long) + "\n" + json.dumps(long | {"chosen": "cloud"}) + "\n")
    code, out, output = run_command("compare", *models, path, "--json", "--device=cpu", "--max-input-tokens=64")
    assert code == 3
    assert "A gave 1 of 3 responses no score (input_too_long 1)" in output
    assert json.loads(out)["n_pairs"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{a}", "{b}", "none.jsonl"], 2, "none.jsonl is not a file"),
        (["/tmp", "/tmp", "{one}"], 2, "one.jsonl has no pair to compare: its 1 row gave one response."),
        (["{a}", "nosuch-model", "{rows}"], 1, "rewardserve compare: MODEL_B (nosuch-model) cannot be served.\n"),
        (["/tmp", "{b}", "{rows}"], 1, "rewardserve compare: MODEL_A (/tmp) cannot be served.\n"),
        (
            ["{a}", "{b}", "{rows}", "--device=cuda"],
            1,
            "MODEL_A ({a}) cannot be served.\nrewardserve compare: --device=cuda, but",
        ),
        (["{a}", "{b}"], 2, "the following arguments are required: FILE"),
        (["{a}", "{b}", "{rows}", "--model=c"], 2, "unrecognized arguments: --model=c"),
    ],
)
def test_what_cannot_be_compared_is_said_in_words(models, tmp_path, arguments, code, words):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "p", "response": "a"}\n')
    given = [each.format(a=models[0], b=models[1], rows=rows, one=one) for each in arguments]
    given += ["--device=cpu"] if "--device=cuda" not in given else []
    ended, out, output = run_command("compare", *given)
    assert (ended, out, "Traceback" in output) == (code, "", False)
    assert words.format(a=models[0]) in output
    assert output.startswith("rewardserve compare: ")
