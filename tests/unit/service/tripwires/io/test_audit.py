"""The audit judge scores a share of the samples for the run monitor alone, and no request waits for it."""

from __future__ import annotations

import asyncio

import pytest

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.backends.echo import echo_score
from rewardserve.model.calibration import Calibration
from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Reward
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import ScoreNotFinite
from rewardserve.service.inference import background_scorer
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.run_context import RunContext
from tests.support.rewards import pipeline_of, watching
from tests.support.service_fakes import (
    PATIENCE_S,
    FakeScorer,
    GatedScorer,
    InferenceLog,
    StillClock,
    TripwireLog,
    poisoned_by,
)


@pytest.fixture
async def open_judge():
    judges = []

    def build(scorer=None, *, share=1.0, block=1, monitor=None, events=None):
        own = scorer or FakeScorer()
        batcher = Batcher(own, BatchLimits(10_000, 0.0), MonotonicClock(), InferenceLog())
        batcher.start()
        pipeline = pipeline_of(Calibration(mean=0.5, std=2.0), shape="none")
        encoder = EncodePool(echo.load(ModelSpec()).encode, 1, InferenceLog())
        judge = AuditJudge(
            own,
            encoder,
            batcher,
            pipeline,
            share=share,
            block=block,
            monitor=Audits() if monitor is None else monitor,
            clock=StillClock(),
            events=events or TripwireLog(),
        )
        judges.append((judge, scorer))
        return judges[-1][0]

    yield build
    for judge, scorer in judges:
        if isinstance(scorer, GatedScorer):
            scorer.gate.set()
        await asyncio.wait_for(judge.stop(), PATIENCE_S)
        assert judge.background_scorer.n_waiting == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


SAMPLE = SampleFeatures(1, None, 0.0, 0.0, is_capped=False, traits=())


def row(text):
    return ScoredRow(Sample(text=text), Encoded((*text.encode(), 0), 0), {"score": 9.0})


def reward(score):
    return Reward(9.0, 1.0, score, (), (score, 0.0))


class Audits(list):
    """Stands in for the monitor: the score of each sample with that of the judge."""

    is_learning = False

    def audits_every_prompt(self, run, owner):
        return self.is_learning

    def add_audit(self, run, prompt_hash, score, audit, now, owner, task, source):
        self.append((score, audit))


async def judged(judge, rows, rewards):
    judge.submit(rows, rewards, "ppo-7")
    await finished(judge)
    return judge._monitor


async def finished(judge):
    if judge.background_scorer.tasks:
        await asyncio.wait(set(judge.background_scorer.tasks), timeout=PATIENCE_S)
    assert judge.background_scorer.n_waiting == 0


def z(text):
    return (echo_score((*text.encode(), 0)) - 0.5) / 2.0


async def test_both_scores_are_reported_on_their_own_scales(open_judge):
    heard = await judged(open_judge(), [row("a"), row("b")], [reward(1.25), reward(-3.0)])
    assert heard == [(1.25, pytest.approx(z("a"))), (-3.0, pytest.approx(z("b")))]


async def test_rows_without_a_reward_are_not_judged(open_judge):
    heard = await judged(open_judge(), [row("a"), row("b")], [ScoreNotFinite("no"), reward(1.0)])
    assert heard == [(1.0, pytest.approx(z("b")))]


@pytest.mark.parametrize("size", [1, 16, 128])
async def test_the_same_samples_are_judged_whatever_the_size_of_requests(open_judge, size):
    rows = [row(f"text {i}") for i in range(256)]
    whole, parts = FakeScorer(), FakeScorer()
    for scorer, n in ((whole, 256), (parts, size)):
        judge = open_judge(scorer, share=0.25, block=128)
        for i in range(0, 256, n):
            await judged(judge, rows[i : i + n], [reward(0.0)] * n)
    chosen = [[ids for batch in scorer.batches for ids in batch.rows] for scorer in (whole, parts)]
    assert sorted(chosen[0]) == sorted(chosen[1])
    assert len(chosen[0]) == 64


