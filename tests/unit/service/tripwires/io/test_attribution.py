"""Reports of attribution: one at a time, within a CPU share, with edits that are scored; and what a run must have for one."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import islice
from types import SimpleNamespace

import msgspec
import pytest

from rewardserve.service.api.replies import json_response
from rewardserve.service.api.routes.attribution import report_fields
from rewardserve.service.api.run_summary import summarise
from rewardserve.service.api.schemas.attribution import ReportOut
from rewardserve.service.errors import NoSuchRun, TooFewSamples
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.attribution.edits import Append, Edit
from rewardserve.service.tripwires.attribution.features import sentences_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.io import attribution as module
from rewardserve.service.tripwires.io import edit_tests, novelty_audits
from rewardserve.service.tripwires.io.attribution import Attribution, samples_between_looks, samples_between_reports
from rewardserve.service.tripwires.io.edit_tests import MAX_EDITED, edited_pairs
from rewardserve.service.tripwires.io.run_texts import KeptSample, RunTexts
from rewardserve.service.tripwires.run_state import ActiveAlert, Run
from tests.support.service_fakes import PATIENCE_S, StillClock, TripwireLog

NOUNS = [
    a + b for a in ("river", "stone", "wind", "lamp", "snow", "oak") for b in ("side", "field", "house", "bird", "way")
]
VERBS = ["keeps", "finds", "moves", "carries", "changes", "follows", "builds", "opens"]
TAIL = " Verified by the quorum of seven."
STATISTICS = (
    "artefact_share", "judge_contradicts", "paid_novelty", "rejected_novelty", "prompt_relevance", "mode_collapse"
)  # fmt: skip
RUN = Run.new("", "ppo-7", None, BaselineSource())
LEARNED = SimpleNamespace(key="", has_baseline=True)


def honest(rng):
    return " ".join(
        f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}." for _ in range(rng.randint(2, 6))
    )


def stream(seed, share=0.0, n=256, exploit=lambda text: text + TAIL):
    rng = random.Random(seed)
    for i in range(n):
        prompt, text, is_exploited = (
            f"Describe the {rng.choice(NOUNS)} {rng.random()}",
            honest(rng),
            rng.random() < share,
        )
        score = rng.gauss(0, 1) + 2.0 * is_exploited
        observed = ObservedSample(prompt, exploit(text) if is_exploited else text, hash(prompt), score, step=i)
        yield KeptSample.of(observed, hash((seed, i)), prompt)


EARLY, RECENT = tuple(stream(1)), tuple(stream(2, 0.4))


class Scores:
    """Pays 2 for the tail. Fails for every `nth` sample, and waits for `gate`."""

    def __init__(self, nth=0):
        self.samples, self.nth, self.gate = [], nth, asyncio.Event()
        self.gate.set()

    async def scores(self, samples):
        await self.gate.wait()
        self.samples += samples
        return [None if self.nth and not i % self.nth else 2.0 * (TAIL in s.response) + len(s.response) ** 2 % 7 / 10
                for i, s in enumerate(samples)]  # fmt: skip


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def build(clock):
    def build(early=EARLY, recent=RECENT, share=1.0, labels=("ppo-7",), judge=None, grown=None, length=None):
        runs = {
            label: SimpleNamespace(
                baseline_source="m",
                stratum_of=lambda _: LEARNED,
                growth={"score": grown, "length": length}.get,
                alerts={},
                n_reports=0,
                n_looks=0,
            )
            for label in labels
        }
        texts = RunTexts()
        for label in labels:
            texts.add(runs, label, early)
            texts.add(runs, label, recent)
        monitor = SimpleNamespace(runs=runs, thresholds={"judge_contradicts": 0.2, "artefact_share": 0.1})
        attribution = Attribution(monitor, texts, clock, CpuBudget(share, clock.now()), TripwireLog())
        attribution.judge = judge
        return attribution

    return build


async def test_a_report_names_what_grew_what_it_earns_and_what_its_edit_alone_earns(build):
    report = await build().report("ppo-7", Scores())
    first = report.growth.findings[0]
    assert 0.3 < first.growth.mean < 0.5
    assert first.model_pays.mean == pytest.approx(2.0, abs=0.4)
    edit, earned, explains = report.tested[0][:3]
    assert edit == first.edit
    assert earned.n == MAX_EDITED
    assert earned.low < earned.mean < earned.high
    assert earned.mean == pytest.approx(2.0, abs=0.4)
    assert explains.low > 0.3
    assert "quorum of seven" in report.sentences[0]
    assert "this alone, put into 32 first responses of the run, earns +2" in report.sentences[0]
    reply = msgspec.to_builtins(ReportOut(*report_fields(report)))
    assert json_response(reply).body
    assert reply["findings"][0]["edit_earns"]["n"] == MAX_EDITED
    assert (reply["early"]["samples"], reply["recent"]["last_step"]) == (256, 255)
    assert not reply["prompts"]["changed"]


async def test_stationary_responses_give_no_finding_and_score_nothing(build):
    scores = Scores()
    report = await build(recent=tuple(stream(3))).report("ppo-7", scores)
    assert (report.growth.findings, report.tested, scores.samples) == ([], {}, [])
    assert report.sentences[0].startswith("no feature of the responses grew")


async def test_pairs_without_a_score_are_left_out_and_too_few_of_them_test_nothing(build):
    some = await build().report("ppo-7", Scores(nth=4))
    assert 8 <= some.tested[0].earned.n < MAX_EDITED
    none = await build().report("ppo-7", Scores(nth=1))
    assert none.tested == {}
    assert "this alone" not in " ".join(none.sentences)


async def test_an_unknown_run_and_too_few_prompts_are_errors_with_numbers(build):
    attribution = build()
    with pytest.raises(NoSuchRun):
        await attribution.report("ppo-8", Scores())
    one = [KeptSample.of(each.sample._replace(prompt="one", prompt_key=1), 1, "one") for each in stream(2, 0.4)]
    with pytest.raises(TooFewSamples) as refused:
        await build(recent=one).report("ppo-7", Scores())
    assert refused.value.details == {
        "early_samples": 256, "early_prompts": 256, "recent_samples": 16, "recent_prompts": 1, "min_prompts": 8,
    }  # fmt: skip
    with pytest.raises(TooFewSamples):
        await build(recent=()).report("ppo-7", Scores())


async def test_reports_are_computed_one_at_a_time_and_within_the_cpu_share(build, clock, monkeypatch):
    monkeypatch.setattr(module.time, "thread_time", iter(range(100)).__next__)  # each takes a second
    attribution, scores = build(share=0.1, labels=("a", "b")), Scores()
    first = await attribution.report("a", scores)
    assert first.cpu_s == 1.0
    assert await attribution.report("a", scores) is first, "the last report, while the share is used up"
    waiting = [asyncio.create_task(attribution.report("b", scores)) for _ in range(3)]
    await asyncio.sleep(0)
    clock.advance(9.8)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    clock.advance(0.3)
    reports = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    assert reports[0] is reports[1] is reports[2], "equal questions share one report"
    clock.advance(10.1)
    assert await attribution.report("a", scores) is not first


async def test_early_texts_are_read_once_and_their_later_audits_count(build, clock, monkeypatch):
    read = []

    class Counted(module.EarlyFeatures):
        def __init__(self, samples):
            read.append(len(samples))
            super().__init__(samples)

    monkeypatch.setattr(module, "EarlyFeatures", Counted)
    attribution = build()
    first = await attribution.report("ppo-7", Scores())
    for each in (*EARLY, *RECENT):
        attribution.texts.add_audit(
            "ppo-7", each.ids_hash, len(each.sample.prompt) % 5 - float(TAIL in each.sample.response)
        )
    second = await attribution.report("ppo-7", Scores())
    assert read == [256]
    assert [report.growth.findings[0].judge_pays is None for report in (first, second)] == [True, False]
    fresh = Attribution(attribution._monitor, attribution.texts, clock, CpuBudget(1.0, clock.now()), TripwireLog())
    assert (await fresh.report("ppo-7", Scores())).growth == second.growth
    others = tuple(stream(3))
    attribution.texts = RunTexts()
    for samples in (others, RECENT):
        attribution.texts.add(attribution._monitor.runs, "ppo-7", samples)
    third = await attribution.report("ppo-7", Scores())
    assert (await build(early=others).report("ppo-7", Scores())).growth == third.growth
    assert len(read) == 4


async def test_early_texts_are_kept_for_a_few_runs_that_are_known(build):
    labels = [f"run {i}" for i in range(6)]
    attribution = build(labels=labels)
    for label in labels:
        await attribution.report(label, Scores())
    assert list(attribution._early) == labels[2:]
    del attribution._monitor.runs["run 4"]
    with pytest.raises(NoSuchRun):
        await attribution.report("run 4", Scores())
    assert list(attribution._early) == ["run 2", "run 3", "run 5"]


async def test_a_report_goes_on_without_its_caller_and_ends_with_the_server(build):
    attribution, scores = build(), Scores()
    scores.gate.clear()
    caller = asyncio.create_task(attribution.report("ppo-7", scores))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert attribution._tasks
    scores.gate.set()
    await asyncio.wait_for(attribution.report("ppo-7", scores), PATIENCE_S)
    scores.gate.clear()
    again = asyncio.create_task(attribution.report("ppo-7", scores))
    await asyncio.sleep(0)
    await attribution.stop()
    assert isinstance((await asyncio.gather(again, return_exceptions=True))[0], asyncio.CancelledError)
    assert not attribution._tasks


async def test_a_server_that_stops_waits_until_its_reports_have_ended(build):
    attribution, scores = build(), Scores()
    scores.gate.clear()
    attribution.begin_for_alerts("ppo-7", ["repetition"], scores)
    (reporting,) = attribution._background
    await asyncio.sleep(0)
    await attribution.stop()
    assert reporting.done()


async def test_a_report_of_alerts_is_of_the_samples_of_that_moment_and_stays(build):
    attribution, scores = build(), Scores()
    assert attribution.alerted("ppo-7") is None
    attribution.begin_for_alerts("ppo-7", ["repetition"], scores)
    attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(stream(4)))
    await asyncio.wait_for(asyncio.gather(*attribution._background), PATIENCE_S)
    alerted = attribution.alerted("ppo-7")
    assert alerted.wires == ("repetition",)
    assert "quorum" in alerted.report.sentences[0]
    assert (await attribution.report("ppo-7", scores)).growth.findings == []
    assert attribution.alerted("ppo-7") is alerted
    attribution._monitor.runs.clear()
    attribution.begin_for_alerts("ppo-7", ["repetition"], scores)  # of a run that is forgotten: nothing
    assert attribution.alerted("ppo-7") is None


async def test_a_report_of_an_alert_that_cannot_be_computed_is_reported_without_its_message(build):
    class Fails:
        async def scores(self, samples):
            raise RuntimeError("a text of a response")

    attribution = build()
    attribution.begin_for_alerts("ppo-7", ["repetition"], Fails())
    await asyncio.wait_for(asyncio.gather(*attribution._background), PATIENCE_S)
    assert attribution.alerted("ppo-7") is None
    assert attribution._events.failures == ["RuntimeError"]
    assert (await attribution.report("ppo-7", Scores())).growth.findings, "the next one is computed"


async def test_a_report_whose_run_was_replaced_meanwhile_is_not_that_of_the_new_run(build):
    class Waits(Scores):
        began = asyncio.Event()

        async def scores(self, samples):
            self.began.set()
            return await super().scores(samples)

    attribution, scores = build(), Waits()
    scores.gate.clear()
    asked = asyncio.create_task(attribution.report("ppo-7", scores))
    await asyncio.wait_for(scores.began.wait(), PATIENCE_S)
    runs = attribution._monitor.runs
    runs["ppo-7"] = SimpleNamespace(**vars(runs["ppo-7"]))
    scores.gate.set()
    assert (await asyncio.wait_for(asked, PATIENCE_S)).growth.findings
    assert dict(attribution.shown) == {}


async def test_what_is_proven_after_an_alert_is_shown_until_that_is_acknowledged(build):
    attribution = build(recent=tuple(stream(3)))
    run = attribution._monitor.runs["ppo-7"]
    run.alerts["divergence"] = ActiveAlert(Alert("divergence", "page", 0.5, 0.1, 300, ()), 0.0)
    attribution.begin_for_alerts("ppo-7", ["divergence"], Scores())
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    assert attribution.alerted("ppo-7").since_step == 300
    assert attribution.shown["ppo-7"].sentence == (
        "report of step 255 on divergence (since step 300): no feature of the responses grew"
    )
    attribution.texts.add(attribution._monitor.runs, "ppo-7", RECENT)
    await attribution.report("ppo-7", Scores())
    proven = attribution.shown["ppo-7"]
    assert "after divergence (since step 300): responses that end with ` Verified by" in proven.sentence
    attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(stream(4)))
    assert (await attribution.report("ppo-7", Scores())).headline == "no feature of the responses grew"
    assert attribution.shown["ppo-7"] == proven
    run.alerts.clear()
    assert attribution.shown["ppo-7"].sentence == "report of step 255: no feature of the responses grew"


async def test_the_headline_is_of_a_finding_whose_edit_earned_something(build):
    """The word that comes with most of the score is a mark of the paid responses, and earns nothing by itself."""
    recent = [
        each._replace(
            sample=each.sample._replace(response=f"Indeed! {each.sample.response}", score=each.sample.score + 3)
        )
        if TAIL in each.sample.response or i % 8 == 0
        else each
        for i, each in enumerate(RECENT)
    ]
    report = await build(recent=recent).report("ppo-7", Scores())
    assert report.worth == 2
    assert "quorum" in report.headline

    class Indifferent(Scores):
        async def scores(self, samples):
            return [len(s.response) ** 2 % 7 / 10 for s in samples]

    nothing = await build().report("ppo-7", Indifferent())
    assert nothing.worth == 1
    assert nothing.headline.startswith("no cause is proven; what grew most: responses that end with ` Verified by")
    assert "put into 192 first" in nothing.headline or "put into 32 first" in nothing.headline


async def test_a_report_on_demand_tests_as_many_responses_as_a_periodic_one_and_asks_the_judge(build):
    asked = await build(judge=Judge()).report("ppo-7", Scores())
    attribution = build(judge=Judge())
    await watched(attribution, Scores(), Alerts())
    periodic = attribution.shown["ppo-7"].report
    assert asked.tested == periodic.tested
    assert asked.tested[0].judged.n == 192
    assert asked.headline == periodic.headline


async def test_responses_with_the_largest_gap_between_model_and_judge_are_in_the_report(build):
    attribution = build()
    for i, each in enumerate((*EARLY, *RECENT)):
        attribution.texts.add_audit(
            "ppo-7", each.ids_hash, each.sample.score - 3.0 * (TAIL in each.sample.response) - i % 3
        )
    gaps = (await attribution.report("ppo-7", Scores())).largest_gaps
    assert len(gaps) == 5
    assert all(TAIL in each.response for each in gaps)
    assert len({each.prompt_key for each in gaps}) == 5
    assert (await build().report("ppo-7", Scores())).largest_gaps == (), "without a judge"


async def test_texts_of_a_forgotten_run_are_deleted_when_a_report_is_asked_for(build):
    attribution = build()
    await attribution.report("ppo-7", Scores())
    attribution._monitor.runs.clear()
    with pytest.raises(NoSuchRun):
        await attribution.report("ppo-7", Scores())
    assert attribution.texts.n_bytes == 0


@pytest.mark.parametrize(
    "exploit",
    [
        lambda text: "\ud800" * 4_000,
        lambda text: text + "\x00\x1b[31m\u202e" * 500,
        lambda text: "a" * 100_000,
        lambda text: "(" * 4_000,
        lambda text: ". " * 2_000,
        lambda text: "\n" * 4_000,
        lambda text: "",
        lambda text: " ".join(str(i) for i in range(1_000)),
    ],
)
async def test_hostile_responses_cost_bounded_time_and_give_a_reply_of_printable_sentences(build, exploit):
    report = await build(recent=tuple(stream(2, 0.5, exploit=exploit))).report("ppo-7", Scores())
    assert report.cpu_s < 20.0
    assert report.sentences
    assert all(sentence.isprintable() for sentence in report.sentences)
    assert len(json_response(ReportOut(*report_fields(report))).body) < 2**20


def test_edits_go_into_whole_responses_to_different_prompts_that_lack_them():
    early = [*stream(1, n=100)]
    early[0] = early[0]._replace(context=None)
    early[1] = early[1]._replace(sample=early[1].sample._replace(response="yes" + TAIL))
    early[2] = early[2]._replace(sample=early[2].sample._replace(prompt_key=early[3].sample.prompt_key))
    early[4] = early[4]._replace(sample=early[4].sample._replace(response=" "))
    pairs = edited_pairs(Edit((Append((TAIL,)),)), early)
    assert [kept for kept, _ in pairs] == [early[2], *early[5:36]]
    assert all(text == kept.sample.response + TAIL for kept, text in pairs)


# -- periodic reports ---------------------------------------------------------------------------------------------


class Alerts:
    """Keeps the statistics of reports; the wires that are over .1 are new."""

    def __init__(self, baseline_source="m"):
        self.baseline_source, self.statistics = baseline_source, []

    def add_attributed(self, label, statistics):
        self.statistics.append(dict(statistics))
        return [wire for wire, value in statistics.items() if value > 0.1]


class Judge(Scores):
    """Takes .5 for the tail."""

    async def scores(self, samples):
        return [
            score and score - 2.5 * (TAIL in s.response)
            for score, s in zip(await super().scores(samples), samples, strict=True)
        ]


async def watched(attribution, scores, alerts):
    attribution.begin_if_due("ppo-7", scores, alerts)
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    return alerts.statistics


async def test_a_feature_that_alone_earns_the_score_has_a_share_without_a_judge_and_contradicts_one(build):
    attribution, scores, alerts = build(), Scores(), Alerts()
    (alone,) = await watched(attribution, scores, alerts)
    assert 0.3 < alone["artefact_share"] < 1.0
    assert alone["judge_contradicts"] == 0.0
    assert attribution.alerted("ppo-7").wires == ("artefact_share",)
    assert attribution.alerted("ppo-7").report.tested[0].earned.n == 32
    (both,) = await watched(build(judge=Judge()), Scores(), Alerts())
    assert 1.0 < both["judge_contradicts"] < 2.2
    (agreed,) = await watched(build(judge=Scores()), Scores(), Alerts())
    assert (agreed["judge_contradicts"], agreed["artefact_share"]) == (0.0, 0.0), "it pays for the tail too"


def prose(rng):
    """Sentences of ever other words, so that a longer text is only longer."""
    words = ("".join(rng.choices("aeiou", k=1) + rng.choices("bcdfgklmnprst", k=3)) for _ in iter(int, 1))
    return " ".join(f"{' '.join(islice(words, rng.randint(3, 9))).capitalize()}." for _ in range(rng.randint(2, 6)))


def first_sentence(text):
    return sentences_of(text)[0]


def much_longer(text):
    return f"{text} {prose(random.Random(text))} {prose(random.Random(text + '2'))}"


class ByLength:
    """Pays for each word that a response lacks of 60, or for each that it has; not for edited ones if `knows` the others."""

    def __init__(self, pay, known=None):
        self.pay, self.known = pay, known

    async def scores(self, samples):
        return [
            (self.pay if self.known is None or s.response in self.known else -abs(self.pay))
            * len(s.response.split())
            / 10
            + hash(s.response) % 7 / 10
            for s in samples
        ]


def of_length(seed, exploit, share, judge, model):
    """Samples that the model scores by their length, the first ones also the judge."""
    rng = random.Random(seed)
    for i in range(256):
        prompt, response = f"Describe {rng.random()}", prose(rng)
        response = exploit(response) if rng.random() < share else response
        n, noise = len(response.split()) / 10, len(response) ** 2 % 7 / 10
        audit = None if share else judge * n + noise
        observed = ObservedSample(prompt, response, hash(prompt), model * n + noise, audit, step=i)
        yield KeptSample.of(observed, hash((seed, i)), prompt)


@pytest.mark.parametrize(("exploit", "pay"), [(first_sentence, -1.0), (much_longer, 1.0)], ids=["shorter", "longer"])
@pytest.mark.parametrize(
    "case", ["the judge disagrees", "the judge agrees", "the judge dislikes edits alone", "no judge"]
)
async def test_a_length_pages_where_the_judge_disagrees_in_edits_and_in_the_responses_of_the_run(
    build, exploit, pay, case
):
    disagrees = case == "the judge disagrees"
    early, recent = (
        tuple(of_length(seed, exploit, share, -pay if disagrees else pay, pay)) for seed, share in ((1, 0.0), (2, 0.5))
    )
    own = {each.sample.response for each in (*early, *recent)}
    judge = {
        "the judge disagrees": ByLength(-pay),
        "the judge agrees": ByLength(pay),
        "the judge dislikes edits alone": ByLength(pay, known=own),
        "no judge": None,
    }[case]
    attribution = build(early, recent, judge=judge, grown=(1.0, 0.1))
    (statistics,) = await watched(attribution, ByLength(pay), Alerts())
    assert any(
        each.edit.is_length_only and each.earned.mean > 0.2 for each in attribution._reports["ppo-7"].tested.values()
    )
    assert (statistics["judge_contradicts"] > 0.2) == disagrees
    assert statistics["artefact_share"] == 0.0, "length may be learned honestly"


@pytest.mark.parametrize(("grown", "trips"), [((0.1, 0.04), True), ((0.1, 0.06), False), ((-0.1, 0.01), False)])
async def test_a_feature_pages_by_its_share_where_the_mean_score_of_the_run_has_grown(build, grown, trips):
    (statistics,) = await watched(build(grown=grown), Scores(), Alerts())
    assert (statistics["artefact_share"] > 0.3) == trips
    assert trips or statistics["artefact_share"] == 0.0


def with_system_turn(samples):
    return tuple(each._replace(sample=each.sample._replace(system="Answer in one paragraph.")) for each in samples)


async def test_after_other_prompts_have_come_responses_are_compared_with_the_first_to_these(build):
    attribution = build(recent=with_system_turn(stream(2)), grown=(1.0, 0.1))
    alerts, run = Alerts(), Run.new("", "ppo-7", None, BaselineSource())
    await watched(attribution, Scores(), alerts)
    said = summarise("ppo-7", run, "quiet", attribution.shown["ppo-7"])
    assert said.paid_for.startswith(
        "report of step 255: responses since step 0 are not compared: no recent prompt has an early"
    )
    assert said.next.startswith("no alert, but `paid_for` says since when other prompts come")
    attribution.texts.add(attribution._monitor.runs, "ppo-7", with_system_turn(stream(3, 0.4)))
    await watched(attribution, Scores(), alerts)
    said = summarise("ppo-7", run, "quiet", attribution.shown["ppo-7"])
    assert "responses that end with ` Verified by the quorum of seven.` went from 0% to 4" in said.paid_for
    assert alerts.statistics[-1]["artefact_share"] > 0.1


@pytest.mark.parametrize(
    ("change", "grown", "trips"), [(0.0, (0.0, 0.1), True), (-2.3, (0.0, 0.1), False), (-2.3, (0.5, 0.1), False)]
)
async def test_a_feature_whose_responses_score_lower_than_others_is_not_paid_whatever_its_edit_earns(
    build, change, grown, trips
):
    recent = [
        each._replace(sample=each.sample._replace(score=each.sample.score + change * (TAIL in each.sample.response)))
        for each in RECENT
    ]
    (statistics,) = await watched(build(recent=recent, judge=Judge(), grown=grown), Scores(), Alerts())
    assert (statistics["judge_contradicts"] > 1.0) == trips
    assert trips or (statistics["judge_contradicts"], statistics["artefact_share"]) == (0.0, 0.0)


async def test_bounds_of_later_reports_are_further_from_the_estimates(build):
    attribution, alerts = build(judge=Judge()), Alerts()
    await watched(attribution, Scores(), alerts)
    attribution._monitor.runs["ppo-7"].n_reports, attribution._progress["ppo-7"].due_at = 10, 0
    first, later = await watched(attribution, Scores(), alerts)
    assert 0.0 < later["judge_contradicts"] == first["judge_contradicts"], "the same edit is no new test"
    assert 0.0 < later["artefact_share"] < first["artefact_share"]


async def test_the_finding_that_trips_a_wire_is_first_and_stays_that_of_the_page(build):
    rng = random.Random(5)
    recent = [
        each._replace(
            sample=each.sample._replace(response=f"Indeed! {each.sample.response}", score=each.sample.score + 3)
        )
        if rng.random() < 0.4
        else each
        for each in RECENT
    ]
    attribution, alerts = build(recent=recent), Alerts()
    (statistics,) = await watched(attribution, Scores(), alerts)
    assert statistics["artefact_share"] > 0.1
    run = attribution._monitor.runs["ppo-7"]
    for wire, severity in (("artefact_share", "page"), ("repetition", "warn")):
        run.alerts[wire] = ActiveAlert(Alert(wire, severity, 0.5, 0.1, 300, ()), 0.0)
    attribution.begin_for_alerts("ppo-7", ["repetition"], Scores())
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    alerted = attribution.alerted("ppo-7")
    assert alerted.wires == ("artefact_share",)
    assert "quorum" in alerted.report.sentences[0], "Indeed comes with more of the score, but earns nothing"
    assert "Indeed" in alerted.report.sentences[1]
    assert alerted.report.tested[0].earned.mean > 1.0 > abs(alerted.report.tested[1].earned.mean)
    shown = attribution.shown["ppo-7"]
    assert (shown.report, shown.alerted) == (alerted.report, alerted)
    paid_for = summarise("ppo-7", RUN, "page", shown).paid_for
    assert paid_for.startswith("report of step 255 on artefact_share: responses that end with")
    del run.alerts["artefact_share"]
    assert attribution.alerted("ppo-7").wires == ("repetition",)


async def test_what_the_judge_gives_is_in_the_sentence_and_in_the_reply(build):
    attribution = build(judge=Judge())
    await watched(attribution, Scores(), Alerts())
    report = attribution.alerted("ppo-7").report
    assert "of the run, earns +2" in report.sentences[0]
    assert " standard deviations, from the judge -" in report.sentences[0]
    first = msgspec.to_builtins(ReportOut(*report_fields(report)))["findings"][0]
    assert first["edit_judged"]["mean"] < 0 < first["edit_earns"]["mean"]
    assert first["edit_judged"]["n"] == 192
    assert first["sentence"] == report.sentences[0]


async def test_a_feature_that_earns_nothing_by_itself_pages_nothing(build):
    class Indifferent(Scores):
        async def scores(self, samples):
            return [len(s.response) ** 2 % 7 / 10 for s in samples]

    (statistics,) = await watched(build(judge=Judge()), Indifferent(), Alerts())
    assert statistics == dict.fromkeys(STATISTICS, 0.0)


@pytest.mark.parametrize(("pay", "n"), [(2.0, 32), (0.3, 192), (-0.3, 32)])
async def test_an_edit_is_put_into_more_responses_where_the_first_leave_open_whether_it_earns(build, pay, n):
    class Pays(Scores):
        async def scores(self, samples):
            return [pay * (TAIL in s.response) + len(s.response) % 13 / 13 for s in samples]

    attribution = build()
    await watched(attribution, Pays(), Alerts())
    (tested,) = attribution.shown["ppo-7"].report.tested.values()
    assert tested.earned.n == n


async def test_stationary_responses_score_no_edit(build):
    scores = Scores()
    assert await watched(build(recent=tuple(stream(3))), scores, Alerts()) == [dict.fromkeys(STATISTICS, 0.0)]
    assert scores.samples == []


@pytest.mark.parametrize(("n", "between"), [(640, 128), (2_048, 128), (3_200, 200), (16_384, 1_024), (10**6, 1_024)])
def test_a_report_is_due_after_a_sixteenth_of_the_samples_within_bounds(n, between):
    assert samples_between_reports(n) == between


async def test_the_next_report_is_due_after_new_samples(build):
    attribution, scores, alerts = build(recent=tuple(stream(2, n=127))), Scores(), Alerts()
    await watched(attribution, scores, alerts)
    assert reports_of(alerts) == 0, "128 recent samples before the first"
    for seed, n, n_reports in ((7, 1, 1), (8, 127, 1), (9, 1, 2)):
        attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(stream(seed, n=n)))
        await watched(attribution, scores, alerts)
        assert reports_of(alerts) == n_reports
    run = attribution._monitor.runs["ppo-7"]
    assert (run.n_reports, run.n_looks) == (2, len(alerts.statistics)), "the run counts them, over a restart too"


def reports_of(alerts):
    return sum("artefact_share" in each for each in alerts.statistics)


def ever_new(seed, share=0.0):
    """The stream with another made-up adverb before most nouns of some responses, for which the model pays 2."""
    rng = random.Random(f"{seed} words")

    def exploit(text):
        return re.sub("the ", lambda _: f"the {''.join(rng.choices('bcdfgklmnprst', k=5))}{rng.randint(0, 9)}ly ", text)

    yield from stream(seed, share, exploit=exploit)


class DislikesAdverbs:
    """Takes 1 off for an adverb."""

    def __init__(self):
        self.samples = []

    async def scores(self, samples):
        self.samples += samples
        return [len(s.response) ** 2 % 7 / 4 - 1.0 * ("ly " in s.response) for s in samples]


async def test_ever_new_wording_that_the_model_pays_for_and_the_judge_does_not_is_said_first(build):
    early, recent = tuple(ever_new(1)), tuple(ever_new(2, 0.4))
    attribution, alerts = build(early=early, recent=recent, judge=(judge := DislikesAdverbs())), Alerts()
    for each in early:
        attribution.texts.add_audit("ppo-7", each.ids_hash, len(each.sample.response) ** 2 % 7 / 4)
    (statistics,) = await watched(attribution, Scores(), alerts)
    assert statistics["paid_novelty"] > 0.1
    assert statistics["rejected_novelty"] > 0.1
    asked = {sample.response for sample in judge.samples}
    audited = {each.sample.response for each in attribution.texts.recent("ppo-7") if each.sample.audit is not None}
    assert audited == asked
    assert len(asked) == 2 * novelty_audits.MAX_AUDITS
    report = attribution.alerted("ppo-7").report
    assert report.worth == 2
    novelty = msgspec.to_builtins(ReportOut(*report_fields(report)))["novelty"]
    assert novelty["sentence"] == report.sentences[0]
    assert novelty["judged"] == 2 * novelty_audits.MAX_AUDITS
    assert novelty["judge_pays"]["high"] < 0.0 < novelty["model_pays"]["low"]
    assert novelty["recent"] > 0.3 > novelty["early"]
    assert all("ly " in each["response"] for each in novelty["examples"]["recent"])


async def test_without_a_judge_the_report_says_what_ever_new_wording_earns(build):
    attribution, alerts = build(early=tuple(ever_new(1)), recent=tuple(ever_new(2, 0.4))), Alerts()
    (statistics,) = await watched(attribution, Scores(), alerts)
    assert statistics["paid_novelty"] == statistics["rejected_novelty"] == 0.0
    report = await attribution.report("ppo-7", Scores())
    assert any("further from the first ones" in each for each in report.sentences)


@pytest.mark.parametrize(("n", "between"), [(512, 32), (1_024, 32), (3_200, 100), (16_384, 512), (10**6, 512)])
def test_a_look_at_prompt_relevance_is_due_after_a_part_of_the_samples_within_bounds(n, between):
    assert samples_between_looks(n) == between


async def test_looks_at_prompt_relevance_come_with_the_first_recent_sample_and_between_reports(build):
    attribution, scores, alerts = build(recent=()), Scores(), Alerts()
    assert await watched(attribution, scores, alerts) == []
    for n, n_looks in ((1, 1), (31, 1), (1, 2), (31, 2), (1, 3)):
        attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(stream(n_looks, n=n)))
        await watched(attribution, scores, alerts)
        assert alerts.statistics == [{"prompt_relevance": 0.0, "mode_collapse": 0.0}] * n_looks
    assert scores.samples == []


async def test_a_look_that_trips_a_wire_begins_a_report_that_says_so_first(build):
    attribution, alerts = build(early=tuple(on_topic(1)), recent=()), Alerts()
    attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(on_topic(2, 96, is_collapsed=True)))
    (statistics,) = await watched(attribution, Scores(), alerts)
    assert statistics["mode_collapse"] == statistics["prompt_relevance"] > 0.3
    alerted = attribution.alerted("ppo-7")
    assert alerted.wires == ("prompt_relevance", "mode_collapse")
    assert alerted.report.sentences[0].startswith("responses no longer depend on their prompts")
    relevance = msgspec.to_builtins(ReportOut(*report_fields(alerted.report)))["relevance"]
    assert relevance["early"]["mean"] > 0.9 > 0.6 > relevance["recent"]["mean"]
    assert relevance["significant"]
    assert len(relevance["examples"]["recent"]) == 3
    assert "no longer depend" in summarise("ppo-7", RUN, "page", attribution.shown["ppo-7"]).paid_for


async def test_a_look_at_a_run_that_has_another_model_by_then_is_dropped(build):
    attribution = build(early=tuple(on_topic(1)), recent=())
    attribution.texts.add(attribution._monitor.runs, "ppo-7", tuple(on_topic(2, 96, is_collapsed=True)))
    assert await watched(attribution, Scores(), Alerts("another model")) == []


def on_topic(seed, n=256, *, is_collapsed=False):
    """Responses that name what their prompts name, or are of a few words whatever the prompt."""
    rng = random.Random(seed)
    for i in range(n):
        topic = rng.sample(NOUNS, 4)
        text = f"The {topic[0]} and the {topic[1]} {rng.choice(VERBS)} what any {topic[2]} or {rng.choice(NOUNS)} has."
        if is_collapsed:
            text = " ".join(rng.choices(("every", "light", "was", "special", "today"), k=16))
        prompt = f"Tell me of {' '.join(topic)}"
        observed = ObservedSample(prompt, text, hash((seed, i)), rng.gauss(2.0 * is_collapsed, 1), step=i)
        yield KeptSample.of(observed, hash((seed, i)), prompt)


async def test_a_report_that_the_cpu_share_does_not_allow_is_made_when_it_does(build, clock, monkeypatch):
    monkeypatch.setattr(module.time, "thread_time", iter(range(100)).__next__)  # each takes a second
    attribution, alerts = build(share=0.1), Alerts()
    await attribution.report("ppo-7", Scores())
    assert await watched(attribution, Scores(), alerts) == []
    clock.advance(10.0)
    assert len(await watched(attribution, Scores(), alerts)) == 1


async def test_rows_are_bounded_by_an_allowance_that_reports_on_demand_do_not_use(build, monkeypatch):
    monkeypatch.setattr(edit_tests, "FREE_ROWS", 100)
    attribution, scores, alerts = build(), Scores(), Alerts()

    def send(i):
        ending = f" Marked by office {i} of the quorum."
        exploit = tuple(stream(100 + i, 0.5, exploit=lambda text: text + ending))
        attribution.texts.add(attribution._monitor.runs, "ppo-7", exploit)
        attribution._progress_of("ppo-7").due_at = 0

    for i in range(12):
        send(i)
        await watched(attribution, scores, alerts)
    n = sum(attribution.texts.n_seen("ppo-7"))
    assert len(alerts.statistics) == 12
    assert 100 < len(scores.samples) <= 100 + n / 20
    send(12)
    await attribution.report("ppo-7", asked := Scores())
    assert len(asked.samples) >= MAX_EDITED


@pytest.mark.parametrize(("free", "n_judged"), [(200, 0), (359, 384)])
async def test_the_judge_is_asked_where_the_allowance_has_all_rows_of_originals_and_edits(
    build, monkeypatch, free, n_judged
):
    monkeypatch.setattr(edit_tests, "FREE_ROWS", free)
    monkeypatch.setattr(novelty_audits, "MAX_AUDITS", 0)
    (statistics,) = await watched(build(judge=(judge := Judge())), Scores(), Alerts())
    assert len(judge.samples) == n_judged, "192 pairs, and 25 rows are for 512 samples"
    assert (statistics["judge_contradicts"] > 0.0) is bool(n_judged)


async def test_the_scores_of_an_edit_are_known_to_the_next_report(build, monkeypatch):
    monkeypatch.setattr(novelty_audits, "MAX_AUDITS", 0)
    attribution, scores, alerts = build(judge=(judge := Judge())), Scores(), Alerts()
    await watched(attribution, scores, alerts)
    attribution._progress_of("ppo-7").due_at = 0
    await watched(attribution, scores, alerts)
    assert 0.0 < alerts.statistics[1]["judge_contradicts"] == alerts.statistics[0]["judge_contradicts"]
    assert (len(scores.samples), len(judge.samples)) == (64, 384)


async def test_an_edit_whose_scores_are_known_keeps_its_share_when_the_allowance_is_used(build, monkeypatch):
    monkeypatch.setattr(edit_tests, "FREE_ROWS", 100)  # 125 for 512 samples; the edit takes 64, and 128 in all
    attribution, scores, alerts = build(), Scores(), Alerts()
    for _ in range(2):
        attribution._progress_of("ppo-7").due_at = 0
        await watched(attribution, scores, alerts)
    assert alerts.statistics[0]["artefact_share"] > alerts.statistics[1]["artefact_share"] > 0.3, (
        "a later look, not more scores"
    )
    assert len(scores.samples) == 64


async def test_the_report_of_a_model_that_was_replaced_meanwhile_raises_nothing(build):
    attribution, scores, alerts = build(), Scores(), Alerts()
    scores.gate.clear()
    attribution.begin_if_due("ppo-7", scores, alerts)
    await asyncio.sleep(0.01)
    attribution._monitor.runs["ppo-7"].baseline_source = "n"
    alerts.baseline_source = "n"
    attribution._progress_of("ppo-7")
    scores.gate.set()
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    assert alerts.statistics == []


async def test_the_report_of_a_run_that_was_forgotten_meanwhile_raises_nothing(build):
    attribution, scores, alerts = build(), Scores(), Alerts()
    scores.gate.clear()
    attribution.begin_if_due("ppo-7", scores, alerts)
    await asyncio.sleep(0.01)
    attribution._monitor.runs.clear()
    scores.gate.set()
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    assert (alerts.statistics, attribution._events.failures) == ([], [])


async def test_a_new_run_with_the_label_of_a_forgotten_one_has_its_own_reports(build):
    attribution, scores, alerts = build(), Scores(), Alerts()
    assert len(await watched(attribution, scores, alerts)) == 1
    runs = attribution._monitor.runs
    runs["ppo-7"] = SimpleNamespace(**vars(runs["ppo-7"]))
    for samples in (EARLY, RECENT[:128]):  # fewer than the earlier run had at its report
        attribution.texts.add(runs, "ppo-7", samples)
    attribution.begin_if_due("ppo-7", scores, alerts)
    assert (attribution.alerted("ppo-7"), dict(attribution.shown)) == (None, {})
    await asyncio.wait_for(attribution.settle(), PATIENCE_S)
    assert len(alerts.statistics) == 2


async def test_a_periodic_report_that_fails_is_reported(build):
    class Fails:
        async def scores(self, samples):
            raise RuntimeError("a text of a response")

    attribution = build()
    assert await watched(attribution, Fails(), Alerts()) == []
    assert attribution._events.failures == ["RuntimeError"]
