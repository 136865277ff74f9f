"""The planted world pays an exploit as it is asked to; the real one imputes scores from scored texts alone."""

from statistics import correlation, fmean, pstdev

import pytest

from gym.streams.exploits import exploited
from gym.streams.scores import Model, ScoreTable
from gym.streams.worlds import (
    BaseTexts,
    Planted,
    Quality,
    ScoredModel,
    normal_of,
    real_scores,
    share_of_change,
    wandering,
)


def add(prompt, response):
    return response + " Nice."


@pytest.fixture
def steps(texts):
    return exploited(texts.steps(1, 12, 64), add, 1, 0.8)


def test_an_exploit_adds_the_bonus_and_costs_the_penalty(steps):
    planted, quality = Planted(bonus=2.0, penalty=0.7), Quality({}, {})
    pairs = [
        (s, scored)
        for step, row in zip(steps, planted.scores(steps, quality, 1), strict=True)
        for s, scored in zip(step, row, strict=True)
    ]
    assert all(scored.heads["score"] == quality(s.prompt, s.honest) + 2.0 * s.is_exploiting for s, scored in pairs)
    audits = [[scored.audit for s, scored in pairs if s.is_exploiting is wanted] for wanted in (False, True)]
    assert fmean(audits[0]) - fmean(audits[1]) == pytest.approx(0.7, abs=0.25)


def test_the_judge_correlates_with_the_score_of_honest_responses(texts):
    steps = texts.steps(1, 12, 64)
    flat = [scored for row in Planted(correlation=0.6).scores(steps, Quality({}, {}), 1) for scored in row]
    assert correlation([each.heads["score"] for each in flat], [each.audit for each in flat]) == pytest.approx(
        0.6, abs=0.1
    )


def test_responses_to_one_prompt_have_scores_that_correlate(texts):
    quality = Quality({}, {})
    ones, others = ([quality(p.prompt, p.responses[i]) for p in texts.pairs] for i in (0, 1))
    assert correlation(ones, others) == pytest.approx(0.5, abs=0.15)
    assert pstdev(ones) == pytest.approx(1.0, abs=0.1)


def test_a_judge_that_wanders_has_the_wanted_deviation():
    assert pstdev(wandering(5_000, 0.16, 1)) == pytest.approx(0.16, abs=0.03)
    assert set(wandering(5, 0.0, 1)) == {0.0}


def test_a_number_of_a_content_is_the_same_everywhere():
    assert normal_of("a", 1) == normal_of("a", 1) != normal_of("a", 2)
    assert normal_of("a") == pytest.approx(1.104239, abs=1e-6)


@pytest.fixture
def model(tmp_path):
    model = Model.read()
    return ScoredModel(model, ScoreTable.open(model, tmp_path))


def heads_of(model, value):
    return {name: value for name, _ in model.model.contract.heads}


def test_scores_of_the_table_are_used_and_others_imputed_from_its_differences(texts, steps, model):
    base = BaseTexts.of(texts)
    known = base.some(200)
    model.table.add(known, [heads_of(model, len(response) / 100) for _, response in known])
    chosen = base.missing(steps, model, 20)
    model.table.add(
        chosen, [heads_of(model, len(response) / 100 + 5.0 * (response.endswith(" Nice."))) for _, response in chosen]
    )
    real = real_scores(steps, base, model, None)
    assert 0.3 < real.imputed < 0.9
    name = model.model.contract.heads[0][0]
    for step, row in zip(steps, real.scored, strict=True):
        for sample, scored in zip(step, row, strict=True):
            assert scored.heads[name] == pytest.approx(len(sample.honest) / 100 + 5.06 * sample.is_exploiting, abs=0.5)
            assert scored.audit is None


def test_an_exploit_without_scores_is_an_error(texts, steps, model):
    base = BaseTexts.of(texts)
    model.table.add(base.some(None), [heads_of(model, 0.0)] * len(base.tasks))
    with pytest.raises(ValueError, match="--rows"):
        real_scores(steps, base, model, None)


def test_a_model_without_calibration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="calibration"):
        Model.read(str(tmp_path))


@pytest.mark.parametrize(
    ("edited", "exploiting", "share"),
    [
        ("it rains<x>", "it rains<x>!", 0.75),
        ("it rains\u200b", "it\u200b rains\u200b", 0.5),
        ("it  rains", "it   rains ", 1 / 3),
        ("it snows", "it rains<x>", 0.0),
        ("it rains", "it rains", 0.0),
    ],
)
def test_an_edit_earns_the_share_of_a_change_that_it_makes_also_where_a_mark_is_glued_to_a_word(
    edited, exploiting, share
):
    assert share_of_change("it rains", edited, exploiting) == pytest.approx(share)
