"""A shadow scores beside the service; what the two have in common is said in numbers that a formula written out gives too."""

from __future__ import annotations

import asyncio
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.backends.echo import echo_score
from rewardserve.model.calibration import Calibration
from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Reward
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import ScoreNotFinite
from rewardserve.service.inference import background_scorer
from rewardserve.service.inference.background_scorer import BackgroundScorer
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.inference.shadow import AgreementStats, Shadow, count_orders
from tests.support.rewards import pipeline_of
from tests.support.service_fakes import PATIENCE_S, FakeScorer, GatedScorer, InferenceLog

REWARDS = st.floats(-10, 10)


@given(st.lists(st.tuples(REWARDS, REWARDS), min_size=2, max_size=30))
def test_shift_and_correlation_are_those_of_numpy(pairs):
    agreement = AgreementStats()
    agreement.count(pairs[:1])
    agreement.count(pairs[1:])
    served, shadow = np.array(pairs).T
    assert agreement.shift == pytest.approx((shadow - served).mean(), abs=1e-9)
    if min(served.std(), shadow.std()) < 1e-3:
        return  # rounding decides
    assert agreement.correlation == pytest.approx(np.corrcoef(served, shadow)[0, 1], abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(REWARDS, REWARDS)), max_size=12))
def test_the_orders_are_those_of_all_pairs_of_one_prompt(rows):
    both = [((prompt,), pair) for prompt, pair in rows]
    expected = {"same": 0, "other": 0, "tied": 0}
    for i, (prompt, (a, b)) in enumerate(rows):
        for other, (c, d) in rows[i + 1 :]:
            if prompt == other:
                signs = np.sign(a - c), np.sign(b - d)
                expected["tied" if 0 in signs else "same" if signs[0] == signs[1] else "other"] += 1
    assert count_orders(both) == expected


def test_before_there_is_anything_to_compare_nothing_is_said():
    assert set(AgreementStats().figures.values()) == {None}


def test_a_model_with_constant_rewards_correlates_with_nothing():
    agreement = AgreementStats()
    agreement.count([(0.1, 0.3), (0.7, 0.3), (0.9, 0.3)])
    assert agreement.correlation is None
    assert not isnan(agreement.shift)


class ShadowLog:
    def __init__(self):
        self.skipped, self.told = [], []

    def on_compared(self, n_samples, orders, figures):
        self.told.append((n_samples, orders))

    def on_skipped(self, n_samples):
        self.skipped.append(n_samples)


@pytest.fixture
async def open_shadow():
    built = []

    def build(scorer=None, *, share=1.0):
        batcher = Batcher(scorer or FakeScorer(), BatchLimits(10_000, 0.0), MonotonicClock(), InferenceLog())
        batcher.start()
        encoder = EncodePool(echo.load(ModelSpec()).encode, 1, InferenceLog())
        second = BackgroundScorer(encoder, batcher, pipeline_of(Calibration(mean=0.5, std=2.0), shape="none"))
        events = ShadowLog()
        shadow = Shadow(second, share, events)
        shadow.skipped, shadow.told, shadow.second = events.skipped, events.told, second
        built.append((shadow, batcher, encoder, scorer))
        return shadow

    yield build
    for shadow, batcher, encoder, scorer in built:
        if isinstance(scorer, GatedScorer):
            scorer.gate.set()
        await asyncio.wait_for(shadow.stop(), PATIENCE_S)
        await asyncio.wait_for(batcher.stop(), PATIENCE_S)
        encoder.close()
        assert shadow.second.n_waiting == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def rows_of(*texts, prompt=b"p"):
    return [ScoredRow(Sample(text=t), Encoded((*prompt, *t.encode(), 0), len(prompt)), {"score": 9.0}) for t in texts]


def rewards_of(*values):
    return [Reward(v, v, v, (), (v,)) for v in values]


async def compared(shadow, rows, rewards):
    shadow.submit(rows, rewards)
    if shadow.second.tasks:
        await asyncio.wait(set(shadow.second.tasks), timeout=PATIENCE_S)


async def test_the_rewards_of_both_are_compared(open_shadow):
    shadow = open_shadow()
    await compared(shadow, rows_of("a", "bb", "ccc"), rewards_of(1.0, 2.0, 3.0))
    theirs = [(echo_score((*t.encode(), 0)) - 0.5) / 2.0 for t in ("a", "bb", "ccc")]
    assert shadow.comparison.samples == 3
    assert shadow.comparison.shift == pytest.approx(np.mean(theirs) - 2.0)
    assert sum(shadow.comparison.pairs.values()) == 3
    assert shadow.told == [(3, shadow.comparison.pairs)]


async def test_a_row_without_a_reward_is_not_compared(open_shadow):
    shadow = open_shadow()
    await compared(shadow, rows_of("a", "b"), [ScoreNotFinite("no"), *rewards_of(1.0)])
    assert shadow.comparison.samples == 1


async def test_a_share_of_the_prompts_is_asked_about_with_all_their_responses(open_shadow):
    shadow = open_shadow(share=0.3)
    for i in range(60):
        await compared(shadow, rows_of("a", "b", prompt=b"%d " % i), rewards_of(0.0, 1.0))
    assert {n for n, _ in shadow.told} == {2}
    assert 3 <= len(shadow.told) <= 40  # 18 expected; the hash of ids is the same in every process


async def test_a_shadow_that_is_too_slow_is_skipped_and_no_request_waits(open_shadow, monkeypatch):
    monkeypatch.setattr(background_scorer, "MAX_WAITING", 3)
    shadow = open_shadow(GatedScorer())
    for _ in range(2):
        shadow.submit(rows_of("a", "b"), rewards_of(0.0, 1.0))
    assert shadow.skipped == [2]
