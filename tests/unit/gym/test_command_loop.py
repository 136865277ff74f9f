"""The loop of commands on real checkpoints: its network is the gym's, and each part is a command. Tiny sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from gym import vocabulary
from gym.checkpoint import write_network
from gym.command_loop import Loop, ServedModel, pair_rows
from gym.labeller import LabelledPairs
from gym.proxy import VECTOR, WIDTH, backbone
from gym.responses import Responses
from gym.vocabulary import EOS
from rewardserve.model.backends import ModelSpec, load
from tests.support.command import run_command


def test_the_checkpoint_has_the_features_of_the_network(base, tmp_path):
    network = backbone([5, 1])
    write_network(network, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval()
    responses = base.sample(np.random.default_rng(1), np.arange(120))
    hidden = []
    for number, text in enumerate(responses.texts()):
        turns = [{"role": "user", "content": vocabulary.prompt(number)}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            hidden.append(model(**ids).last_hidden_state[0, -1].numpy())
    features_BD = np.array(hidden)[:, 2 * VECTOR : 2 * VECTOR + WIDTH]
    expected_BD = network.hidden_BD(responses)
    alike = [np.corrcoef(features_BD[:, i], expected_BD[:, i])[0, 1] for i in range(WIDTH)]
    assert np.mean(alike) > 0.7
    other_BD = backbone([6, 1]).hidden_BD(responses)
    assert abs(np.mean([np.corrcoef(features_BD[:, i], other_BD[:, i])[0, 1] for i in range(WIDTH)])) < 0.3


def test_rows_that_training_refuses_are_left_out(base):
    sampled = base.sample(np.random.default_rng(3), np.zeros(3, dtype=np.int64))
    tokens_BT = sampled.tokens_BT.copy()
    tokens_BT[1] = EOS
    left, right = Responses(tokens_BT, sampled.prompt_ids_B), sampled.take(np.array([1, 0, 2]))
    won_N = np.ones(3, dtype=np.bool_)
    (row,) = pair_rows(LabelledPairs(left, right, won_N, won_N))
    assert (row["chosen"], row["rejected"]) == (left.texts()[0], right.texts()[0])
    ends = [("stop" if side.ended_B[0] else "length") for side in (left, right)]
    assert [row["chosen_finish_reason"], row["rejected_finish_reason"]] == ends


def test_every_round_is_made_of_the_commands(base, tmp_path, capsys):
    loop = Loop(seed=5, folder=tmp_path, rounds=1, climb=2, per_round=20, steps=2, n_pairs=300)
    first, last = loop.run()
    assert len(first.gold_T) == len(last.gold_T) == 2
    report = json.loads((tmp_path / "model-1" / "out" / "checkpoint" / "training_report.json").read_text())
    assert report["counterexamples"], "figures of the held-out ones"
    assert "20 rows, 20 pairs with a preference" in capsys.readouterr().out
    assert (tmp_path / "round-0" / "queue.scores.jsonl").exists()
    checkpoint = tmp_path / "model-1" / "out" / "checkpoint"
    responses = base.sample(np.random.default_rng(2), np.arange(20))
    loaded = load("torch", ModelSpec(model=str(checkpoint), device="cpu"))
    scores_B = ServedModel(loaded).scores_B(responses)
    loaded.scorer.close()
    rows = zip(responses.texts(), responses.ended_B.tolist(), strict=True)
    samples = [
        {
            "prompt": vocabulary.prompt(i),
            "response": text,
            "finish_reason": "stop" if ended else "length",
            "score_empty": True,
        }
        for i, (text, ended) in enumerate(rows)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    code, _, error = run_command(
        "score", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", checkpoint, "--device=cpu"
    )
    assert code == 0, error
    served = [json.loads(line)["raw"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scores_B == pytest.approx(served, abs=1e-4)
