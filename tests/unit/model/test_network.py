"""Every architecture, every row of a ragged padded batch: equal to a plain float32 forward of that row alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from rewardserve.model.network import RewardNetwork, attention_for
from rewardserve.model.padding import last_index, left_pad, position_ids
from tests.support.tiny import ARCHITECTURES, randomize, tiny_config

VOCAB, PAD, EOS = 320, 4, 2
TOLERANCE = 1e-4


def ragged_rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = [1, 2, 3, 9, 17, 40, 23, 40]
    rows = [torch.randint(5, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    rows[4][5] = rows[5][0] = rows[5][20] = EOS  # the end token inside the text, too
    rows[6][7] = rows[6][8] = PAD  # and the pad token
    return [[*row, EOS] for row in rows]


def make(architecture: str, **overrides) -> RewardNetwork:
    config = tiny_config(architecture, VOCAB, **overrides)
    backbone = AutoModel.from_config(config, attn_implementation=attention_for(config)).eval()
    randomize(backbone)
    torch.manual_seed(1)
    return RewardNetwork.create(backbone).eval()


@torch.no_grad()
def alone(network: RewardNetwork, ids: list[int]) -> torch.Tensor:
    """The reference, written out: no mask, no padding, no position ids; the head at the last token in float32."""
    hidden = network.backbone(input_ids=torch.tensor([ids])).last_hidden_state
    return hidden[0, -1].float() @ network.heads.weight.float().T


def right_pad(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["own_pad", "pad_is_eos"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_scores_the_same_in_a_ragged_batch_as_alone(architecture: str, side: str, pad: int):
    network = make(architecture)
    rows = ragged_rows()
    ids, mask = left_pad(rows, pad) if side == "left" else right_pad(rows, pad)
    with torch.no_grad():
        scores = network(ids, mask).scores_BH
    expected = torch.stack([alone(network, row) for row in rows])
    assert expected.std() > 0.05, "the reference tells rows apart, or the comparison means nothing"
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_score_depends_on_the_first_token(architecture: str):
    # A model with a sliding window of 8 still sees it through its layers only if the row is short.
    network = make(architecture)
    a, b = [5, 9, 11, EOS], [6, 9, 11, EOS]
    assert abs(float(alone(network, a) - alone(network, b))) > 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_a_model_that_caps_attention_logits_leaves_the_fused_kernels(architecture: str):
    # transformers 5.0 would run Gemma-2 in a kernel that leaves the cap out and say nothing.
    wanted = "eager" if architecture == "gemma2" else None
    assert attention_for(tiny_config(architecture, VOCAB)) == wanted


def test_position_ids_follow_the_formula():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert position_ids(mask).tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 1, 1, 1]]


def test_under_left_padding_the_last_column_is_the_last_real_token():
    _, mask = left_pad(ragged_rows(), PAD)
    assert last_index(mask).tolist() == [mask.shape[1] - 1] * len(mask)


def test_under_right_padding_the_gather_finds_the_last_real_token():
    rows = ragged_rows()
    _, mask = right_pad(rows, PAD)
    assert last_index(mask).tolist() == [len(row) - 1 for row in rows]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_in_training_gives_a_load_balancing_loss(architecture: str):
    network = make(architecture).train()
    ids, mask = left_pad(ragged_rows(), PAD)
    aux = network(ids, mask).aux_loss
    # Switch Transformer, eq. 4: experts * sum(share * probability) is top_k when the load is even, more when not.
    assert aux is not None
    assert aux.item() >= 0.02 * 2 * 0.99
    assert network.eval()(ids, mask).aux_loss is None


def test_a_dense_model_has_no_auxiliary_loss():
    network = make("llama").train()
    assert network(*left_pad(ragged_rows(), PAD)).aux_loss is None


def test_the_head_stays_float32_in_a_bfloat16_network_and_under_autocast():
    network = make("llama")
    network.backbone.to(torch.bfloat16)
    ids, mask = left_pad(ragged_rows(), PAD)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(ids, mask)
    assert out.scores_BH.dtype == torch.float32
    expected = out.last_hidden_BD.float() @ network.heads.weight.T
    torch.testing.assert_close(out.scores_BH, expected, atol=1e-6, rtol=0)


def test_values_at_every_token_end_with_the_score():
    network = make("llama")
    ids, mask = left_pad(ragged_rows(), PAD)
    with torch.no_grad():
        torch.testing.assert_close(network.values(ids, mask)[:, -1], network(ids, mask).scores_BH)


def test_several_heads_make_one_raw_score():
    backbone = make("llama").backbone
    head = torch.randn(2, 32)
    network = RewardNetwork(backbone, head, ("a", "b"), (0.25, 2.0)).eval()
    ids, mask = left_pad(ragged_rows(), PAD)
    with torch.no_grad():
        out = network(ids, mask)
    expected = 0.25 * out.scores_BH[:, 0] + 2.0 * out.scores_BH[:, 1]
    torch.testing.assert_close(network.raw(out.scores_BH), expected)
    combined, bias = network.combined_head()
    torch.testing.assert_close((out.last_hidden_BD @ combined.T)[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert bias == 0.0


def test_heads_without_names_or_weights_are_refused():
    backbone = make("llama").backbone
    with pytest.raises(ValueError, match="different names"):
        RewardNetwork(backbone, torch.randn(2, 32), ("a", "a"), (1, 1))
    with pytest.raises(ValueError, match="weight each"):
        RewardNetwork(backbone, torch.randn(2, 32), ("a", "b"))


def test_the_combined_head_is_rounded_once_from_exact_arithmetic():
    """A contract names its bits, and two CPUs must not disagree about them."""
    from fractions import Fraction

    head, weights = torch.randn(3, 32), (0.31735807837282165, 0.1326609263508714, -1.7)
    network = RewardNetwork(make("llama").backbone, head, ("a", "b", "c"), weights)
    exact = [sum(Fraction(w) * Fraction(x) for w, x in zip(weights, column, strict=True)) for column in head.T.tolist()]
    assert network.combined_head()[0][0].tolist() == torch.tensor([float(x) for x in exact]).tolist()


def test_a_single_head_is_combined_to_itself():
    head = torch.tensor([[-0.0, 1e-42, 0.1]]).repeat(1, 11)[:, :32]
    network = RewardNetwork(make("llama").backbone, head, ("score",), (1.0,))
    assert network.combined_head()[0].numpy().tobytes() == head.numpy().tobytes()