async def test_all_prompts_are_judged_while_the_monitor_learns_what_to_expect(open_judge):
    heard = Audits()
    heard.is_learning = True
    judge = open_judge(share=0.01, block=128, monitor=heard)
    await judged(judge, [row(f"text {i}") for i in range(128)], [reward(0.0)] * 128)
    assert len(heard) == 128
    heard.is_learning = False
    await judged(judge, [row(f"text {i}") for i in range(128)], [reward(0.0)] * 128)
    assert len(heard) == 129


async def test_runs_do_not_share_a_block(open_judge):
    heard = Audits()
    judge = open_judge(share=1.0, block=2, monitor=heard)
    for run in ("a", "b"):
        judge.submit([row(run)], [reward(0.0)], run)
    await finished(judge)
    assert heard == []
    judge.submit([row("c")], [reward(1.0)], "a", "key")
    judge.submit([row("d")], [reward(2.0)], "a")
    await finished(judge)
    assert [score for score, _ in heard] == [0.0, 2.0]


async def test_the_blocks_of_few_runs_are_kept(open_judge):
    judge = open_judge(block=2)
    for i in range(100):
        judge.submit([row("a")], [reward(0.0)], f"run {i}")
    assert [run for run, _ in judge._samplers] == [f"run {i}" for i in range(36, 100)]


async def test_a_judge_that_is_slow_is_not_asked_more_than_it_can_answer(open_judge, monkeypatch):
    monkeypatch.setattr(background_scorer, "MAX_WAITING", 3)
    scorer = GatedScorer()
    heard, events = Audits(), TripwireLog()
    judge = open_judge(scorer, monitor=heard, events=events)
    for text in "abcde":
        judge.submit([row(text)], [reward(0.0)], "ppo-7")
    assert (judge.background_scorer.n_waiting, events.skipped) == (3, [1, 1])
    scorer.gate.set()
    await finished(judge)
    assert len(heard) == 3


async def test_a_failing_judge_reports_nothing_and_affects_no_request(open_judge):
    judge = open_judge(FakeScorer(poisoned_by(lambda ids: ids[0] == ord("x"))))
    assert await judged(judge, [row("x"), row("b")], [reward(1.0), reward(2.0)]) == [(2.0, pytest.approx(z("b")))]


async def test_audits_are_counted_for_the_run(open_judge):
    watcher = watching(StillClock())
    watcher._judge = judge = open_judge(monitor=watcher.monitor)
    watcher.inspect(RunContext("ppo-7", 1, owner="k"), [row("a"), row("b")], [reward(1.0), reward(2.0)])
    await finished(judge)
    (run,) = watcher.monitor.runs.values()
    window = run.window
    assert (window["samples"], window["audited"], window["audited_score_positive"]) == (2, 2, 3.0)
    assert window.mean("audit") == pytest.approx((z("a") + z("b")) / 2)


async def test_the_monitor_knows_of_each_run_whether_its_start_is_learned():
    monitor = watching(StillClock(), window=16).monitor
    assert monitor.audits_every_prompt("new")
    for n in range(512):
        monitor.add_audit("old", n, float(n % 7), float(n % 5), 0.0)
        if n % 64 == 63:
            monitor.observe("old", 1, [SAMPLE] * 16 * 8, 0.0)
    assert not monitor.audits_every_prompt("old")
    assert monitor.audits_every_prompt("old", "another owner")


async def test_audits_of_the_scores_of_an_earlier_model_are_left_out(open_judge):
    scorer = GatedScorer()
    watcher = watching(StillClock())
    judge = open_judge(scorer, monitor=watcher.monitor)
    old, new = BaselineSource(), BaselineSource()
    watcher.monitor.observe("ppo-7", 1, [SAMPLE], 0.0, source=old)
    judge.submit([row("a")], [reward(1.0)], "ppo-7", source=old)
    await scorer.entered()
    watcher.monitor.set_baseline_source("ppo-7", new, 0.0)
    judge.submit([row("b")], [reward(2.0)], "ppo-7", source=new)
    scorer.gate.set()
    await finished(judge)
    window = watcher.monitor.runs["ppo-7"].window
    assert (window["audited"], window["audited_score_positive"]) == (1, 2.0)
