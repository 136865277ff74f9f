"""A sample of `make test-architectures`: the engine that is chosen at load gives the scores of rows alone."""

from __future__ import annotations

import copy

import pytest
import torch

from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.architectures.build import VARIANTS, cases, tiny
from tests.architectures.sweep import TOLERANCE, batches, outcome
from tests.support.tiny import randomize

SAMPLE = {
    # name: (engine, whether padding is right)
    "bloom": ("padded", "right"),
    "falcon, ALiBi": ("padded", "right"),
    "gemma3_text, dynamic NTK in full layers": ("packed", "right"),
    "llama4_text": ("padded", "right"),
    "jamba": ("padded", "right"),
    "rwkv": ("one_by_one", "wrong"),
    "opt, word_embed_proj_dim": ("packed", "right"),
    "smollm3": ("packed", "right"),
    "longcat_flash": ("packed", "right"),
}
BY_NAME = {case.name: case for case in cases()}


@pytest.mark.parametrize("name", SAMPLE)
def test_the_engine_that_is_chosen_scores_as_a_plain_forward_of_each_row_alone(name: str):
    found = outcome(BY_NAME[name])
    assert found.difference <= TOLERANCE
    assert (found.engine, found.padding) == SAMPLE[name]


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_the_gated_delta_rule_are_as_near_to_float64_padded_as_alone(seed: int):
    """Its float32 is coarser than what other architectures are held to; padding moves the borders of its chunks."""
    backbone = tiny(BY_NAME["qwen3_5_text"])
    randomize(backbone, seed)
    torch.manual_seed(1)
    network = RewardNetwork.create(backbone).eval()
    head_D = network.heads.weight[0].detach().double()
    rows = tuple({row for batch in batches() for row in batch})
    exact_model = copy.deepcopy(backbone).double()
    with torch.no_grad():
        exact = [
            float(exact_model(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1] @ head_D) for row in rows
        ]

    def off(one_by_one: bool) -> float:
        scorer = PaddedScorer(network, pad_id=4, max_tokens=256, one_by_one=one_by_one)
        scores = [heads["score"] for heads in scorer.score(TokenBatch(rows)).rows]
        return max(abs(a - b) for a, b in zip(scores, exact, strict=True))

    assert off(one_by_one=False) <= 2 * off(one_by_one=True) + 1e-6


def test_the_sweep_knows_more_than_a_hundred_architectures_and_the_variants():
    assert len(BY_NAME) > 100
    assert {case.name for case in VARIANTS} <= set(BY_NAME)
