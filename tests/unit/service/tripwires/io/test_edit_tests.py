"""The statistics of a tested edit, and the scores of a judge that are enough for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rewardserve.service.tripwires.attribution.edits import Append, Cut, Edit
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, estimate
from rewardserve.service.tripwires.attribution.findings import Feature, Finding
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.verdicts import lower_bound
from rewardserve.service.tripwires.io import edit_tests
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.looks import critical_z

TAIL = " Verified."
THRESHOLDS = {"judge_contradicts": 0.2, "artefact_share": 0.1}
LARGE = estimate(2.0, 0.01, 60.0, 64)
APPEND = Edit((Append((TAIL,)),))
EARLY = tuple(
    KeptSample.of(ObservedSample(f"p{i}", "word " * (i + 1), i, float(i), step=0), i, f"p{i}") for i in range(24)
)


def finding(edit):
    return Finding((Feature("word"),), 0.0, 0.5, LARGE, 9.0, None, None, 0, 0.0, (), (), edit)


class Scores:
    """Pays `pay` for the tail, and has a score for the first `n` prompts, of which no two are equal unless `is_flat`."""

    def __init__(self, pay, n=24, is_flat=False):
        self.pay, self.n, self.is_flat = pay, n, is_flat

    async def scores(self, samples):
        self.finish_reasons = {sample.finish_reason for sample in samples}
        indices = [int(sample.prompt.removeprefix("p")) for sample in samples]
        return [
            self.pay * (TAIL in sample.response) + (0.0 if self.is_flat else i) if i < self.n else None
            for i, sample in zip(indices, samples, strict=True)
        ]


@pytest.mark.parametrize(("edit", "has_share"), [(APPEND, True), (Edit((Cut("word", 10),)), False)])
def test_an_edit_of_the_length_alone_explains_no_share_of_the_growth(edit, has_share):
    share = edit_tests.TestedEdit(edit, LARGE, LARGE).artefact_share(finding(edit), SimpleNamespace(score_growth=LARGE))
    assert (share > 0.3) == has_share
    assert has_share or share == 0.0


@pytest.mark.parametrize(
    ("judge", "is_judged"),
    [
        (Scores(0.5), True),
        (Scores(0.5, n=MIN_PROMPTS), True),
        (Scores(0.5, n=MIN_PROMPTS - 1), False),
        (Scores(0.5, n=0), False),
        (Scores(0.5, is_flat=True), False),
        (None, False),
    ],
)
async def test_a_judge_has_an_effect_where_its_scores_of_enough_prompts_differ(judge, is_judged):
    growth = SimpleNamespace(findings=[finding(APPEND)], score_growth=LARGE)
    tested = await edit_tests.EditTests().test(10_000, growth, [0], EARLY, Scores(60.0), judge, THRESHOLDS)
    assert (tested[0].judged is not None) == is_judged
    if is_judged:
        assert tested[0].judged.mean > 0.0
        assert tested[0].judged.n == judge.n


@pytest.mark.parametrize(
    ("thresholds", "is_asked"),
    [
        ({"judge_contradicts": 5.0, "artefact_share": 1.0}, False),
        ({"judge_contradicts": 1.0, "artefact_share": 1.0}, True),
        ({"judge_contradicts": 5.0, "artefact_share": 0.0}, True),
        ({}, False),
    ],
)
async def test_the_judge_is_asked_where_an_edit_may_trip_a_wire_by_the_thresholds_of_the_server(thresholds, is_asked):
    growth = SimpleNamespace(findings=[finding(APPEND)], score_growth=LARGE)
    pays, judge = Scores(20.0), Scores(0.5)
    tested = await edit_tests.EditTests().test(10_000, growth, [0], EARLY, pays, judge, thresholds)
    assert 1.0 < tested[0].earned.mean < 5.0
    assert (tested[0].judged is not None) == is_asked


class PaysForTheWhole:
    """Pays for a text, and counts its samples."""

    def __init__(self, text):
        self.text, self.n = text, 0

    async def scores(self, samples):
        self.n += len(samples)
        return [9.0 * (self.text in sample.response) + int(sample.prompt.removeprefix("p")) for sample in samples]


@pytest.mark.parametrize(
    ("text", "pays", "chosen", "n"),
    [
        (" So", estimate(1.3, 0.01, 60.0, 64), 0, 48),
        ("said it.", estimate(1.3, 0.01, 60.0, 64), 1, 72),
        ("never", estimate(1.3, 0.01, 60.0, 64), 0, 96),
        ("said it.", estimate(0.1, 0.01, 60.0, 64), 0, 48),
        ("said it.", estimate(1.3, 0.5, 60.0, 64), 0, 48),
        ("said it.", None, 0, 48),
    ],
)
async def test_a_wider_edit_is_tested_where_the_smaller_one_earns_less_than_the_feature_seems_to(text, pays, chosen, n):
    edits = [Edit((Append((each,)),)) for each in (" So", " So I said it.", " So I said it. It rains.")]
    found = finding(edits[0])._replace(wider=tuple(edits[1:]), model_pays=pays)
    growth = SimpleNamespace(findings=[found], score_growth=LARGE)
    scorer = PaysForTheWhole(text)
    tested = await edit_tests.EditTests().test(10_000, growth, [0], EARLY, scorer, None, {})
    assert tested[0].edit == edits[chosen]
    assert scorer.n == n, "24 originals, and 24 of each edit"


async def test_further_findings_are_tested_until_two_are_confirmed():
    edits = [Edit((Append((each,)),)) for each in (" One.", " Two.", " Three.", TAIL, " Five.")]
    growth = SimpleNamespace(findings=[finding(each) for each in edits], score_growth=LARGE)
    tested = await edit_tests.EditTests().test(10_000, growth, range(5), EARLY, Scores(60.0), None, {})
    assert list(tested) == [0, 1, 2, 3]
    assert [each.earned.mean > 1.0 for each in tested.values()] == [False, False, False, True]
    paid = [finding(Edit((Append((f" {word}{TAIL}",)),))) for word in ("One", "Two", "Three")]
    growth = SimpleNamespace(findings=paid, score_growth=LARGE)
    assert list(await edit_tests.EditTests().test(10_000, growth, range(3), EARLY, Scores(60.0), None, {})) == [0, 1]


async def test_an_edit_that_is_found_again_is_no_new_test_and_another_one_is():
    growth = SimpleNamespace(findings=[finding(APPEND), finding(Edit((Append((" Two",)),)))], score_growth=LARGE)
    tests, quantiles = edit_tests.EditTests(), []
    for n_reports, chosen in ((1, [0]), (40, [0]), (41, [1, 0])):
        tested = await tests.test(90_000, growth, chosen, EARLY, Scores(60.0), Scores(0.0), THRESHOLDS, n_reports)
        quantiles.append({i: each.z_edit for i, each in tested.items()})
        assert {each.z for each in tested.values()} == {tested[0].z}
    assert quantiles == [{0: critical_z(1, 2)}, {0: critical_z(1, 2)}, {1: critical_z(2, 2), 0: critical_z(1, 2)}]
    assert tested[0].contradiction == lower_bound(tested[0].earned, critical_z(1, 2)) > 0.0


async def test_an_edited_response_ends_as_the_one_that_was_scored():
    cut, scorer = [each._replace(missing_end=True) for each in EARLY], Scores(60.0)
    await edit_tests.ScoreMemory().scores([(each, f"x{TAIL}") for each in cut], scorer)
    assert scorer.finish_reasons == {"length"}
    await edit_tests.ScoreMemory().scores([(each, f"x{TAIL}") for each in EARLY], scorer)
    assert scorer.finish_reasons == {"stop"}
