"""Losses: their formulas, their gradients, their ends of the scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from rewardserve.training.objective.losses import LOSSES, centring, logexp, logsigmoid, pair_loss
from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.validation import ConfigError

SCORES = st.floats(-1e4, 1e4)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def one(loss, chosen, rejected, margin=0.0, dtype=torch.float64):
    c, r, m = (torch.tensor([x], dtype=dtype) for x in (chosen, rejected, margin))
    return loss(c, r, m)


@given(chosen=st.floats(-300, 300), rejected=st.floats(-300, 300), margin=st.floats(0, 5))
def test_logsigmoid_is_the_formula_written_out(chosen, rejected, margin):
    d = chosen - rejected - margin
    assert one(logsigmoid, chosen, rejected, margin).item() == pytest.approx(
        -math.log(1 / (1 + math.exp(-d))), rel=1e-9, abs=1e-12
    )


@given(chosen=st.floats(-300, 300), rejected=st.floats(-300, 300))
def test_logexp_is_the_formula_written_out(chosen, rejected):
    expected = math.log(1 + math.exp(rejected - chosen))
    assert one(logexp, chosen, rejected).item() == pytest.approx(expected, rel=1e-7, abs=1e-8)


@given(chosen=SCORES, rejected=SCORES)
def test_without_a_margin_the_two_losses_are_one(chosen, rejected):
    a, b = one(logsigmoid, chosen, rejected), one(logexp, chosen, rejected)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("difference", [-1e4, -88.0, -11.0, 0.0, 11.0, 88.0, 1e4])
def test_value_and_gradient_are_finite_at_both_ends_in_every_dtype(name, dtype, difference):
    chosen = torch.tensor([difference / 2], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-difference / 2], dtype=dtype, requires_grad=True)
    loss = LOSSES[name](chosen, rejected, torch.zeros(1, dtype=dtype))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_give_a_float32_value_a_pair(dtype):
    scores = torch.zeros(7, dtype=dtype)
    for loss in LOSSES.values():
        value = loss(scores, scores, scores)
        assert value.dtype == torch.float32
        assert value.shape == (7,)


RECIPES = [
    LossConfig(),
    LossConfig("logexp"),
    LossConfig(label_smoothing=0.1),
    LossConfig(centring=0.01),
    LossConfig("logexp", label_smoothing=0.2, centring=0.5),
]


@pytest.mark.parametrize("config", RECIPES, ids=str)
def test_gradients_agree_with_finite_differences(config):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    margin = torch.rand(6, dtype=torch.float64, generator=generator)
    assert gradcheck(lambda c, r: pair_loss(config)(c, r, margin), (chosen * 3, rejected * 3))


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20), share=st.floats(0.01, 0.49))
def test_label_smoothing_is_cdpo(chosen, rejected, share):
    d = chosen - rejected
    expected = -(1 - share) * math.log(1 / (1 + math.exp(-d))) - share * math.log(1 / (1 + math.exp(d)))
    assert one(pair_loss(LossConfig(label_smoothing=share)), chosen, rejected).item() == pytest.approx(
        expected, rel=1e-9
    )


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20))
def test_centring_is_the_square_of_the_sum_on_top(chosen, rejected):
    plain = one(pair_loss(LossConfig()), chosen, rejected)
    centred = one(pair_loss(LossConfig(centring=0.01)), chosen, rejected)
    assert (centred - plain).item() == pytest.approx(0.01 * (chosen + rejected) ** 2, abs=1e-9)


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20), shift=st.floats(-20, 20))
def test_only_centring_sees_the_level(chosen, rejected, shift):
    loss = pair_loss(LossConfig(label_smoothing=0.1))
    here, there = one(loss, chosen, rejected), one(loss, chosen + shift, rejected + shift)
    assert torch.allclose(here, there, atol=1e-8)
    moved = centring(torch.tensor([chosen + shift]), torch.tensor([rejected + shift]))
    assert moved.item() == pytest.approx((chosen + rejected + 2 * shift) ** 2, rel=1e-3, abs=1e-2)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="logsigmoid, logexp"):
        pair_loss(LossConfig("hinge"))


@given(chosen=st.floats(-30, 30), rejected=st.floats(-30, 30), margin=st.floats(0.1, 5), share=st.floats(0.01, 0.49))
def test_smoothing_asks_a_swapped_label_for_no_margin(chosen, rejected, margin, share):
    d = chosen - rejected
    expected = (1 - share) * math.log1p(math.exp(margin - d)) + share * math.log1p(math.exp(d))
    loss = pair_loss(LossConfig(name="logsigmoid", label_smoothing=share))
    assert one(loss, chosen, rejected, margin).item() == pytest.approx(expected, rel=1e-9)


def test_without_centring_scores_whose_squares_overflow_have_a_finite_loss():
    assert one(pair_loss(LossConfig()), 3e25, 1e25, dtype=torch.float32).item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_is_of_float32_unless_scores_are_of_float64(dtype):
    assert one(logsigmoid, 1.0, 0.0, dtype=dtype).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
