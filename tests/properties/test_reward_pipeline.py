"""The reward pipeline for any finite number: order is kept, bounds hold, nothing is lost on the way."""

from __future__ import annotations

import math
import random
from statistics import fmean, pstdev

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewardserve.model.calibration import Calibration, CalibrationError, HeadCalibration
from rewardserve.model.reward import (
    CombineSettings,
    EnsembleMember,
    PenaltySettings,
    RewardBatch,
    RewardSettings,
    build_pipeline,
    repetition,
)
from rewardserve.model.reward.members import Combination, Scale, ScaledMember, softmin
from tests.support.rewards import pipeline_of, reward_of, sole

finite = st.floats(-1e6, 1e6, allow_nan=False)
calibrations = st.builds(
    Calibration,
    mean=st.floats(-100, 100),
    std=st.floats(1e-2, 1e2),
    temperature=st.floats(0.1, 10),
    cap_low=st.floats(-10, -0.5),
    cap_high=st.floats(0.5, 10),
    quantiles=st.just(((0.05, -3.0), (0.5, 0.0), (0.85, 1.0), (0.95, 2.0))),
    length_curve=st.just(((0.0, -1.0), (2.0, 0.0), (5.0, 0.5))),
    log_length=st.just(3.0),
    repetition_high=st.just(0.1),
)
SHAPES = ("none", "cap", "softcap", "par", "lsc")
settings_ = st.builds(
    RewardSettings,
    normalize=st.sampled_from([None, True, False]),
    shape=st.sampled_from([None, *SHAPES]),
    length_debias=st.sampled_from([0.0, 0.5, 1.0]),
    penalties=st.sampled_from(
        [
            PenaltySettings(),
            PenaltySettings(missing_end=1.0, overlong=0.5, overlong_start=50, overlong_end=90, repetition=2.0),
        ]
    ),
)
facts = st.fixed_dictionaries(
    {
        "lengths": st.none() | st.integers(1, 5000),
        "missing_end": st.booleans(),
        "repetition": st.floats(0.0, 0.99),
        "references": st.lists(st.floats(-10, 10), max_size=4).map(tuple),
    }
)
HEADS = (("score", 1.0),)


@given(calibrations, settings_, facts, finite, finite)
def test_a_better_raw_score_never_gets_a_lower_reward(calibration, settings, fact, a, b):
    pipeline = build_pipeline(sole(calibration), settings)
    low, high = sorted([a, b])
    assert reward_of(pipeline, low, **fact).value <= reward_of(pipeline, high, **fact).value


@given(calibrations, settings_, facts, finite)
def test_the_stages_sum_to_the_reward(calibration, settings, fact, raw):
    pipeline = build_pipeline(sole(calibration), settings)
    reward = reward_of(pipeline, raw, **fact)
    assert len(reward.changes) == len(pipeline.stage_names)
    size = max(map(abs, reward.changes))
    assert math.fsum(reward.changes) == pytest.approx(reward.value, rel=1e-12, abs=1e-12 * size + 1e-12)


@given(calibrations, finite, st.floats(1e-2, 1e3))
def test_a_soft_cap_keeps_even_far_out_scores_apart(calibration, a, gap):
    pipeline = pipeline_of(calibration, shape="softcap")
    a = max(-1e4, min(1e4, a / 100)) * calibration.std
    assert reward_of(pipeline, a).value < reward_of(pipeline, a + gap * calibration.std).value


@given(calibrations, st.sampled_from([None, True, False]), st.sampled_from([None, "none", "cap", "softcap"]), finite)
def test_caps_hold_and_are_noted(calibration, normalize, shape, raw):
    pipeline = pipeline_of(calibration, normalize=normalize, shape=shape)
    reward = reward_of(pipeline, raw)
    if pipeline.cap_low is not None:
        assert pipeline.cap_low <= reward.value <= pipeline.cap_high
    seen = reward.normalized if pipeline.normalizes else raw
    soft = "soft" if pipeline.shape == "softcap" else ""
    side = (f"{soft}capped_high",) if reward.value < seen else (f"{soft}capped_low",) if reward.value > seen else ()
    assert reward.notes == side


