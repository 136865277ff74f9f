"""Packed rows: no padding, common prefixes once, and the losses and gradients of padded rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModel

from rewardserve.model.network import RewardNetwork, attention_for
from rewardserve.model.padding import left_pad
from rewardserve.training.batches import packed_attention, scoring
from rewardserve.training.batches.packed_attention import may_share_prefixes, packing_objection, packs
from rewardserve.training.batches.packed_rows import pack
from rewardserve.training.batches.pair_batches import Collator, packed_rows, token_rows
from rewardserve.training.loop.methods import adapt, disable_dropout
from rewardserve.training.loop.trainer import RewardTrainer
from rewardserve.training.settings.model_config import MethodConfig
from rewardserve.training.workflow import fitting
from tests.support.tiny import ARCHITECTURES, randomize, tiny_config
from tests.unit.training.batches.test_batches import outputs_of, table_of
from tests.unit.training.loop.test_trainer import COMPARISONS, config

VOCAB, PAD = 320, 4
PREFIX = tuple(range(40, 70))
ROWS = [
    (*PREFIX, 7, 8, 9),  # three of one prompt, of which two go on alike
    (*PREFIX, *range(100, 130), 5, 6),
    (*PREFIX, *range(100, 130), 11, 12, 13, 14),
    PREFIX,  # ends where others go on
    (21, 22, 23),
    tuple(range(200, 245)),
]
PAIRS = [(0, 1), (2, 1), (3, 0), (4, 5), (1, 5), (2, 4), (3, 5)]


def network_of(architecture, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    settings = tiny_config(architecture, VOCAB, **overrides)
    backbone = AutoModel.from_config(settings, attn_implementation=attention_for(settings))
    randomize(backbone)
    network = RewardNetwork.create(backbone)
    network.backbone.to(dtype)
    return network.train()


def loss_of(network, inputs):
    """Bradley-Terry loss over a fixed head, in the dtype of the backbone: the head of the network is float32."""
    hidden_BD = network(inputs["input_ids"], inputs.get("attention_mask"), inputs.get("packed")).last_hidden_BD
    head_D = torch.linspace(-1, 1, hidden_BD.shape[1], dtype=hidden_BD.dtype)
    scores_B = hidden_BD @ head_D
    chosen, rejected = (scores_B[[pair[side] for pair in PAIRS]] for side in (0, 1))
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def loss_and_gradients(network, inputs):
    network.zero_grad()
    with packs(network):
        loss = loss_of(network, inputs)
        loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def padded(network):
    ids_BT, mask_BT = left_pad(ROWS, PAD)
    network.zero_grad()
    loss = loss_of(network, {"input_ids": ids_BT, "attention_mask": mask_BT})
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def packed(shares_prefixes=True):
    ids_1N, rows = pack(ROWS, shares_prefixes=shares_prefixes)
    return {"input_ids": ids_1N, "packed": rows}


FLOAT64, FLOAT32 = 1e-13, 1e-6
"""Rounding of losses and gradients, relative to the largest gradient. Root mean square norms of transformers round to float32."""


def assert_same(network, inputs, rounding=FLOAT32):
    expected_loss, expected = padded(network)
    loss, gradients = loss_and_gradients(network, inputs)
    assert loss == pytest.approx(expected_loss, rel=rounding)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < rounding * largest, name


def test_every_token_lies_in_the_row_once_with_its_position_and_no_padding():
    ids_1N, rows = pack(ROWS, shares_prefixes=True)
    n_distinct = 30 + 3 + 30 + 2 + 4 + 3 + 45
    assert ids_1N.shape == rows.position_ids_1N.shape == (1, n_distinct)
    assert [int(ids_1N[0, at]) for at in rows.last_B] == [row[-1] for row in ROWS]
    assert [int(rows.position_ids_1N[0, at]) for at in rows.last_B] == [len(row) - 1 for row in ROWS]
    assert pack(ROWS, shares_prefixes=False)[0].shape == (1, sum(map(len, ROWS)))
    assert pack(ROWS, shares_prefixes=False)[1].keys_K is None


@pytest.mark.parametrize("shares_prefixes", [True, False])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in ("mixtral", "qwen3_moe", "gpt2")])
def test_loss_and_gradients_are_those_of_padded_rows(architecture, shares_prefixes):
    """In float64, so that only rounding is left: sliding windows of 8, capped scores and grouped heads too."""
    # Gemma's padding, which attends to nothing, is NaN in float64.
    dtype = torch.float32 if architecture.startswith("gemma") else torch.float64
    rounding = FLOAT64 if architecture == "gpt_neox" else 10 * FLOAT32 if dtype == torch.float32 else FLOAT32
    assert_same(network_of(architecture, dtype), packed(shares_prefixes), rounding)


def test_learned_positions_and_their_gradients_are_those_of_padded_rows():
    """Without dropout, whose removal leaves the layers with a copy of the configuration."""
    network = network_of("gpt2", torch.float64)
    disable_dropout(network.backbone)
    assert may_share_prefixes(network)
    assert_same(network, packed(), FLOAT64)


def test_a_mixture_of_experts_balances_the_tokens_of_every_row():
    network = network_of("mixtral")
    assert not may_share_prefixes(network)
    ids_BT, mask_BT = left_pad(ROWS, PAD)
    with packs(network):
        inputs = packed(shares_prefixes=False)
        aux_loss = network(inputs["input_ids"], None, inputs["packed"]).aux_loss
    assert aux_loss.item() == pytest.approx(network(ids_BT, mask_BT).aux_loss.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_checkpointed_layers_run_again_with_the_attention_of_the_row():
    network = network_of("llama", torch.float64)
    network.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(network, packed())


@pytest.mark.filterwarnings("ignore")
def test_adapters_learn_from_a_packed_row_as_from_padded_ones():
    network = network_of("llama")
    adapt(network, MethodConfig(name="lora", rank=2))
    network.backbone.double()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert_same(network, packed())


def test_prefixes_are_not_shared_where_dropout_gives_each_row_noise_of_its_own():
    assert may_share_prefixes(network_of("llama"))
    assert not may_share_prefixes(network_of("llama", attention_dropout=0.1))
    assert not may_share_prefixes(network_of("gpt2"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_check_accepts_what_packs_and_leaves_the_network_as_it_was(architecture):
    network = network_of(architecture)
    before = network.config._attn_implementation
    assert packing_objection(network, pad_id=PAD) is None
    assert (network.config._attn_implementation, network.training) == (before, True)
    assert all(p.grad is None for p in network.parameters())


def test_the_check_names_why_an_architecture_is_padded(monkeypatch):
    bloom = network_of_bloom()
    assert "differ" in packing_objection(bloom, pad_id=3) or "attention" in packing_objection(bloom, pad_id=3)
    network = network_of("mistral")
    monkeypatch.setattr(
        "rewardserve.training.batches.packed_rows.PackedRows.mask",
        lambda self, q, k, w: torch.ones(q, k, dtype=torch.bool),
    )
    assert "differ" in packing_objection(network, pad_id=PAD)


def network_of_bloom():
    """BLOOM computes its attention without transformers' interface."""
    from transformers import BloomConfig

    torch.manual_seed(0)
    return RewardNetwork.create(
        AutoModel.from_config(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_of_training_moves_the_weights_as_padded_rows_do(accumulate, tmp_path):
    table = table_of(COMPARISONS)
    moved = []
    for name, rows in (("padded", token_rows(table, PAD)), ("packed", packed_rows(table, shares_prefixes=True))):
        network = network_of("llama")
        recipe = config("optim.max_steps=2", f"optim.batch_pairs={-(-7 // accumulate)}", f"optim.accumulate={accumulate}",
                        "optim.optimizer=sgd", "optim.lr=0.1")  # fmt: skip
        trainer = RewardTrainer(network, table, Collator(table, outputs_of(table), rows), recipe, evaluate_held_out=None,
                                steps=tmp_path / name)  # fmt: skip
        trainer.args.save_strategy = "no"
        trainer.train()
        moved.append({n: p.detach().clone() for n, p in network.named_parameters()})
        assert network.config._attn_implementation == "sdpa"
    for name, weight in moved[0].items():
        assert torch.allclose(moved[1][name], weight, atol=2e-6), name


PACKED = {
    "gpt2": ARCHITECTURES["gpt2"],
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "gemma": ARCHITECTURES["llama"],
    "mistral": ARCHITECTURES["mistral"],
    "qwen3_5_text": ARCHITECTURES["llama"] | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
WAYS = {
    "full": {},
    "lora": {"method.name": "lora", "method.rank": 2},
    "everything": {
        "method.name": "lora",
        "method.rank": 2,
        "optim.gradient_checkpointing": "true",
        "optim.ema": 0.9,
        "optim.precision": "bf16",
        "optim.accumulate": 2,
    },
}
"""Losses in bfloat16 differ by its rounding: packed and padded ones are as far from those of float32 (0.01 of their norm)."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", PACKED)
def test_losses_of_packed_training_are_those_of_padded_training(architecture, way, tmp_path, capsys):
    table, recipe = table_of(COMPARISONS), config(*(f"{name}={value}" for name, value in WAYS[way].items()),
        "optim.max_steps=3", "optim.batch_pairs=3", "optim.lr=0.003", "output.log_steps=1")  # fmt: skip
    losses = []
    for is_padded in (False, True):
        torch.manual_seed(0)
        settings = AutoConfig.for_model(
            architecture, **PACKED[architecture], vocab_size=VOCAB, bos_token_id=3, pad_token_id=4
        )
        network = RewardNetwork.create(AutoModel.from_config(settings, attn_implementation=attention_for(settings)))
        randomize(network.backbone)
        disable_dropout(network.backbone)
        start = SimpleNamespace(network=network.train(), pad_id=PAD)
        fitting.prepare_network(recipe, start)
        rows = fitting.token_or_packed_rows(recipe, start, table)
        if architecture == "qwen3_5_text":
            assert "attention_mask" in rows([0, 1])
            assert "Qwen3_5TextModel cannot be packed (it has layers of linear_attention)" in capsys.readouterr().err
            return
        assert "packed" in rows([0, 1])
        rows = token_rows(table, PAD) if is_padded else rows
        trainer = RewardTrainer(network, table, Collator(table, outputs_of(table), rows), recipe, evaluate_held_out=None,
                                steps=tmp_path / str(is_padded))  # fmt: skip
        trainer.args.save_strategy = "no"
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=0.02 if "optim.precision" in WAYS[way] else 1e-4)


def test_the_check_for_half_precision_finds_an_error_that_rounding_would_hide(monkeypatch, capsys):
    """Another scale of the attention, which moves the scores by less than bfloat16 rounds."""
    real = packed_attention._by_segment
    monkeypatch.setattr(
        packed_attention,
        "_by_segment",
        lambda q, k, v, packed, scale, *more: real(q, k, v, packed, 1.01 * scale, *more),
    )
    start = SimpleNamespace(network=network_of("llama"), pad_id=PAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packing_objection(start.network, pad_id=PAD) is None
    assert "attention_mask" in fitting.token_or_packed_rows(
        config("optim.precision=bf16"), start, table_of(COMPARISONS)
    )([0, 1])
    assert "cannot be packed (its scores differ by" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_features_and_scores_are_those_of_padded_rows_in_fewer_tokens(architecture, monkeypatch):
    network, n_tokens = network_of(architecture), []
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda ids, *rest: n_tokens.append(ids.numel()) or forward(ids, *rest))
    found = scoring.read(network, [*ROWS, ROWS[0]], pad_id=PAD, batch_tokens=150, label="rows")
    monkeypatch.setattr(scoring, "_can_pack", lambda *_: False)
    n_checked = len(n_tokens)
    expected = scoring.read(network, [*ROWS, ROWS[0]], pad_id=PAD, batch_tokens=150, label="rows")
    assert sum(n_tokens[2:n_checked]) < sum(n_tokens[n_checked:]) / 2
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-5)
    assert network.training


def test_rows_whose_positions_depend_on_their_length_are_not_packed_for_scores():
    """With dynamic scaling a row has other angles beside a longer one."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    network = network_of("llama", rope_parameters=rope, max_position_embeddings=32)
    assert not scoring._can_pack(network, PAD)
    assert scoring._can_pack(network_of("llama"), PAD)


@pytest.mark.parametrize(
    ("network", "inputs", "n_lines"),
    [(network_of_bloom, "attention_mask", 1), (lambda: network_of("llama"), "packed", 0)],
)
def test_training_packs_where_it_can_and_says_in_one_line_where_it_pads(network, inputs, n_lines, capsys):
    table = table_of(COMPARISONS)
    rows = fitting.token_or_packed_rows(config(), SimpleNamespace(network=network(), pad_id=PAD), table)
    assert inputs in rows([0, 1])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == n_lines
    assert all("training pads its batches" in line and "BloomModel cannot be packed" in line for line in said)
