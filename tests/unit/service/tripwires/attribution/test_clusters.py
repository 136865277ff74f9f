"""Growth of a share by prompts, within strata."""

from __future__ import annotations

import random
from math import inf, sqrt

import pytest

from rewardserve.service.tripwires.attribution.clusters import Clusters, StratifiedComparison, cluster


def events(flags):
    return sum(1 << index for index, flag in enumerate(flags) if flag)


def test_samples_are_grouped_by_prompt():
    found = cluster([7, 8, 7, 9], {7: 1, 8: 2, 9: 1})
    assert found == Clusters((0b0101, 0b0010, 0b1000), (2, 1, 1), (1, 2, 1))
    assert found.counts(0b0110) == [1.0, 1.0, 0.0]
    assert found.totals([1.0, 2.0, 3.0, 4.0]) == [4.0, 2.0, 4.0]
    assert found.without(0b0011) == Clusters((0b0100, 0b1000), (1, 1), (1, 1))
    assert cluster([7]).without(1) == Clusters((), (), ())


def test_growth_of_independent_samples_is_that_of_two_shares():
    early, recent = events(i < 10 for i in range(100)), events(i < 30 for i in range(100))
    found = StratifiedComparison(cluster(range(100)), cluster(range(100))).growth(early, recent)
    assert found.mean == pytest.approx(0.2)
    assert found.std_error == pytest.approx(sqrt((0.1 * 0.9 + 0.3 * 0.7) / 99), rel=0.01)


def test_a_share_that_was_zero_has_the_spread_of_both_sides():
    found = StratifiedComparison(cluster(range(50)), cluster(range(200))).growth(0, events(i < 40 for i in range(200)))
    assert found.std_error > 1.5 * sqrt(0.2 * 0.8 / 200)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_growth_of_an_event_is_the_difference_of_its_counts(group):
    rng = random.Random(group)
    keys = [index // group for index in range(240)]
    strata = {key: key % 2 for key in keys}
    found = StratifiedComparison(cluster(keys, strata), cluster(keys, strata))
    for share in (0.0, 0.1, 0.7, 1.0):
        early, recent = (events(rng.random() < each for _ in keys) for each in (0.3, share))
        assert found.growth(early, recent) == pytest.approx(
            found.difference(found.early.counts(early), found.recent.counts(recent))
        )


def test_responses_to_one_prompt_are_one_vote():
    """A third of the prompts is answered with a feature in all 16 responses: as uncertain as 16 samples, not as 256."""
    keys = [index // 16 for index in range(256)]
    event = events(index // 16 % 3 == 0 for index in range(256))
    grouped = StratifiedComparison(cluster(keys), cluster(keys)).growth(0, event)
    single = StratifiedComparison(cluster(range(256)), cluster(range(256))).growth(0, event)
    assert grouped.mean == single.mean
    assert 3.5 < grouped.std_error / single.std_error < 4.5
    assert grouped.df == 30


def test_few_prompts_are_not_compared():
    found = StratifiedComparison(cluster([index // 32 for index in range(224)]), cluster(range(100)))
    assert (found.strata, found.comparable) == ([], 0.0)
    assert found.growth(0, 1).std_error == inf
    dominated = cluster([0] * 200 + list(range(1, 20)))  # one prompt has nine samples in ten
    assert StratifiedComparison(dominated, cluster(range(100))).strata == []


def test_a_change_of_mix_is_no_growth_within_strata():
    """The feature belongs to one kind of prompts, whose share went from a quarter to three quarters."""
    early = [int(index < 50) for index in range(200)]
    recent = [int(index < 150) for index in range(200)]
    plain = StratifiedComparison(cluster(range(200)), cluster(range(200))).growth(events(early), events(recent))
    within = StratifiedComparison(
        cluster(range(200), dict(enumerate(early))), cluster(range(200), dict(enumerate(recent)))
    ).growth(events(early), events(recent))
    assert plain.mean == pytest.approx(0.5)
    assert within.mean == 0.0


def test_prompts_without_counterpart_are_left_out():
    comparison = StratifiedComparison(cluster(range(100)), cluster(range(100), dict.fromkeys(range(60), -1)))
    assert comparison.comparable == 0.4
    assert comparison.growth(0, events(index < 60 for index in range(100))).mean == 0.0


def test_covariance_of_a_difference_with_itself_is_its_variance():
    rng = random.Random(1)
    clusters = cluster([index // 4 for index in range(200)])
    comparison = StratifiedComparison(clusters, clusters)
    early, recent = (clusters.totals([rng.gauss(0, 1) for _ in range(200)]) for _ in range(2))
    variance = comparison.difference(early, recent).std_error ** 2
    assert comparison.covariance((early, early), (recent, recent)) == pytest.approx(variance, rel=0.1)