@given(calibrations, settings_, facts, finite)
def test_all_three_numbers_are_returned(calibration, settings, fact, raw):
    pipeline = build_pipeline(sole(calibration), settings)
    reward = reward_of(pipeline, raw, **fact)
    assert reward.raw == raw
    if pipeline.normalizes:
        assert reward.normalized == pytest.approx((raw - calibration.mean) / calibration.std, rel=1e-12)
    else:
        assert reward.normalized is None
    if pipeline.shape == "none" and not pipeline.stages:
        assert reward.value == (reward.normalized if pipeline.normalizes else raw)


@given(calibrations, st.floats(0, 1))
def test_a_soft_cap_leaves_the_middle_alone(calibration, where):
    pipeline = pipeline_of(calibration, shape="softcap")
    width = (calibration.cap_high - calibration.cap_low) / 8
    z = calibration.cap_low + width + where * (calibration.cap_high - calibration.cap_low - 2 * width)
    reward = reward_of(pipeline, calibration.mean + z * calibration.std)
    assert reward.value == pytest.approx(reward.normalized, abs=1e-9)


@given(calibrations)
def test_a_soft_cap_has_no_kink_at_its_knee(calibration):
    pipeline = pipeline_of(calibration, shape="softcap")
    width = (calibration.cap_high - calibration.cap_low) / 8
    knee, step = calibration.cap_high - width, 1e-4 * width
    value = reward_of(pipeline, calibration.mean + (knee + step) * calibration.std).value
    assert (value - knee) / step == pytest.approx(1.0, abs=1e-3)


# -- the frozen snapshot: a reward depends on its own sample and on nothing else ----------------------------------------


@given(calibrations, settings_, st.lists(st.tuples(finite, facts), min_size=1, max_size=12), st.randoms())
def test_a_reward_has_the_same_bits_in_every_batch_and_after_any_other(calibration, settings, samples, rng):
    pipeline, again = (build_pipeline(sole(calibration), settings) for _ in range(2))
    alone = [reward_of(pipeline, raw, **fact) for raw, fact in samples]
    order = rng.sample(range(len(samples)), len(samples))
    assert [again(batch(samples, order))[order.index(i)] for i in range(len(samples))] == alone
    cut = rng.randrange(len(samples) + 1)
    assert again(batch(samples, range(cut))) + again(batch(samples, range(cut, len(samples)))) == alone
    assert pipeline.digest == again.digest


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thousand_adversarial_requests_before_it_change_no_bit(shape):
    calibration = full(Calibration(mean=0.3, std=1.7, cap_low=-3.0, cap_high=3.0))
    settings = RewardSettings(
        shape=shape, length_debias=0.5, penalties=PenaltySettings(missing_end=1.0, repetition=1.0)
    )
    rng, fact = random.Random(3), {"lengths": 77, "missing_end": False, "repetition": 0.3, "references": (0.5,)}
    fresh = reward_of(build_pipeline(sole(calibration), settings), 1.25, **fact)
    pipeline = build_pipeline(sole(calibration), settings)
    for _ in range(1000):
        extreme = rng.choice([1e6, -1e6, 1e300, -1e300, rng.gauss(0, 1e3)])
        reward_of(
            pipeline, extreme, lengths=rng.randrange(1, 9999), missing_end=True, repetition=0.99, references=(1e9,)
        )
    assert reward_of(pipeline, 1.25, **fact) == fresh


def batch(samples, places):
    chosen = [samples[i] for i in places]
    columns = {
        name: [fact[name] for _, fact in chosen] for name in ("lengths", "missing_end", "repetition", "references")
    }
    return RewardBatch([{"score": raw} for raw, _ in chosen], **columns)


def full(calibration):
    """With everything that a stage may ask for."""
    from dataclasses import replace

    return replace(
        calibration,
        quantiles=((0.05, -3.0), (0.5, 0.0), (0.85, 1.0), (0.95, 2.0)),
        length_curve=((0.0, -1.0), (2.0, 0.0), (5.0, 0.5)),
        log_length=3.0,
        repetition_high=0.1,
    )


# -- combination ------------------------------------------------------------------------------------------------------

opinions_ = st.lists(st.tuples(st.floats(-50, 50), st.floats(0.01, 10)), min_size=1, max_size=6)


