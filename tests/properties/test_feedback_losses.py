"""Losses of ties, rankings, ratings and labels against formulas written out, and what a batch of several kinds costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from rewardserve.training.dataset.feedback import Graded
from rewardserve.training.objective.feedback_loss import FeedbackLoss, fitted
from rewardserve.training.objective.losses import (
    RATING_LOSSES,
    davidson,
    good_or_bad,
    huber,
    logsigmoid,
    plackett_luce,
    squared,
)
from rewardserve.training.settings.loss_config import LossConfig

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SCORES = st.floats(-30, 30)


def tensor(*values, dtype=torch.float64, **kwargs):
    return torch.tensor(values, dtype=dtype, **kwargs)


# -- ties -------------------------------------------------------------------------------------------------


@given(chosen=SCORES, rejected=SCORES, nu=st.floats(1e-3, 1e3), margin=st.floats(0, 3))
def test_davidson_is_the_formula_written_out(chosen, rejected, nu, margin):
    """P(win) = p_i / (p_i + p_j + nu sqrt(p_i p_j)) and P(tie) = nu sqrt(p_i p_j) / (...), with strengths p = e^score."""
    p_i, p_j = math.exp(chosen - margin), math.exp(rejected)
    total = p_i + p_j + nu * math.sqrt(p_i * p_j)
    win = davidson(tensor(chosen), tensor(rejected), tensor(margin), torch.tensor([False]), nu)
    tie = davidson(tensor(chosen), tensor(rejected), tensor(margin), torch.tensor([True]), nu)
    assert win.item() == pytest.approx(-math.log(p_i / total), rel=1e-6, abs=1e-9)
    assert tie.item() == pytest.approx(-math.log(nu * math.sqrt(p_i * p_j) / total), rel=1e-6, abs=1e-9)


@given(chosen=SCORES, rejected=SCORES, nu=st.floats(1e-3, 1e3))
def test_win_loss_and_tie_are_all_there_is(chosen, rejected, nu):
    c, r, zero = tensor(chosen), tensor(rejected), tensor(0.0)
    no, yes = torch.tensor([False]), torch.tensor([True])
    total = sum(torch.exp(-davidson(*sides, nu)) for sides in ((c, r, zero, no), (r, c, zero, no), (c, r, zero, yes)))
    assert total.item() == pytest.approx(1.0)


def test_without_ties_davidson_is_bradley_terry():
    c, r = torch.randn(2, 50, dtype=torch.float64)
    none = torch.zeros(50, dtype=torch.bool)
    assert torch.allclose(davidson(c, r, c * 0, none, 1e-12), logsigmoid(c, r, c * 0), atol=1e-10)


def test_equal_scores_are_best_for_a_tie():
    scores = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    davidson(scores[0], scores[1], tensor(0.0), torch.tensor([True]), 0.7).backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))
    near = davidson(tensor(0.1), tensor(0.0), tensor(0.0), torch.tensor([True]), 0.7)
    assert near > davidson(tensor(0.0), tensor(0.0), tensor(0.0), torch.tensor([True]), 0.7)


# -- rankings ---------------------------------------------------------------------------------------------


def by_hand(scores, values):
    """Breslow's product: for each response, its strength over those of all that are not better."""
    loss = 0.0
    for s, v in zip(scores, values, strict=True):
        left = sum(math.exp(other) for other, w in zip(scores, values, strict=True) if w <= v)
        loss -= math.log(math.exp(s) / left)
    return loss


RANKED = st.lists(st.tuples(SCORES, st.integers(0, 4)), min_size=2, max_size=6)


@given(ranked=RANKED, padding=st.integers(0, 3))
def test_plackett_luce_is_the_product_written_out_whatever_the_padding(ranked, padding):
    scores, values = zip(*ranked, strict=True)
    padded = tensor(*scores, *[7.0] * padding), tensor(*map(float, values), *[-math.inf] * padding)
    found = plackett_luce(padded[0][None], padded[1][None])
    assert found.item() == pytest.approx(by_hand(scores, values), rel=1e-6, abs=1e-9)


