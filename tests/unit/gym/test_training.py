"""The loop: the same seed gives the same bits, and the runs are of the kinds that the gym is for."""

import numpy as np
import pytest

from gym.gold import gold
from gym.proxy import seed_models
from gym.training import gold_reward, train


def test_one_seed_gives_the_same_bits_and_another_seed_does_not(base, models):
    one, same, other = (
        [s.responses.tokens_BT for s in train(base, models, gold_reward, 5, seed=seed)] for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_step_says_everything_about_its_batch(base, models):
    first, second = list(train(base, models, gold_reward, 2, seed=0, batch=32, group=8))
    assert first.policy is base
    assert first.kl == 0.0 < second.kl
    assert first.heads == models.heads
    assert first.scores_BH == pytest.approx(models.scores_BH(first.responses))
    assert first.gold_B.tolist() == gold(first.responses).tolist() == first.rewards_B.tolist()
    assert first.responses.prompt_ids_B.tolist() == sorted([0, 1, 2, 3] * 8)
    assert second.responses.prompt_ids_B.tolist() == sorted([4, 5, 6, 7] * 8)
    ratio_B = second.policy.log_prob_B(second.responses) - base.log_prob_B(second.responses)
    assert second.log_ratio_B == pytest.approx(ratio_B)


def test_the_caller_sees_raw_scores_and_decides_the_reward(base, models):
    def length(responses, scores_BH):
        assert scores_BH == pytest.approx(models.scores_BH(responses))
        return responses.lengths_B

    steps = list(train(base, models, length, 60, seed=0))
    assert steps[-1].responses.lengths_B.mean() > 1.5 * steps[0].responses.lengths_B.mean()


@pytest.mark.parametrize("bad", [lambda r, s: np.full(len(r), np.nan), lambda r, s: s, lambda r, s: np.zeros(3)])
def test_rewards_that_are_none_stop_the_run(base, models, bad):
    with pytest.raises(ValueError, match="step 0: rewards must be finite"):
        next(train(base, models, bad, 1, seed=0))


def test_a_batch_is_whole_groups(base, models):
    with pytest.raises(ValueError, match="batch=100 is not a multiple of group=8"):
        next(train(base, models, gold_reward, 1, seed=0, batch=100))


def test_a_reward_that_differs_only_between_prompts_teaches_nothing_within_groups(base, models):
    def by_prompt(responses, scores_BH):
        return responses.prompt_ids_B % 2

    *_, last = train(base, models, by_prompt, 3, seed=0, group_advantages=True)
    assert last.kl == 0.0
    *_, last = train(base, models, by_prompt, 3, seed=0)
    assert last.kl > 0.0


def smooth_gold(steps):
    return np.convolve([s.gold_B.mean() for s in steps], np.ones(10) / 10, "valid")


@pytest.mark.parametrize("seed", [0, 1])
def test_learning_from_gold_rises_and_does_not_fall(base, models, seed):
    curve = smooth_gold(train(base, models, gold_reward, seed=seed, kl_coefficient=0.02))
    assert curve[-1] > curve[0] + 0.8
    assert curve[-1] > curve.max() - 0.2


def test_climbing_a_proxy_without_kl_ends_below_its_peak_and_with_kl_does_not(base):
    models = seed_models(base, seed=0, n_members=1)
    reference = base.sample(np.random.default_rng(0), np.zeros(2_000, dtype=np.int64))
    sd = models.models["reward"].scores_B(reference).std()

    def proxy(responses, scores_BH):
        return scores_BH[:, models.heads.index("reward")] / sd

    raw = smooth_gold(train(base, models, proxy, seed=0))
    held = smooth_gold(train(base, models, proxy, seed=0, kl_coefficient=0.05))
    assert raw.max() > raw[0] + 0.1
    assert raw[-1] < raw.max() - 0.2
    assert held[-1] > held[0] + 0.1
    assert held[-1] > held.max() - 0.2
