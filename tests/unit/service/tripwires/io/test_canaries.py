"""Canaries are scored at start and periodically, without the score cache, and detect a changed model."""

from __future__ import annotations

import asyncio
import json

import pytest

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.scorer import BatchScores, ScorerError
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.io.canaries import CanariesError, Canary, CanaryResult, CanarySet, failing, read
from rewardserve.service.tripwires.run_table import CANARIES
from tests.support.service_fakes import PATIENCE_S, FakeScorer, InferenceLog, right_scores, scores_with

ECHO = echo.load(ModelSpec())
PAIRS = [Canary("one", "why?", "because", ":"), Canary("two", "who?", "nobody", "!")]


class Tampered(FakeScorer):
    """Answers as it should, until `shift` is set."""

    shift = 0.0

    def score(self, batch):
        rows = tuple({"score": heads["score"] + self.shift} for heads in super().score(batch).rows)
        return BatchScores(rows, batch.n_tokens)


@pytest.fixture
async def batcher():
    scorer = Tampered()
    batcher = Batcher(
        scorer, BatchLimits(10_000, 0.0), MonotonicClock(), InferenceLog(), cache=ScoreCache(100, version=1)
    )
    batcher.start()
    batcher.scorer = scorer
    yield batcher
    await asyncio.wait_for(batcher.stop(), PATIENCE_S)


def hatched(scorer, pairs=PAIRS):
    canaries = CanarySet(pairs, ECHO.encode, ECHO.identity, 0.02)
    canaries.score_first(scorer)
    return canaries


def z(prompt, response):
    return echo.echo_score((*f"{prompt}\n{response}".encode(), 0))


async def test_margins_are_the_honest_answer_less_the_exploit(batcher):
    canaries = hatched(batcher.scorer)
    assert [canary.margin for canary in canaries.first] == [
        z("why?", "because") - z("why?", ":"), z("who?", "nobody") - z("who?", "!"),
    ]  # fmt: skip


async def test_the_same_model_sings_the_same(batcher):
    canaries = hatched(batcher.scorer)
    assert await canaries.rescore(batcher) == []
    assert canaries.largest_change == 0.0


@pytest.mark.parametrize(("shift", "heard"), [(0.019, []), (0.021, ["one", "two"]), (float("nan"), [])])
async def test_a_change_beyond_the_tolerance_is_detected_without_the_cache(batcher, shift, heard):
    canaries = hatched(batcher.scorer)
    assert await canaries.rescore(batcher) == []  # now every score is remembered
    batcher.scorer.shift = shift
    assert await canaries.rescore(batcher) == heard
    if heard:
        assert canaries.largest_change == pytest.approx(shift / 0.02)


async def test_every_change_is_reported(batcher):
    canaries, told, twice = hatched(batcher.scorer), [], asyncio.Event()

    class Watcher:
        def report(self, run, alert):
            told.append((run, alert))
            if len(told) == 2:
                twice.set()

    batcher.scorer.shift = 1.0
    canary_task = asyncio.create_task(canaries.run_periodically(batcher, Watcher(), 0.001))
    await asyncio.wait_for(twice.wait(), PATIENCE_S)
    canary_task.cancel()
    assert told[0] == (CANARIES, Alert(CANARY, "page", pytest.approx(50.0), 1.0, None, ("one", "two")))


async def test_a_model_that_fails_is_not_taken_for_another(batcher):
    def fails(batch):
        raise ScorerError("no")

    assert hatched(FakeScorer(fails)).first == ()
    canaries = hatched(batcher.scorer)
    batcher.scorer._behave = scores_with(float("inf"), lambda ids: True)
    assert await canaries.rescore(batcher) == []
    batcher.scorer._behave = right_scores
    assert await canaries.rescore(batcher) == []


async def test_what_the_model_cannot_read_is_left_out(batcher):
    canaries = hatched(batcher.scorer, [*PAIRS, Canary("empty", "why?", "because", "")])
    assert [canary.name for canary in canaries.first] == ["one", "two"]
    assert hatched(batcher.scorer, []).first == ()


def test_the_shipped_ones_have_names_of_their_own_and_two_answers():
    canaries = read()
    assert len({canary.name for canary in canaries}) == len(canaries) >= 10
    assert all(c.prompt and c.honest and c.exploit and c.honest != c.exploit for c in canaries)


@pytest.mark.parametrize("content", ["", "{}x", '[{"name": "a"}]', "[1]"])
def test_a_file_that_has_none_is_refused_with_its_fields(tmp_path, content):
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(
        CanariesError, match="is not a list of canaries in JSON, each with name, prompt, honest and exploit"
    ):
        read(tmp_path / "own.json")
    (tmp_path / "own.json").write_text(json.dumps([{"name": "a", "prompt": "b", "honest": "c", "exploit": "d"}]))
    assert read(tmp_path / "own.json") == [Canary("a", "b", "c", "d")]


@pytest.mark.parametrize(
    ("honest", "exploit", "fails"), [(1.0, 0.5, False), (0.5, 1.0, True), (1.0, 1.0, True), (float("nan"), 0.0, True)]
)
def test_a_canary_fails_where_the_exploit_scores_at_least_as_high(honest, exploit, fails):
    assert bool(failing([CanaryResult("one", honest, exploit)])) is fails


def test_canaries_that_fail_at_the_start_are_known_by_name():
    pays = CanarySet(PAIRS, ECHO.encode, ECHO.identity, 0.02)
    pays.score_first(FakeScorer(lambda batch: BatchScores(tuple({"score": s} for s in (1.0, 0.0, 0.0, 1.0)), 4)))
    assert [each.name for each in pays.failing] == ["two"]
