"""The reward models: the fit is the optimum, the slow path and the fast path agree, the judges judge."""

import numpy as np
import pytest

from gym.gold import gold
from gym.labeller import PLANTED, pairs
from gym.proxy import backbone, fit_head_D, seed_models
from gym.responses import from_rows
from gym.vocabulary import EOS
from rewardserve.model.scorer import Scorer, ScorerError, TokenBatch


@pytest.fixture(scope="module")
def labelled(base):
    return pairs(base, 800, PLANTED["human"], np.random.default_rng(0))


def loss(head_D, network, labelled, ridge):
    """Minus the Bradley-Terry log likelihood plus the ridge, pair by pair."""
    won, lost = labelled.left, labelled.right
    margins = (network.hidden_BD(won) - network.hidden_BD(lost)) @ head_D
    signed = [m if left else -m for m, left in zip(margins, labelled.left_won_N, strict=True)]
    return sum(np.logaddexp(0, -m) for m in signed) + ridge / 2 * head_D @ head_D


def test_the_fit_has_no_slope_left_and_is_lower_than_its_neighbours(labelled):
    network = backbone(3)
    head_D = fit_head_D(network, labelled, ridge=2.0)
    best = loss(head_D, network, labelled, 2.0)
    for direction_D in np.random.default_rng(0).normal(size=(5, len(head_D))):
        step_D = 1e-4 * direction_D
        up, down = (loss(head_D + s * step_D, network, labelled, 2.0) for s in (1, -1))
        assert (up - down) / 2e-4 == pytest.approx(0, abs=1e-4)
        assert min(loss(head_D + s * 100 * step_D, network, labelled, 2.0) for s in (1, -1)) > best


def test_a_fit_that_has_not_come_to_rest_is_refused(labelled):
    with pytest.raises(RuntimeError, match="not converged after 1 steps"):
        fit_head_D(backbone(3), labelled, max_steps=1)


def test_the_scorer_gives_the_numbers_of_the_fast_path(models, sampled):
    scorer: Scorer = models
    answer = scorer.score(TokenBatch(sampled.rows()))
    assert [list(row) for row in answer.rows] == [list(models.heads)] * len(sampled)
    slow_BH = np.array([list(row.values()) for row in answer.rows])
    assert slow_BH == pytest.approx(models.scores_BH(sampled), abs=1e-12)
    assert answer.tokens_computed == sum(map(len, sampled.rows()))
    assert not scorer.pads_rows


def test_a_row_does_not_depend_on_its_batch(models, sampled):
    together = models.score(TokenBatch(sampled.rows())).rows
    alone = [models.score(TokenBatch((row,))).rows[0] for row in sampled.rows()[:20]]
    for one, other in zip(together, alone, strict=False):
        assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-12)


@pytest.mark.parametrize("row", [(1,) * 129, (EOS + 1,), (-1, 2)])
def test_a_row_that_is_no_response_is_refused(models, row):
    with pytest.raises(ScorerError, match="128 tokens"):
        models.score(TokenBatch((row,)))


def test_the_order_of_words_says_nothing_and_the_words_do(models):
    ahead, back, other = models.scores_BH(from_rows(((1, 2, 70, EOS), (70, 2, 1, EOS), (1, 2, 71, EOS)), 128))
    assert ahead == pytest.approx(back)
    assert (ahead != other).all()


def test_the_longest_response_scores_the_same_cut_or_not(models):
    """127 words and EOS are read as 127 words: EOS itself says nothing."""
    ended, cut = models.scores_BH(from_rows(((3,) * 127 + (EOS,), (3,) * 127), 128))
    assert ended == pytest.approx(cut)


def test_backbones_of_different_seeds_differ_and_of_one_seed_do_not(sampled):
    one, same, other = (backbone(seed).hidden_BD(sampled) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.abs(one - other).max() > 0.5


def test_a_panel_has_its_judges_and_they_are_better_than_chance(models, base, sampled):
    assert models.heads == ("reward", "member_1", "held_out", "audit")
    for column in range(len(models.heads)):
        assert np.corrcoef(models.scores_BH(sampled)[:, column], gold(sampled))[0, 1] > 0.5


def test_one_seed_gives_one_panel(base, models, sampled):
    again = seed_models(base, seed=5, n_members=2, n_pairs=1_500)
    assert np.array_equal(again.scores_BH(sampled), models.scores_BH(sampled))