@given(opinions_, st.floats(1e-3, 1e3))
def test_softmin_lies_between_the_least_and_the_mean(drawn, beta):
    z, weights = [z for z, _ in drawn], shares([w for _, w in drawn])
    value = softmin(z, weights, asks(beta))
    average = sum(w * x for w, x in zip(weights, z, strict=True))
    assert min(z) - 1e-9 <= value <= average + 1e-9
    assert value == pytest.approx(softmin_written_out(z, weights, beta), rel=1e-9, abs=1e-9)


@given(opinions_)
def test_softmin_has_its_limits_exactly(drawn):
    z, weights = [z for z, _ in drawn], shares([w for _, w in drawn])
    average = sum([w * x for w, x in zip(weights, z, strict=True)])
    assert softmin(z, weights, asks(0.0)) == min(z)
    assert softmin(z, weights, asks(math.inf)) == average
    assert softmin(z, weights, asks(1e12)) == pytest.approx(average, abs=1e-8)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_softmin_with_a_large_beta_is_the_mean_less_half_the_variance_over_beta(z):
    weights, beta = [1 / len(z)] * len(z), 1e3
    assert softmin(z, weights, asks(beta)) == pytest.approx(fmean(z) - pstdev(z) ** 2 / (2 * beta), abs=1e-6)


def softmin_written_out(z, weights, beta):
    low = min(z)
    return low - beta * math.log(sum(w * math.exp((low - x) / beta) for w, x in zip(weights, z, strict=True)))


def asks(beta):
    return Combination((ScaledMember("m", HEADS),), "softmin", beta)


def shares(weights):
    return [w / sum(weights) for w in weights]


TWO = Calibration(
    mean=1.0,
    std=2.0,
    temperature=0.5,
    heads=(HeadCalibration("a", 0.5, 2.0, 0.5), HeadCalibration("b", -1.0, 0.25, 2.0)),
)
TWO_HEADS = (("a", 0.4), ("b", 1.2))


def combined(how, **asked):
    settings = RewardSettings(shape="none", combine=CombineSettings(method=how, **asked))
    return build_pipeline([EnsembleMember("m", TWO_HEADS, TWO)], settings)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_heads_are_combined_on_their_own_scales(a, b):
    heads = {"a": a, "b": b}
    z_a, z_b = (a - 0.5) / 2.0, (b + 1.0) / 0.25
    w_a, w_b = 0.4 * 2.0 / (0.4 * 2.0 + 1.2 * 0.25), 1.2 * 0.25 / (0.4 * 2.0 + 1.2 * 0.25)
    assert combined("sum").one(heads).value == pytest.approx((0.4 * a + 1.2 * b - 1.0) / 2.0)
    assert combined("mean").one(heads).value == pytest.approx(w_a * z_a + w_b * z_b, abs=1e-9)
    assert combined("min").one(heads).value == pytest.approx(min(z_a, z_b))
    assert combined("softmin", beta=0.7).one(heads).value == pytest.approx(
        softmin_written_out([z_a, z_b], [w_a, w_b], 0.7), rel=1e-6, abs=1e-6
    )
    assert combined("mean").one(heads).spread == pytest.approx(abs(z_a - z_b) / 2)
    assert combined("sum").one(heads).spread is None


@given(st.floats(-5, 5), st.floats(-3, 1))
def test_and_is_the_log_of_the_probability_of_being_good_in_every_respect(a, b):
    value = combined("and", weights={"a": 1.0, "b": 1.0}).one({"a": a, "b": b}).value

    def p(x):
        return 1 / (1 + math.exp(-x))

    assert value == pytest.approx(math.log(p((a - 0.5) / 0.5) * p((b + 1.0) / 2.0)) / 2, rel=1e-9)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 10), st.sampled_from(["mean", "min", "softmin", "and"]))
def test_a_better_member_never_lowers_the_combination(a, b, more, how):
    pipeline = combined(how)
    assert pipeline.one({"a": a, "b": b}).value <= pipeline.one({"a": a + more, "b": b}).value + 1e-9


def test_a_head_with_a_negative_weight_is_turned_round():
    toxicity = Calibration(0.0, 1.0, heads=(HeadCalibration("good", 0.0, 1.0), HeadCalibration("toxic", 2.0, 1.0)))
    ensemble_member = EnsembleMember("m", (("good", 1.0), ("toxic", -1.0)), toxicity)
    pipeline = build_pipeline([ensemble_member], RewardSettings(shape="none", combine=CombineSettings(method="min")))
    assert pipeline.one({"good": 5.0, "toxic": 4.0}).value == -2.0


