"""Every architecture of the suite through every engine on a CUDA device that checks devices, dtypes and shapes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.ensemble import EnsembleScorer
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import DISTANCE, BatchScores, TokenBatch
from tests.cuda_dry.device import fake_cuda, make
from tests.support.tiny import ARCHITECTURES, WIDTH
from tests.unit.model.packed.test_parity import WHOLE_LAST_LAYER, rows_of_groups
from tests.unit.model.test_network import ragged_rows

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CASES = list(itertools.product(ARCHITECTURES, DTYPES))
WINDOWED = {"mistral", "gemma2", "gemma3_text"}
ROWS = TokenBatch(tuple(tuple(row) for row in [*rows_of_groups(), *ragged_rows()]))
MANY_BYTES = 2**30


def reference() -> HiddenReference:
    with torch.device("cuda"):
        return HiddenReference(torch.zeros(WIDTH), torch.zeros(5, WIDTH))


def packed(network: RewardNetwork, architecture: str, **options) -> PackedScorer:
    return PackedScorer(
        network,
        max_tokens=256,
        trim=architecture not in WHOLE_LAST_LAYER,
        prefix_cache_bytes=MANY_BYTES,
        **options,
    )


def is_complete(scores: BatchScores, names: set[str]) -> bool:
    return len(scores.rows) == len(ROWS) and all(
        set(row) == names and all(map(math.isfinite, row.values())) for row in scores.rows
    )


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_padded_batches_run_on_a_gpu(architecture, dtype):
    with fake_cuda(DTYPES[dtype]):
        scorer = PaddedScorer(make(architecture, DTYPES[dtype]), pad_id=4, max_tokens=256, hidden=reference())
        assert is_complete(scorer.score(ROWS), {"score", DISTANCE})


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_packed_batches_run_on_a_gpu_and_again_with_kept_prefixes(architecture, dtype):
    with fake_cuda(DTYPES[dtype]) as device:
        scorer = packed(make(architecture, DTYPES[dtype]), architecture, hidden=reference())
        first, second = scorer.score(ROWS), scorer.score(ROWS)
        assert is_complete(first, {"score", DISTANCE})
        assert is_complete(second, {"score", DISTANCE})
        assert second.tokens_computed < first.tokens_computed, "prefixes were kept"
        if architecture not in WINDOWED:  # theirs is written out beyond the window
            assert device.n_calls["varlen" if dtype != "float32" else "efficient"] > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_one_by_one_run_on_a_gpu(architecture):
    with fake_cuda():
        scorer = packed(make(architecture, torch.bfloat16), architecture, one_by_one=True)
        assert is_complete(scorer.score(ROWS), {"score"})


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_the_engine_that_is_chosen_at_load_on_a_gpu_scores(architecture, dtype):
    with fake_cuda(DTYPES[dtype]):
        network = make(architecture, DTYPES[dtype])
        scorer, _ = choose_engine(network, ModelSpec(device="cuda"), pad_id=4, max_tokens=256, hidden=reference())
        assert isinstance(scorer, PackedScorer), "nothing of the check at load failed"
        assert is_complete(scorer.score(ROWS), {"score", DISTANCE})


def test_an_ensemble_of_engines_runs_on_a_gpu():
    with fake_cuda():
        one = packed(make("llama", torch.bfloat16), "llama", hidden=reference())
        other = PaddedScorer(make("qwen3", torch.bfloat16), pad_id=4, max_tokens=256)
        scorer = EnsembleScorer([("one", one), ("other", other)])
        assert is_complete(scorer.score(ROWS), {"one/score", "other/score", DISTANCE})
