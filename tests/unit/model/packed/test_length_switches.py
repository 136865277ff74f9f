"""Models whose rotary angles depend on the length of the whole row: every row scores as alone, after any earlier rows."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import AutoConfig, AutoModel

from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.support.tiny import randomize, tiny_config
from tests.unit.model.test_network import VOCAB, make

TOLERANCE = 2e-5
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1, 1, 1, 1],
    "long_factor": [1, 2, 4, 8],
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "factor": 4.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
SWITCHES = {
    "phi3 longrope": ("phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": 128,
                               "rope_parameters": LONGROPE}),
    "phimoe longrope": ("phimoe", {"max_position_embeddings": 512, "original_max_position_embeddings": 128,
                                   "num_local_experts": 4, "rope_parameters": {**LONGROPE, "short_mscale": 1.1,
                                                                              "long_mscale": 1.3}}),
    "llama dynamic": ("llama", {"max_position_embeddings": 128, "rope_parameters": DYNAMIC}),
    "gemma3 dynamic global": (
        "gemma3_text",
        {"max_position_embeddings": 128, "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {"full_attention": DYNAMIC,
                             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    ),
}  # fmt: skip
PHIMOE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "pad_token_id": 4}  # fmt: skip


def fresh(name: str) -> RewardNetwork:
    """The network as it is right after it is loaded."""
    architecture, shape = SWITCHES[name]
    if architecture != "phimoe":
        return make(architecture, **copy.deepcopy(shape))
    config = AutoConfig.for_model("phimoe", vocab_size=VOCAB, **PHIMOE, **copy.deepcopy(shape))
    backbone = AutoModel.from_config(config).eval()
    randomize(backbone)
    torch.manual_seed(1)
    return RewardNetwork.create(backbone).eval()


@torch.no_grad()
def plain(name: str, row: tuple[int, ...]) -> float:
    """A forward of this row alone through a model that has never seen another one."""
    network = fresh(name)
    hidden_1TD = network.backbone(input_ids=torch.tensor([row])).last_hidden_state
    return float(hidden_1TD[0, -1].float() @ network.heads.weight[0].float())


def family(lengths: list[int]) -> list[tuple[int, ...]]:
    """Responses to one prompt of 100 tokens, by the length of the row."""
    draw = random.Random(5)
    prompt = [draw.randrange(5, VOCAB) for _ in range(100)]
    return [tuple(prompt + [draw.randrange(5, VOCAB) for _ in range(n - 100)]) for n in lengths]


ORDERS = {
    "short then long": [[104, 108, 117, 126], [505], [300, 301], [505]],
    "long then short": [[505, 400], [450], [104, 108], [126], [104]],
    "together": [[104, 505, 128, 129, 400, 127], [104, 505, 128, 129, 400, 127]],
    "one by one": [[104], [505], [104], [200], [400], [128], [129], [200]],
}


@pytest.mark.sweep(8)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("engine", ["auto", "padded"])
@pytest.mark.parametrize("name", SWITCHES)
def test_no_row_scores_otherwise_because_of_rows_of_another_length(name: str, engine: str, order: str):
    lengths = sorted({n for batch in ORDERS[order] for n in batch})
    rows = dict(zip(lengths, family(lengths), strict=True))
    expected = {n: plain(name, row) for n, row in rows.items()}
    spec = ModelSpec(engine=engine, prefix_cache_bytes=2**28)
    scorer, _ = choose_engine(fresh(name), spec, pad_id=4, max_tokens=512)
    for batch in ORDERS[order]:
        done = scorer.score(TokenBatch(tuple(rows[n] for n in batch))).rows
        assert [heads["score"] for heads in done] == pytest.approx([expected[n] for n in batch], abs=TOLERANCE)


def test_rows_on_one_side_of_a_longrope_switch_still_share_their_prompt():
    scorer, _ = choose_engine(fresh("phi3 longrope"), ModelSpec(prefix_cache_bytes=2**28), pad_id=4, max_tokens=512)
    rows = family([104, 108, 300, 400, 410])
    for batch in (rows[:2], rows[2:4]):
        scorer.score(TokenBatch(tuple(batch)))
    assert scorer.score(TokenBatch((rows[0],))).tokens_computed == 4
    assert scorer.score(TokenBatch((rows[4],))).tokens_computed == 310


def test_the_plain_forward_of_a_network_does_not_depend_on_earlier_rows():
    network = fresh("llama dynamic")
    rows = family([505, 300, 128])
    with torch.no_grad():
        scores = [float(network(torch.tensor([row])).scores_BH) for row in rows]
    assert scores == pytest.approx([plain("llama dynamic", row) for row in rows], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "length_classes"),
    [
        ({}, [0, 0, 0, 0]),
        ({"rope_parameters": {**DYNAMIC, "rope_type": "yarn"}}, [0, 0, 0, 0]),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 512}, [0, 0, 1, 1]),
        ({"rope_parameters": DYNAMIC, "max_position_embeddings": 128}, [0, 0, -129, -200]),
        (
            {"rope_parameters": {**DYNAMIC, "rope_type": "of_tomorrow"}, "max_position_embeddings": 128},
            [0, 0, -129, -200],
        ),
    ],
)
def test_which_lengths_may_share_what_depends_on_the_length(shape, length_classes):
    config = tiny_config("llama", VOCAB)
    for name, value in shape.items():
        setattr(config, name, value)
    found = LengthClasses.of_config(config)
    assert [found.of(n) for n in (1, 128, 129, 200)] == length_classes