def test_several_models_are_combined_by_a_softmin_on_their_own_scales_unless_told_otherwise():
    ensemble_members = [
        EnsembleMember("x", (("x/score", 1.0),), Calibration(1.0, 2.0, temperature=4.0)),
        EnsembleMember("y", (("y/score", 2.0),), Calibration(0.0, 1.0, temperature=1.0)),
    ]
    pipeline = build_pipeline(ensemble_members, RewardSettings())
    reward = pipeline.one({"x/score": 5.0, "y/score": 0.5})
    expected = -0.5 * math.log((math.exp(-2.0 / 0.5) + math.exp(-1.0 / 0.5)) / 2)
    assert (reward.raw, reward.normalized, reward.value) == (pytest.approx(expected),) * 3
    assert reward.spread == 0.5
    averaged = build_pipeline(ensemble_members, RewardSettings(combine=CombineSettings("mean")))
    assert averaged.one({"x/score": 5.0, "y/score": 0.5}).value == 1.5
    assert pipeline.combination.temperature == 1 / (0.5 * 2.0 / 4.0 + 0.5 * 1.0)
    assert pipeline.shape == "none", "caps of a member say nothing of the combination"
    only_x = build_pipeline(ensemble_members, RewardSettings(combine=CombineSettings(weights={"y": 0.0})))
    assert only_x.one({"x/score": 5.0, "y/score": 0.5}).value == 2.0


# -- debias and penalties ----------------------------------------------------------------------------------------------

FULL = full(Calibration(mean=0.0, std=1.0))


@given(finite, st.integers(1, 10_000), st.sampled_from([0.25, 1.0]))
def test_debiasing_takes_out_what_the_curve_says_of_the_length(raw, n, gamma):
    value = reward_of(pipeline_of(FULL, shape="none", length_debias=gamma), raw, lengths=n).value
    x = math.log(n)
    # The curve is -1 at 0, 0 at 2, 0.5 at 5 and constant beyond; the usual log length is 3.
    g = -1 + x / 2 if x < 2 else min(0.5, (x - 2) / 6)
    assert value == pytest.approx(raw - gamma * (g - 1 / 6), rel=1e-9, abs=1e-9)


def test_a_response_of_unknown_length_keeps_its_score_and_says_so():
    reward = reward_of(pipeline_of(FULL, shape="none", length_debias=1.0), 1.5, lengths=None)
    assert (reward.value, reward.notes) == (1.5, ("length_unknown",))


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repetition_counts_trigrams_that_came_before(ids):
    seen, n_repeated, n = set(), 0, 0
    for trigram in zip(ids, ids[1:], ids[2:], strict=False):
        n_repeated, n = n_repeated + (trigram in seen), n + 1
        seen.add(trigram)
    assert repetition(ids) == pytest.approx(n_repeated / n if n else 0.0)


# -- shapes that compare with references ------------------------------------------------------------------------------


@given(calibrations, finite, st.lists(st.floats(-50, 50), min_size=1, max_size=5), st.floats(0.1, 5))
def test_par_is_the_mean_probability_of_beating_the_references(calibration, raw, references, slope):
    value = reward_of(pipeline_of(calibration, shape="par", slope=slope), raw, references=tuple(references)).value
    assert 0.0 <= value <= 1.0
    logits = [slope * (raw - r) / calibration.temperature for r in references]
    assert value == pytest.approx(fmean(0.5 * (1 + math.tanh(x / 2)) for x in logits), abs=1e-9)


@given(calibrations, finite)
def test_par_has_frozen_references_for_samples_that_bring_none(calibration, raw):
    assume(calibration.quantiles)
    value = reward_of(pipeline_of(calibration, shape="par"), raw, references=()).value
    logits = [(raw - q) / calibration.temperature for p, q in calibration.quantiles if 0.05 <= p <= 0.95]
    assert value == pytest.approx(fmean(0.5 * (1 + math.tanh(x / 2)) for x in logits), abs=1e-9)


