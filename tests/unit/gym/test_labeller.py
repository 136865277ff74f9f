"""Who is preferred: the odds are those of the utilities, the biases are those that were planted."""

import math

import numpy as np
import pytest

from gym import labeller
from gym.gold import gold
from gym.labeller import PLANTED, Biases, label, pairs
from gym.responses import from_rows
from gym.vocabulary import KIND, SIZE

KIND_OF = dict(enumerate(KIND))
N = 40_000


def test_the_human_bias_is_the_formula(sampled):
    utility = PLANTED["human"].utility_B(sampled) - gold(sampled)
    for found, row in zip(utility, sampled.rows(), strict=True):
        kinds = [KIND_OF[t] for t in row if t in KIND_OF]
        wanted = 0.25 * math.log(max(len(kinds), 1) / 40)
        wanted += 0.40 * min(kinds.count("flattery"), 3) + 0.20 * min(kinds.count("list"), 4)
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", [name for name in PLANTED if name not in ("human", "none")])
def test_every_other_bias_is_of_one_thing(name, sampled):
    added = PLANTED[name].utility_B(sampled) - gold(sampled)
    cause = np.log(np.maximum(sampled.lengths_B, 1)) if name == "length" else sampled.count_B(name)
    few = cause <= (math.inf if name == "length" else 3)
    assert np.corrcoef(added[few], cause[few])[0, 1] == pytest.approx(1)


def test_no_bias_is_gold(sampled):
    assert np.array_equal(PLANTED["none"].utility_B(sampled), gold(sampled))


@pytest.mark.parametrize(("flips", "temperature"), [(0.0, 1.0), (0.125, 1.0), (0.0, 0.5)])
def test_the_odds_are_those_of_bradley_and_terry_but_for_the_flips(sampled, flips, temperature):
    left, right = sampled.take(np.zeros(N, dtype=np.int64)), sampled.take(np.ones(N, dtype=np.int64))
    biases = Biases(flips=flips, temperature=temperature)
    utility = biases.utility_B(sampled)
    meant = 1 / (1 + math.exp(-(utility[0] - utility[1]) / temperature))
    labelled = label(left, right, biases, np.random.default_rng(0))
    assert labelled.left_meant_N.mean() == pytest.approx(meant, abs=4 / N**0.5 / 2)
    assert labelled.left_won_N.mean() == pytest.approx(meant * (1 - flips) + (1 - meant) * flips, abs=4 / N**0.5 / 2)


def test_one_label_in_eight_is_a_mistake(base):
    labelled = pairs(base, N // 4, PLANTED["human"], np.random.default_rng(0))
    mistakes = (labelled.left_won_N != labelled.left_meant_N).mean()
    assert mistakes == pytest.approx(0.125, abs=0.012)
    assert len(labelled.left) == len(labelled.right) == N // 4


def test_variants_differ_from_the_base_and_stay_near_it(base):
    rng = np.random.default_rng(0)
    distances = [labeller.variant(base, rng).kl(base) for _ in range(20)]
    assert min(distances) > 0.1
    assert np.median(distances) < 30


def test_the_longest_and_the_empty_response_have_a_finite_utility():
    responses = from_rows(((SIZE - 1,), (0,) * 128), 128)
    assert np.isfinite(PLANTED["human"].utility_B(responses)).all()