def test_the_probabilities_of_all_orders_add_up_to_one():
    scores = torch.randn(1, 4, dtype=torch.float64)
    orders = [torch.tensor([order], dtype=torch.float64) for order in itertools.permutations(range(4))]
    total = sum(torch.exp(-plackett_luce(scores, order)) for order in orders)
    assert total.item() == pytest.approx(1.0)


def test_a_ranking_of_two_is_a_pair():
    c, r = torch.randn(2, 50, dtype=torch.float64)
    ranked = plackett_luce(torch.stack([c, r], 1), torch.tensor([[1.0, 0.0]]).expand(50, 2))
    assert torch.allclose(ranked, logsigmoid(c, r, c * 0), atol=1e-12)


def test_equal_scores_are_best_for_equal_ranks():
    scores = torch.tensor([[0.5, 0.5, 0.5, -9.0]], dtype=torch.float64, requires_grad=True)
    plackett_luce(scores, torch.tensor([[2.0, 2.0, 2.0, 1.0]])).sum().backward()
    assert torch.allclose(scores.grad[0, :3], scores.grad[0, :1].expand(3))
    apart = torch.tensor([[1.0, 0.5, 0.0, -9.0]], dtype=torch.float64)
    values = torch.tensor([[2.0, 2.0, 2.0, 1.0]])
    assert plackett_luce(apart, values) > plackett_luce(scores.detach(), values)


# -- ratings and labels -----------------------------------------------------------------------------------


@given(score=SCORES, rating=st.floats(-5, 5))
def test_losses_of_ratings_are_their_formulas(score, rating):
    d = abs(score - rating)
    assert squared(tensor(score), tensor(rating)).item() == pytest.approx(d * d, abs=1e-9)
    assert huber(tensor(score), tensor(rating)).item() == pytest.approx(d * d / 2 if d <= 1 else d - 0.5, abs=1e-9)


@given(score=SCORES, good=st.booleans(), flip=st.floats(0, 0.5), offset=st.floats(-3, 3))
def test_the_loss_of_a_label_is_the_cross_entropy_written_out(score, good, flip, offset):
    p, q = 1 / (1 + math.exp(offset - score)), 1 / (1 + math.exp(score - offset))
    share = 1 - flip if good else flip
    expected = -share * math.log(p) - (1 - share) * math.log(q)
    found = good_or_bad(tensor(score), tensor(float(good)), tensor(flip), offset)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


# -- every loss -------------------------------------------------------------------------------------------