@given(calibrations, finite, st.lists(st.floats(-50, 50), max_size=5))
def test_lsc_is_below_zero_and_the_log_of_a_sigmoid(calibration, raw, references):
    value = reward_of(pipeline_of(calibration, shape="lsc"), raw, references=tuple(references)).value
    reference = fmean(references) if references else 1.0
    x = (raw - reference) / calibration.temperature
    assert value <= 0.0
    assert value == pytest.approx(min(x, 0.0) - math.log1p(math.exp(-abs(x))), rel=1e-6, abs=1e-6)


@given(calibrations, st.sampled_from(["par", "lsc"]), finite, st.floats(-50, 50))
def test_whether_scores_are_normalised_does_not_matter_to_what_compares_with_references(calibration, shape, raw, own):
    a, b = (
        reward_of(pipeline_of(calibration, shape=shape, normalize=n), raw, references=(own,)).value
        for n in (True, False)
    )
    assert a == pytest.approx(b, rel=1e-6, abs=1e-6)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_without_statistics_the_default_is_the_raw_score():
    reward = reward_of(pipeline_of(None), 3.25)
    assert (reward.raw, reward.normalized, reward.value, reward.notes) == (3.25, None, 3.25, ())


@pytest.mark.parametrize("shape", ["cap", "softcap"])
def test_one_side_may_stay_open(shape):
    pipeline = pipeline_of(None, shape=shape, cap_high=2.0)
    assert reward_of(pipeline, -1e5).value == -1e5
    assert reward_of(pipeline, 1e5).value <= 2.0
    assert reward_of(pipeline, 1e5).notes == (("capped_high",) if shape == "cap" else ("softcapped_high",))


def test_caps_of_the_calibration_follow_to_raw_units_where_nothing_is_normalised():
    calibration = Calibration(mean=10.0, std=2.0, cap_low=-3.0, cap_high=3.0)
    pipeline = pipeline_of(calibration, normalize=False, shape="cap")
    assert (reward_of(pipeline, 100.0).value, reward_of(pipeline, -100.0).value) == (16.0, 4.0)


def test_settings_that_differ_have_different_digests():
    asked = [{"shape": shape, "normalize": on} for shape in SHAPES for on in (True, False)]
    asked += [{"length_debias": 0.5}, {"length_debias": 0.6}, {"penalties": PenaltySettings(missing_end=1.0)}]
    asked += [{"combine": CombineSettings("min")}, {"combine": CombineSettings("softmin", 0.1)}]
    heads = (HeadCalibration("score", 0.0, 1.0),)
    calibration = full(Calibration(mean=0.5, std=2.0, cap_low=-3.0, cap_high=3.0, heads=heads))
    assert len({pipeline_of(calibration, **each).digest for each in asked}) == len(asked)


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": float("nan"), "std": 1.0},
        {"mean": 0.0, "std": 0.0},
        {"mean": 0.0, "std": 1.0, "temperature": -1.0},
        {"mean": 0.0, "std": 1.0, "heads": (HeadCalibration("a", 0.0, 0.0),)},
        {"mean": 0.0, "std": 1.0, "length_curve": ((1.0, 0.0), (1.0, 1.0))},
        {"mean": 0.0, "std": 1.0, "length_curve": ((1.0, 0.0), (2.0, float("nan")))},
        {"mean": 0.0, "std": 1.0, "quantiles": ((0.5, float("inf")),)},
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(fields):
    with pytest.raises(CalibrationError, match=r"mean|std|temperature|length_curve|quantiles"):
        Calibration(**fields)


def test_a_calibration_survives_its_file(tmp_path):
    calibration = full(Calibration(mean=0.5, std=2.0, cap_low=-3.0, cap_high=3.0, n=7, heads=TWO.heads))
    calibration.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert again == calibration
    assert again.digest == calibration.digest
    (tmp_path / "calibration.json").write_text('{"mean": 1.0}')
    with pytest.raises(CalibrationError, match="unreadable"):
        Calibration.load(tmp_path)
    (tmp_path / "calibration.json").unlink()
    assert Calibration.load(tmp_path) is None


def test_the_scale_of_a_member_that_is_not_normalised_keeps_its_temperature():
    assert pipeline_of(Calibration(3.0, 2.0, temperature=0.5), normalize=False).combination.members[0].scale == Scale(
        0.0, 1.0, 0.5
    )
