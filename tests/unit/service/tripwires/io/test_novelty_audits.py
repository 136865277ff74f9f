"""The judge scores the most novel responses and as many familiar ones, blind to the score, within an allowance."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.effects import estimate
from rewardserve.service.tripwires.attribution.findings import Novelty
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.io import recent_audits
from rewardserve.service.tripwires.io.novelty_audits import MAX_AUDITS, NoveltyAudits
from rewardserve.service.tripwires.io.run_texts import KeptSample

N = 200


def kept(i, score=0.0, audit=None, seed=0, context="prompt"):
    return KeptSample(ObservedSample("prompt", f"response {seed} {i}", i, score, audit, i), hash((seed, i)), context)


EARLY = [kept(i, score=i % 5, audit=float(i % 7), seed=9) for i in range(64)]


def recent(seed=0, **known):
    """The second half is novel, and the model pays 3 for it."""
    return [kept(i, 3.0 * (i >= N // 2) + i % 3, seed=seed, **known) for i in range(N)]


def novelty(z=6.0):
    half = (1 << N // 2) - 1
    return Novelty(tuple(map(float, range(N))), half << N // 2, half, 0.1, estimate(0.4, 0.05, 99.0, N), z, (), (), ())


class Judge:
    """Takes `penalty` off for the novel half."""

    def __init__(self, penalty=0.0):
        self.samples, self.penalty = [], penalty

    async def scores(self, samples):
        self.samples += samples
        return [
            float(int(s.response.split()[2]) % 3) - self.penalty * (int(s.response.split()[2]) >= N // 2)
            for s in samples
        ]

    @property
    def places(self):
        return [int(sample.response.split()[2]) for sample in self.samples]


async def test_the_most_novel_and_as_many_familiar_ones_at_random_are_scored_once():
    audits, judge = NoveltyAudits(), Judge()
    scores = await audits.compare(10_000, novelty(), EARLY, recent(), judge, 1)
    assert judge.places[:MAX_AUDITS] == list(range(N - 1, N - 1 - MAX_AUDITS, -1))
    assert max(judge.places[MAX_AUDITS:]) < N // 2
    assert len(set(judge.places)) == len(scores) == 2 * MAX_AUDITS
    assert max(judge.places[MAX_AUDITS:]) > N // 4, "not the first ones, which are of one step"
    await audits.compare(10_000, novelty(), EARLY, recent(), judge, 2)
    assert len(set(judge.places)) == audits.n_rows == 4 * MAX_AUDITS


async def test_the_choice_does_not_depend_on_scores():
    first, second = Judge(), Judge()
    await NoveltyAudits().compare(10_000, novelty(), EARLY, recent(), first, 1)
    others = [each._replace(sample=each.sample._replace(score=-each.sample.score)) for each in recent()]
    await NoveltyAudits().compare(10_000, novelty(), EARLY, others, second, 1)
    assert first.places == second.places


async def test_scores_of_several_reports_add_up():
    audits, judge, found = NoveltyAudits(), Judge(penalty=2.0), []
    for report in range(1, 7):
        await audits.compare(10_000, novelty(), EARLY, recent(report), judge, report)
        found.append(audits.pay.judge.n)
    assert found == [96, 192, 288, 384, 480, 576]
    assert audits.pay.rejected > 0.1
    assert audits.pay.paid_beyond_judge > 0.02


async def test_samples_that_the_judge_has_scored_anyway_count_too():
    audits = NoveltyAudits()
    await audits.compare(10_000, novelty(), EARLY, recent(audit=1.0), judge := Judge(), 1)
    assert (len(judge.samples), audits.pay.judge.n) == (0, N)


async def test_a_sample_stays_what_it_was_at_first():
    audits, judge = NoveltyAudits(), Judge(penalty=2.0)
    await audits.compare(10_000, novelty(), EARLY, recent(), judge, 1)
    before = audits.pay.model.mean
    turned = novelty()._replace(high=novelty().low, low=novelty().high)
    scored = [
        each._replace(sample=each.sample._replace(audit=0.0))
        for each in recent()
        if each.sample.prompt_key in judge.places
    ]
    await audits.compare(10_000, turned, EARLY, scored, None, 2)
    assert audits.pay.model.mean == before


@pytest.mark.parametrize(("n_samples", "rows"), [(0, [10, 10, 10]), (200, [20, 20, 20]), (100_000, [96, 192, 288])])
async def test_rows_are_within_an_allowance_that_grows_with_the_run(monkeypatch, n_samples, rows):
    monkeypatch.setattr(recent_audits, "FREE_AUDITS", 10)
    audits = NoveltyAudits()
    for report, n in enumerate(rows, 1):
        await audits.compare(n_samples, novelty(), EARLY, recent(report), Judge(), report)
        assert audits.n_rows == n


@pytest.mark.parametrize("sample", [{"context": None}, {"z": 3.4}], ids=["cannot be scored again", "not told apart"])
async def test_the_judge_is_not_asked(sample):
    audits, judge = NoveltyAudits(), Judge()
    of_report = novelty(sample.pop("z", 6.0))
    await audits.compare(10_000, of_report, EARLY, recent(**sample), judge, 1)
    assert judge.samples == []
    assert audits.pay.judge is None
    assert audits.pay.model.mean > 1.0


async def test_without_a_judge_or_novelty():
    audits = NoveltyAudits()
    await audits.compare(10_000, novelty(), EARLY, recent(), None, 1)
    assert (audits.pay.judge, audits.pay.is_paid) == (None, True)
    await audits.compare(10_000, None, EARLY, recent(), Judge(), 2)
    assert audits.pay is None


async def test_after_an_acknowledgement_earlier_samples_are_forgotten():
    audits, judge = NoveltyAudits(), Judge(penalty=2.0)
    for report, alerts in ((1, {}), (2, {"paid_novelty": 1}), (3, {"paid_novelty": 1})):
        audits.restart_after_acknowledgement(alerts)
        await audits.compare(10_000, novelty(), EARLY, recent(report), judge, report)
    assert audits.pay.judge.n == 288
    audits.restart_after_acknowledgement({"length_high": 1})
    await audits.compare(10_000, novelty(), EARLY, recent(4), judge, 4)
    assert audits.pay.judge.n == 96


async def test_the_latest_judged_samples_are_kept(monkeypatch):
    monkeypatch.setattr(recent_audits, "N_KEPT", 40)
    audits = NoveltyAudits()
    for report in range(1, 4):
        await audits.compare(10_000, novelty(), EARLY, recent(report), Judge(), report)
    assert audits.pay.judge.n == 80


async def test_a_response_that_was_cut_off_is_audited_without_an_end():
    judge = Judge()
    cut = [each._replace(missing_end=i >= N // 2) for i, each in enumerate(recent())]
    await NoveltyAudits().compare(10_000, novelty(), EARLY, cut, judge, 1)
    ends = [sample.finish_reason for sample in judge.samples]
    assert ends == ["length" if place >= N // 2 else "stop" for place in judge.places]
    assert set(ends) == {"stop", "length"}
