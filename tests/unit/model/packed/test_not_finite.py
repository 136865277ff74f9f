"""A row that overflows leaves nothing behind: rows beside it and after it score as alone, even with a common prefix."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch

from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.packed.prefix_cache import CachedPrefix
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.unit.model.test_network import VOCAB, alone, make

OVERFLOWS = 300
LARGE = {torch.float32: 1e25, torch.bfloat16: 1e25, torch.float16: 3e3}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 6e-3}
DTYPES = sorted(LARGE, key=str)
PROMPT = [5 + i for i in range(60)]
ROUNDS = 12


def overflowing(dtype: torch.dtype) -> RewardNetwork:
    """All weights are finite, but the first MLP overflows for one token, and every later layer with it."""
    network = make("llama")
    embeddings = network.backbone.embed_tokens.weight.data
    first = network.backbone.layers[0]
    # Only this token has something in the first dimension of the hidden state, and only that is multiplied by much.
    embeddings[:, 0] = 0.0
    embeddings[OVERFLOWS, 0] = 20.0
    first.self_attn.o_proj.weight.data[0] = 0.0
    for layer in (first.mlp.gate_proj, first.mlp.up_proj):
        layer.weight.data[:, 0] = LARGE[dtype]
    network.backbone.to(dtype)
    assert all(p.isfinite().all() for p in network.parameters())
    return network


def score(network: RewardNetwork, row: list[int]) -> float:
    return float(alone(network, row))


def batches(where: str) -> list[list[list[int]]]:
    """Good and bad rows of a few prompts in turn. In each prompt's family the same rows come again."""
    draw = random.Random(7)

    def response(bad: bool) -> list[int]:
        ids = [draw.randrange(70, 290) for _ in range(draw.randrange(2, 12))]
        return [*ids, OVERFLOWS, *ids] if bad else ids

    prompts = [PROMPT, [*PROMPT[:40], *range(200, 240)]]
    bad_prompt = [*PROMPT[:50], OVERFLOWS, *PROMPT[50:]]
    found = []
    for i in range(ROUNDS):
        good = [[*prompts[i % 2], *response(False)] for _ in range(3)]
        bad = {
            "response": [[*prompts[i % 2], *response(True)]],
            "prompt": [[*bad_prompt, *response(False)] for _ in range(3)],
            "first token": [[OVERFLOWS, *prompts[0]], [OVERFLOWS, *prompts[0], 7]],
            "last token": [[*prompts[i % 2], OVERFLOWS], [*prompts[i % 2], 9, OVERFLOWS]],
        }[where]
        found += [bad, good, [*bad, *good], [good[0]], [bad[0]], good]
    return found


@pytest.mark.sweep(6)
@pytest.mark.parametrize("where", ["response", "prompt", "first token", "last token"])
@pytest.mark.parametrize("engine", ["auto", "padded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_good_rows_score_as_alone_among_and_after_rows_that_overflow(dtype, engine: str, where: str):
    network = overflowing(dtype)
    reference = copy.deepcopy(network)
    scorer, _ = choose_engine(
        network, ModelSpec(engine=engine, prefix_cache_bytes=2**26), pad_id=OVERFLOWS, max_tokens=256
    )
    assert isinstance(scorer, PackedScorer) == (engine == "auto")
    for batch in batches(where):
        done = scorer.score(TokenBatch(tuple(map(tuple, batch)))).rows
        for row, heads in zip(batch, done, strict=True):
            if OVERFLOWS in row:
                assert not math.isfinite(heads["score"])
            else:
                assert heads["score"] == pytest.approx(score(reference, row), abs=TOLERANCE[dtype])
    if isinstance(scorer, PackedScorer):
        assert_only_finite_keys(scorer)


def assert_only_finite_keys(scorer: PackedScorer) -> None:
    kept: list[CachedPrefix] = list(scorer.prefix_cache._kept.values())
    assert kept, "the prompts of good rows are kept"
    assert all(x.isfinite().all() for cached_prefix in kept for layer in cached_prefix.layers for x in layer)
    assert not any(OVERFLOWS.to_bytes(4, "little") in cached_prefix.key for cached_prefix in kept)


def test_a_kept_beginning_that_makes_a_row_not_finite_is_computed_anew_and_forgotten():
    network = make("llama")
    reference = copy.deepcopy(network)
    scorer, _ = choose_engine(network, ModelSpec(prefix_cache_bytes=2**26), pad_id=4, max_tokens=256)
    rows = [(*PROMPT, 100 + i) for i in range(4)]
    scorer.score(TokenBatch(tuple(rows[:2])))
    with torch.inference_mode():
        for cached_prefix in scorer.prefix_cache._kept.values():
            for keys, _ in cached_prefix.layers:
                keys.fill_(math.nan)
    for row in (rows[2], rows[3]):
        done = scorer.score(TokenBatch((row,)))
        assert done.rows[0]["score"] == pytest.approx(score(reference, list(row)), abs=2e-5)


def test_the_check_at_load_packs_a_model_that_overflows_on_some_token():
    network = overflowing(torch.float32)
    scorer, notes = choose_engine(network, ModelSpec(), pad_id=4, max_tokens=256)
    assert (scorer.name, notes) == ("packed", ())
    assert VOCAB > OVERFLOWS