LOSSES = {
    "win": lambda s: davidson(s[..., 0], s[..., 1], s[..., 0] * 0, torch.tensor(False), 0.5),
    "tie": lambda s: davidson(s[..., 0], s[..., 1], s[..., 0] * 0, torch.tensor(True), 0.5),
    "ranking": lambda s: plackett_luce(s, torch.tensor([1.0, 0.0]).expand(s.shape)),
    "ranking with a tie": lambda s: plackett_luce(s, torch.tensor([0.0, 0.0]).expand(s.shape)),
    "mse": lambda s: squared(s[..., 0], s[..., 1].detach()),
    "huber": lambda s: huber(s[..., 0], s[..., 1].detach()),
    "good": lambda s: good_or_bad(s[..., 0], s[..., 1].detach() * 0 + 1, s[..., 0].detach() * 0, 0.3),
    "bad, perhaps": lambda s: good_or_bad(s[..., 0], s[..., 1].detach() * 0, s[..., 0].detach() * 0 + 0.25, 0.3),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("difference", [-1e4, -88.0, -11.0, 0.0, 11.0, 88.0, 1e4])
def test_value_and_gradient_are_finite_at_both_ends_in_every_dtype(name, dtype, difference):
    scores = torch.tensor([[difference / 2, -difference / 2]], dtype=dtype, requires_grad=True)
    loss = LOSSES[name](scores)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert scores.grad.isfinite().all()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_values(name):
    scores = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    frozen = LOSSES[name]
    if name in ("mse", "huber"):
        fixed = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert gradcheck(lambda s: RATING_LOSSES[name](s[:, 0], fixed), scores)
    else:
        assert gradcheck(frozen, scores)


# -- a batch of several kinds -----------------------------------------------------------------------------


def batch(**extra):
    """A ranking of three, a pair, a label, a rating and a tie, over five rows of two heads."""
    inf = math.inf
    return {
        "chosen": torch.tensor([0, 1, 2, 3, 1]),
        "rejected": torch.tensor([2, 0, 2, 3, 4]),
        "head": torch.tensor([0, 1, 0, 0, 1]),
        "margin": torch.tensor([0, 0.5, 0, 0, 0]),
        "rows": torch.tensor([[0, 1, 2], [1, 0, 0], [2, 0, 0], [3, 0, 0], [1, 4, 0]]),
        "values": torch.tensor([[-1, -2, -2], [1, 0, -inf], [0, -inf, -inf], [0.7, -inf, -inf], [0, 0, -inf]]),
        "tie": torch.tensor([False, False, False, False, True]),
        "flip": torch.tensor([0, 0.1, 0.2, 0, 0]),
        "pairs": torch.tensor([1, 4]),
        "rankings": torch.tensor([0]),
        "ratings": torch.tensor([3]),
        "labels": torch.tensor([2]),
        **extra,
    }


def test_each_item_of_a_mixed_batch_has_the_loss_of_its_kind_and_head():
    s = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    config = LossConfig(tie=0.8, ratings="huber", label_offset=0.4, label_smoothing=0.05, centring=0.01)
    found = FeedbackLoss(config, ("pairs", "rankings", "ratings", "labels"))(s, batch())
    none, flip = torch.tensor([False]), 0.05 + 0.1 - 2 * 0.05 * 0.1
    win = davidson(s[1:2, 1], s[0:1, 1], tensor(0.5), none, 0.8).item()
    lost = davidson(s[0:1, 1], s[1:2, 1], tensor(0.0), none, 0.8).item()
    tie = davidson(s[1:2, 1], s[4:5, 1], tensor(0.0), ~none, 0.8).item()
    expected = [
        by_hand(s[:3, 0].tolist(), [-1, -2, -2]),
        (1 - flip) * win + flip * lost + 0.01 * (s[1, 1] + s[0, 1]).item() ** 2,
        good_or_bad(s[2:3, 0], tensor(0.0), tensor(0.05 + 0.2 - 2 * 0.05 * 0.2), 0.4).item(),
        huber(s[3:4, 0], tensor(0.7)).item(),
        tie + 0.01 * (s[1, 1] + s[4, 1]).item() ** 2,
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_batch_may_lack_a_kind_that_the_table_has():
    empty = {"labels": torch.tensor([], dtype=torch.int64), "rankings": torch.tensor([], dtype=torch.int64)}
    one = {
        name: value[3:4] for name, value in batch().items() if name not in ("pairs", "rankings", "ratings", "labels")
    }
    scores = torch.randn(5, 2, requires_grad=True)
    loss = FeedbackLoss(LossConfig(), ("rankings", "ratings", "labels"))(
        scores, one | empty | {"ratings": torch.tensor([0])}
    )
    loss.sum().backward()
    assert loss.shape == (1,)
    assert scores.grad.isfinite().all()


def items(kind, values):
    return [Graded("f:1", "s", "g", "score", kind, (), (), v) for v in values]


def test_open_settings_are_those_of_the_training_items():
    ties = items("pairs", [(0.0, 0.0)] + [(1.0, 0.0)] * 3)
    found = fitted(LossConfig(), [*ties, *items("labels", [(1.0,)] * 3 + [(0.0,)])])
    assert found.tie / (2 + found.tie) == pytest.approx(0.25), "equal responses tie as often as all"
    assert 1 / (1 + math.exp(found.label_offset)) == pytest.approx(0.75), "a score of 0 is as good as the average"
    given = fitted(LossConfig(tie=3.0, label_offset=-1.0), ties)
    assert (given.tie, given.label_offset) == (3.0, -1.0)
    assert math.isfinite(fitted(LossConfig(), items("labels", [(1.0,)] * 9)).label_offset)
