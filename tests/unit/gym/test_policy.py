"""Sampling, KL and the gradient, against counting, Monte Carlo and finite differences."""

import itertools

import numpy as np
import pytest

from gym import policy as p
from gym.policy import Policy
from gym.responses import from_rows
from gym.vocabulary import CLASSES, EOS, SIZE

PROMPTS = np.zeros(20_000, dtype=np.int64)


@pytest.fixture(scope="module")
def other(base):
    return Policy(base.logits_V + np.random.default_rng(1).normal(0, 0.3, SIZE), base.cap)


def test_the_base_policy_writes_forty_words(base):
    lengths = base.sample(np.random.default_rng(0), PROMPTS).lengths_B
    assert lengths.mean() == pytest.approx(40, abs=5 * lengths.std() / len(PROMPTS) ** 0.5)
    assert lengths.max() == base.cap


def test_the_base_policy_has_its_shares(base):
    probs = np.exp(base.log_probs_V[:EOS])
    total = sum(p.BASE_SHARE.values())
    first = 0
    for kind, words in CLASSES.items():
        share = probs[first : first + len(words)].sum() / probs.sum()
        assert share == pytest.approx(p.BASE_SHARE[kind] / total)
        first += len(words)


def test_words_come_as_often_as_they_should(other):
    counts_BV = other.sample(np.random.default_rng(0), PROMPTS).counts_BV
    drawn = counts_BV.sum()
    expected = drawn * np.exp(other.log_probs_V)
    assert np.abs(counts_BV.sum(axis=0) - expected).max() < 6 * expected.max() ** 0.5
    assert drawn / len(PROMPTS) == pytest.approx(other.mean_draws, rel=0.02)


@pytest.mark.parametrize("longer", [0.0, -3.0, 30.0])
def test_the_exact_kl_is_the_mean_log_ratio(base, other, longer):
    """Also where every response runs into the cap, and where every response is empty."""
    moved = Policy(other.logits_V + longer * (np.arange(SIZE) == EOS), base.cap)
    responses = moved.sample(np.random.default_rng(2), PROMPTS)
    ratio_B = moved.log_prob_B(responses) - base.log_prob_B(responses)
    assert moved.kl(base) == pytest.approx(ratio_B.mean(), abs=5 * ratio_B.std() / len(PROMPTS) ** 0.5 + 1e-9)


def test_the_base_is_at_no_distance_from_itself(base):
    assert base.kl(base) == 0.0


def test_the_probabilities_of_all_responses_sum_to_one(base):
    tiny = tiny_policy(np.array([0.3, -0.2, 0.1]))
    assert np.exp(tiny.log_prob_B(every_response())).sum() == pytest.approx(1)


def tiny_policy(logits_3):
    """Two words and EOS, at most three tokens; all other words have no probability to speak of."""
    logits_V = np.full(SIZE, -60.0)
    logits_V[[0, 1, EOS]] = logits_3
    return Policy(logits_V, cap=3)


def every_response():
    """All that the tiny policy can say: up to two words and EOS, or three words."""
    ended = [(*words, EOS) for n in range(3) for words in itertools.product((0, 1), repeat=n)]
    return from_rows((*ended, *itertools.product((0, 1), repeat=3)), cap=3)


def test_reinforce_is_the_gradient_of_the_expected_reward():
    """Williams 1992: the mean over the policy's own responses, here all of them, weighted by probability."""
    responses, logits = every_response(), np.array([0.3, -0.2, 0.1])
    rewards_B = np.random.default_rng(0).normal(size=len(responses))

    def expected(logits_3):
        return np.exp(tiny_policy(logits_3).log_prob_B(responses)) @ rewards_B

    policy = tiny_policy(logits)
    weights_B = np.exp(policy.log_prob_B(responses)) * len(responses)
    found = p.reinforce_gradient_V(policy, responses, weights_B * rewards_B)[[0, 1, EOS]]
    step = 1e-5 * np.eye(3)
    wanted = [(expected(logits + e) - expected(logits - e)) / 2e-5 for e in step]
    assert found == pytest.approx(wanted, abs=1e-8)


def test_advantages_have_mean_zero_and_deviation_one_in_each_group():
    rewards = np.random.default_rng(0).normal(3, 5, 24)
    groups = p.normalised(rewards, group=8).reshape(3, 8)
    assert groups.mean(axis=1) == pytest.approx([0, 0, 0], abs=1e-12)
    assert groups.std(axis=1) == pytest.approx([1, 1, 1])


def test_equal_rewards_teach_nothing():
    assert p.normalised(np.full(8, 7.0), group=8).tolist() == [0.0] * 8


def test_adam_is_that_of_the_paper():
    optimiser, m, v = p.new_adam(0.1, size=2), np.zeros(2), np.zeros(2)
    for n, gradient in enumerate(np.array([[1.0, -2.0], [0.5, 3.0], [0.0, 0.1]]), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        change, optimiser = optimiser.step(gradient)
        assert change == pytest.approx(0.1 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8))


def test_the_kl_counts_every_draw_up_to_the_cap_and_none_after_it():
    one, other, responses = tiny_policy(np.array([0.3, -0.2, 0.1])), tiny_policy(np.zeros(3)), every_response()
    log_p_B, log_q_B = one.log_prob_B(responses), other.log_prob_B(responses)
    assert one.kl(other) == pytest.approx(np.exp(log_p_B) @ (log_p_B - log_q_B), abs=1e-12)
