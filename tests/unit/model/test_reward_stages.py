"""Each stage of the reward pipeline, each combination and each refusal: small numbers written out by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from math import exp, inf, log, nan

import pytest

from rewardserve.model.calibration import Calibration, HeadCalibration
from rewardserve.model.reward import (
    CombineSettings,
    EnsembleMember,
    PenaltySettings,
    PipelineError,
    Reward,
    RewardBatch,
    RewardSettings,
    build_pipeline,
    repetition,
)
from rewardserve.model.reward.members import (
    IDENTITY,
    Combination,
    CombinedScores,
    Scale,
    ScaledMember,
    log_sigmoid,
    mean,
    minimum,
    sigmoid,
    softmin,
    sum_log_sigmoid,
)
from rewardserve.model.reward.stages import (
    Cap,
    Debias,
    LogSigmoid,
    MissingEnd,
    Overlong,
    Par,
    Repetition,
    SoftCap,
)

# -- stages -----------------------------------------------------------------------------------------------------------

CURVE = ((0.0, -1.0), (2.0, 0.0), (4.0, 4.0))


def through(stage, values, **columns):
    """Values and notes after a stage, in numbers that can be compared."""
    shaped, notes = stage(values, RewardBatch([{}] * len(values), **columns))
    return shaped, dict(notes)


def p(x):
    return 1 / (1 + exp(-x))


def test_what_a_length_is_worth_is_straight_between_the_knots_and_constant_beyond():
    worth = Debias(1.0, CURVE, 3.0).worth
    assert [worth(x) for x in (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 9.0)] == [-1.0, -1.0, -0.5, 0.0, 2.0, 4.0, 4.0]


def test_debiasing_takes_out_a_share_of_the_difference_to_the_usual_length():
    shaped, notes = through(Debias(0.5, CURVE, 1.0), [3.0, 3.0, 3.0, 5.0], lengths=[1, 54, None, 55])
    assert shaped == pytest.approx([3.25, 3.0 - 0.5 * (2 * (log(54) - 2) + 0.5), 3.0, 5.0 - 0.5 * 4.5])
    assert notes == {2: "length_unknown"}


def test_penalties_are_taken_off_where_their_reason_is_and_noted():
    assert through(MissingEnd(1.5), [1.0, 2.0], missing_end=[True, False]) == (
        [-0.5, 2.0],
        {0: "missing_end_penalty"},
    )
    assert through(Overlong(2.0, 10, 20), [1.0] * 7, lengths=[None, 1, 10, 11, 15, 20, 30]) == (
        [1.0, 1.0, 1.0, 0.8, 0.0, -1.0, -1.0],
        dict.fromkeys(range(3, 7), "overlong_penalty"),
    )
    assert through(Repetition(3.0, 0.5), [1.0] * 4, repetition=[0.0, 0.5, 0.75, 1.0]) == (
        [1.0, 1.0, -0.5, -2.0],
        {2: "repetition_penalty", 3: "repetition_penalty"},
    )


@pytest.mark.parametrize(
    ("low", "high", "expected", "notes"),
    [
        (-1.0, 2.0, [-1.0, -1.0, 0.0, 2.0, 2.0], {0: "capped_low", 4: "capped_high"}),
        (None, 2.0, [-9.0, -1.0, 0.0, 2.0, 2.0], {4: "capped_high"}),
        (-1.0, None, [-1.0, -1.0, 0.0, 2.0, 9.0], {0: "capped_low"}),
    ],
)
def test_a_cap_clips_what_is_beyond_it(low, high, expected, notes):
    assert through(Cap(low, high), [-9.0, -1.0, 0.0, 2.0, 9.0]) == (expected, notes)


def test_a_soft_cap_bends_what_is_beyond_its_knee():
    values = [-6.0, -4.0, 0.0, 4.0, 12.0]
    low, high = {0: "softcapped_low"}, {4: "softcapped_high"}
    assert through(SoftCap(-6.0, 8.0, 2.0), values) == ([-5.0, -4.0, 0.0, 4.0, 7.5], low | high)
    assert through(SoftCap(None, 8.0, 2.0), values) == ([-6.0, -4.0, 0.0, 4.0, 7.5], high)
    assert through(SoftCap(-6.0, None, 2.0), values) == ([-5.0, -4.0, 0.0, 4.0, 12.0], low)


@pytest.mark.parametrize("stage", [Cap(-1.0, 1.0), SoftCap(-2.0, 2.0, 1.0)])
def test_what_no_cap_touches_is_the_same_column(stage):
    values = [-1.0, 0.5, 1.0]
    shaped, notes = stage(values, RewardBatch([{}] * 3))
    assert shaped is values
    assert not notes


def test_shapes_compare_with_references_of_the_sample_or_else_frozen_ones():
    references = [(), (3.0, 7.0)]
    shaped, notes = through(Par(2.0, (0.0, 1.0), 1.0, 2.0), [0.5, 0.5], references=references)
    assert shaped == pytest.approx([(p(1.0) + p(-1.0)) / 2, (p(-1.0) + p(-5.0)) / 2])
    assert notes == {}
    shaped, notes = through(LogSigmoid(2.0, 0.25, 1.0, 2.0), [0.5, 0.5], references=references)
    assert shaped == pytest.approx([log(p(0.5)), log(p(-3.0))])
    assert notes == {}


@pytest.mark.parametrize(
    ("stage", "column"),
    [
        (Debias(1.0, CURVE, 1.0), {"lengths": [1]}),
        (MissingEnd(1.0), {"missing_end": [True]}),
        (Overlong(1.0, 1, 2), {"lengths": [1]}),
        (Repetition(1.0, 0.5), {"repetition": [0.1]}),
        (Par(1.0, (0.0,), 0.0, 1.0), {"references": [()]}),
        (LogSigmoid(1.0, 0.0, 0.0, 1.0), {"references": [()]}),
    ],
)
def test_a_column_with_an_entry_missing_is_an_error_and_no_shorter_batch(stage, column):
    with pytest.raises(ValueError, match="zip"):
        through(stage, [1.0, 2.0], **column)


def test_repetition_is_the_share_of_trigrams_that_came_before():
    rows = ((), (1, 2), (1, 2, 3), (1, 1, 1, 1), (1, 1, 1, 2, 1, 1))
    assert [repetition(ids) for ids in rows] == [0.0, 0.0, 0.0, 0.5, 0.0]
    assert repetition((1, 1, 1, 1, 1, 2)) == 0.5


# -- members ----------------------------------------------------------------------------------------------------------

A = ScaledMember("a", (("x", 2.0), ("y", -1.0)), Scale(1.0, 2.0, 0.5), 0.25)
B = ScaledMember("b", (("y", 1.0),), Scale(-1.0, 0.5, 2.0), 0.75)
SCORES = {"x": 3.0, "y": 1.0}  # a is 5 raw, 2 on its scale; b is 1 raw, 4 on its scale


def test_members_are_put_on_their_scales_and_combined():
    assert A.raw(SCORES) == 5.0
    assert Combination((A,))([SCORES]) == CombinedScores([5.0], [2.0], None)
    for how, value in {
        "mean": 3.5,
        "min": 2.0,
        "softmin": -0.5 * log(0.25 * exp(-4.0) + 0.75 * exp(-8.0)),
        "and": 0.25 * log(p(8.0)) + 0.75 * log(p(1.0)),
    }.items():
        both = Combination((A, B), how, 0.5)([SCORES])
        assert (both.raw, both.value, both.spread) == ([pytest.approx(value)], both.raw, [1.0])
    assert Combination((A, B), "softmin", inf)([SCORES]).value == [3.5]
    assert Combination((A, B), "softmin", 0.0)([SCORES]).value == [2.0]


def test_a_combination_names_its_parts_and_says_what_each_adds():
    summed, both = Combination((A,)), Combination((A, B), "mean")
    assert (summed.component_names, both.component_names, Combination((B,)).component_names) == (
        ("x", "y"),
        ("a", "b"),
        (),
    )
    assert summed.components(SCORES) == (3.0, -0.5)
    assert both.components(SCORES) == (0.5, 3.0)
    assert summed.temperature == 0.5
    assert both.logit_scale == 0.25 * 4.0 + 0.75 * 0.25
    assert both.temperature == 1 / both.logit_scale


@pytest.mark.parametrize("combine", [mean, softmin, sum_log_sigmoid])
def test_a_member_without_a_weight_is_an_error(combine):
    with pytest.raises(ValueError, match="zip"):
        combine([1.0, 2.0], [1.0], Combination((A, B), "softmin", 0.5))


def test_the_lowest_member_counts_whatever_the_weights():
    assert minimum([3.0, 1.0], [1.0, 0.0], Combination((A, B), "min")) == 1.0


def test_sigmoids_are_exact_far_out_on_either_side():
    assert [sigmoid(x) for x in (-1000.0, 0.0, 1000.0)] == [0.0, 0.5, 1.0]
    assert [log_sigmoid(x) for x in (-1000.0, 0.0, 1000.0)] == [-1000.0, -log(2), 0.0]
    for x in (-2.0, -0.5, 0.5, 2.0):
        assert sigmoid(x) == pytest.approx(p(x), rel=1e-15)
        assert log_sigmoid(x) == pytest.approx(log(p(x)), rel=1e-14)


# -- building ---------------------------------------------------------------------------------------------------------

HEADS = (("a", 0.5), ("b", -2.0), ("c", 0.0))
FITTED = Calibration(
    mean=1.0, std=2.0, temperature=0.5, cap_low=-4.0, cap_high=4.0, length_curve=CURVE, log_length=1.0,
    repetition_high=0.1, quantiles=((0.04, -9.0), (0.05, -3.0), (0.5, 1.0), (0.8, 2.0), (0.95, 5.0), (0.96, 9.0)),
    heads=(
        HeadCalibration("a", 0.5, 2.0, 0.25), HeadCalibration("b", -1.0, 0.25, 2.0), HeadCalibration("c", 3.0, 1.0),
    ),
)  # fmt: skip
BARE = Calibration(mean=1.0, std=2.0)


def built(calibration=FITTED, heads=HEADS, combine=None, penalties=None, **settings):
    ensemble_member = EnsembleMember("m", heads, calibration)
    return build_pipeline([ensemble_member], settings_of(combine, penalties, **settings))


def settings_of(combine=None, penalties=None, **settings):
    return RewardSettings(
        combine=CombineSettings(**(combine or {})), penalties=PenaltySettings(**(penalties or {})), **settings
    )


def test_all_stages_are_built_in_their_order_from_the_calibration():
    every = {"missing_end": 1.0, "overlong": 2.0, "overlong_start": 0, "overlong_end": 9, "repetition": 3.0}
    pipeline = built(length_debias=1.0, penalties=every)
    assert pipeline.stages == (
        Debias(1.0, CURVE, 1.0), MissingEnd(1.0), Overlong(2.0, 0, 9), Repetition(3.0, 0.1), Cap(-4.0, 4.0),
    )  # fmt: skip
    assert pipeline.combination == Combination((ScaledMember("m", HEADS, Scale(1.0, 2.0, 0.5), 1.0),), "sum", 0.0)
    assert (pipeline.normalizes, pipeline.shape, pipeline.cap_low, pipeline.cap_high) == (True, "cap", -4.0, 4.0)
    assert pipeline.reads == {"lengths", "missing_end", "repetition"}
    assert pipeline.stage_names == ("combined", "debias", "missing_end", "overlong", "repetition", "shape")
    assert pipeline.itemises
    assert not built().itemises


@pytest.mark.parametrize(
    ("settings", "stages", "caps"),
    [
        ({"shape": "none"}, (), (None, None)),
        ({"shape": "cap"}, (Cap(-4.0, 4.0),), (-4.0, 4.0)),
        ({"shape": "cap", "normalize": False}, (Cap(-7.0, 9.0),), (-7.0, 9.0)),
        ({}, (Cap(-4.0, 4.0),), (-4.0, 4.0)),
        ({"cap_high": 1.0}, (Cap(None, 1.0),), (None, 1.0)),
        ({"shape": "softcap"}, (SoftCap(-4.0, 4.0, 1.0),), (-4.0, 4.0)),
        ({"shape": "softcap", "cap_low": -1.0}, (SoftCap(-1.0, None, 1.0),), (-1.0, None)),
        ({"shape": "softcap", "cap_high": 1.0}, (SoftCap(None, 1.0, 1.0),), (None, 1.0)),
        ({"shape": "softcap", "cap_low": 0.0, "cap_high": 16.0}, (SoftCap(0.0, 16.0, 2.0),), (0.0, 16.0)),
        ({"shape": "par", "slope": 3.0}, (Par(12.0, (-2.0, 0.0, 0.5, 2.0), 1.0, 2.0),), (None, None)),
        ({"shape": "par", "normalize": False}, (Par(2.0, (-3.0, 1.0, 2.0, 5.0), 0.0, 1.0),), (None, None)),
        ({"shape": "lsc", "slope": 3.0}, (LogSigmoid(12.0, 0.5, 1.0, 2.0),), (None, None)),
    ],
)
def test_each_shape_is_built_from_its_settings_and_the_calibration(settings, stages, caps):
    pipeline = built(**settings)
    assert pipeline.stages == stages
    assert (pipeline.cap_low, pipeline.cap_high) == caps
    assert pipeline.shape == settings.get("shape", "cap")
    assert pipeline.normalizes is settings.get("normalize", True)


def test_caps_of_one_side_and_references_of_the_tails_only_are_used_as_they_are():
    for low, high in ((-4.0, None), (None, 4.0)):
        calibration = replace(FITTED, cap_low=low, cap_high=high)
        scaled = [None if cap is None else 1.0 + 2.0 * cap for cap in (low, high)]
        assert built(calibration, normalize=False, shape="cap").stages == (Cap(*scaled),)
    tails = replace(FITTED, quantiles=((0.01, -3.0), (0.99, 5.0)))
    assert built(tails, shape="par").stages[0].references == (-2.0, 2.0)


def test_heads_are_members_on_their_own_scales_with_the_weight_that_they_have_in_the_sum():
    weights = [1.0, 0.5, 0.0]  # |weight| * std
    scales = [Scale(0.5, 2.0, 0.25), Scale(1.0, 0.25, 2.0), Scale(3.0, 1.0, 1.0)]
    signs = [1.0, -1.0, 1.0]
    expected = tuple(
        ScaledMember(name, ((name, sign),), scale, weight / 1.5)
        for (name, _), sign, scale, weight in zip(HEADS, signs, scales, weights, strict=True)
    )
    for how, beta in (("softmin", 0.7), ("mean", 0.0), ("min", 0.0), ("and", 0.0)):
        assert built(combine={"method": how, "beta": 0.7}).combination == Combination(expected, how, beta)
    raw = built(combine={"method": "mean"}, normalize=False)
    assert [m.scale for m in raw.combination.members] == [replace(s, mean=0.0, std=1.0) for s in scales]
    assert raw.stages == (), "statistics of the sum do not apply to another combination"
    bare = built(BARE, combine={"method": "mean"}, normalize=False)
    shares = (0.2, 0.8, 0.0)
    assert bare.combination.members == tuple(
        replace(member, scale=IDENTITY, weight=share) for member, share in zip(expected, shares, strict=True)
    )
    assert built(None, combine={"method": "mean"}).combination == bare.combination


def test_models_are_members_with_the_operators_weights():
    ensemble_members = [
        EnsembleMember("x", HEADS, FITTED),
        EnsembleMember("y", HEADS, None),
        EnsembleMember("z", HEADS, BARE),
    ]
    pipeline = build_pipeline(ensemble_members, settings_of({"weights": {"x": 2.0, "y": 0.0}}))
    assert not pipeline.normalizes
    assert pipeline.combination == Combination(
        (
            ScaledMember("x", HEADS, Scale(0.0, 1.0, 0.5), 2 / 3),
            ScaledMember("y", HEADS, IDENTITY, 0.0),
            ScaledMember("z", HEADS, IDENTITY, 1 / 3),
        ),
        "mean",
        0.0,
    )
    assert pipeline.itemises
    two = build_pipeline(ensemble_members[::2], settings_of())
    assert [(m.name, m.weight) for m in two.combination.members] == [("x", 0.5), ("z", 0.5)]


def test_the_digest_is_that_of_the_combination_and_the_stages_with_sorted_names():
    pipeline = built(shape="cap", penalties={"missing_end": 1.0})
    combined = asdict(pipeline.combination)
    (member,) = combined["members"]
    del member["name"]
    text = json.dumps(
        [
            combined,
            {"penalty": 1.0, "stage": "MissingEnd"},
            {"high": 4.0, "low": -4.0, "stage": "Cap"},
        ],
        sort_keys=True,
    )
    assert pipeline.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_the_same_for_a_model_under_another_path():
    here, there, other = (
        build_pipeline([EnsembleMember(name, HEADS, fitted)], settings_of())
        for name, fitted in (("runs/model", FITTED), ("/data/runs/model", FITTED), ("runs/model", BARE))
    )
    assert here.digest == there.digest != other.digest


def test_a_reward_has_the_change_and_the_notes_of_each_stage():
    pipeline = built(shape="cap", heads=(("a", 1.0),), penalties={"missing_end": 1.0, "overlong": 2.0, "overlong_start": 1,
                                                                   "overlong_end": 3})  # fmt: skip
    batch = RewardBatch([{"a": 13.0}, {"a": 3.0}, {"a": -15.0}], lengths=[1, None, 9], missing_end=[False, False, True])
    assert pipeline(batch) == [
        Reward(13.0, 4.0, 6.0, ("capped_high",), (6.0, 0.0, 0.0, -2.0), None),
        Reward(3.0, 1.0, 1.0, (), (1.0, 0.0, 0.0, 0.0), None),
        Reward(
            -15.0, -4.0, -8.0, ("missing_end_penalty", "overlong_penalty", "capped_low"), (-8.0, -1.0, -2.0, 7.0), None
        ),
    ]  # fmt: skip
    quiet = built(shape="cap", heads=(("a", 1.0),), normalize=False)
    assert quiet(RewardBatch([{"a": 3.0}, {"a": 1.0}])) == [
        Reward(3.0, 3.0, None, (), (3.0, 0.0), None),
        Reward(1.0, 1.0, None, (), (1.0, 0.0), None),
    ]
    assert quiet(RewardBatch([])) == []
    spread = built(combine={"method": "min"}, heads=(("a", 1.0), ("b", 1.0)), penalties={"missing_end": 1.0})
    assert spread.one({"a": 4.5, "b": -1.0}, missing_end=False) == Reward(0.0, 0.0, 0.0, (), (0.0, 0.0), 1.0)
    noted = Reward(0.0, -1.0, 0.0, ("missing_end_penalty",), (0.0, -1.0), 1.0)
    assert spread.one({"a": 4.5, "b": -1.0}, missing_end=True) == noted


def test_a_stage_that_changes_nothing_changes_no_infinity():
    assert built(shape="cap", cap_low=0.0, heads=(("a", 1.0),)).one({"a": inf}).changes == (inf, 0.0)


def test_a_stage_that_loses_a_value_is_an_error():
    class Loses(Cap):
        def __call__(self, values, batch):
            return values[1:], {}

    pipeline = replace(built(heads=(("a", 1.0),)), stages=(Loses(None, None),))
    with pytest.raises(ValueError, match="zip"):
        pipeline(RewardBatch([{"a": 1.0}, {"a": 2.0}]))


FIT = "Fit it with `rewardserve calibrate`"
CURVE_NEEDED = f"needs the length curve of one calibrated model. {FIT}."
USUAL_NEEDED = (
    f"needs the calibration's usual share of repeated trigrams. {FIT}, "
    "or set penalties.repetition_above to a share below 1."
)


def overlong_needs(*missing):
    return (
        "penalties.overlong=1 needs the lengths in tokens from which the penalty grows and at which it is reached: "
        f"set {' and '.join(f'penalties.{name}' for name in missing)}."
    )


def references_needed(shape):
    return (
        f"shape={shape} needs reference rewards for samples that bring none, and there is no calibration of this reward "
        f"with quantiles. {FIT}."
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"calibration": None, "normalize": True},
            "normalize=on, but m has no fitted statistics (calibration.json, or mean and std in config.json). Fit them with "
            "`rewardserve calibrate`, or set normalize=off.",
        ),
        ({"combine": {"beta": -0.5}}, "combine.beta=-0.5 is below zero"),
        ({"combine": {"beta": nan}}, "combine.beta=nan is below zero"),
        (
            {"calibration": BARE, "combine": {"method": "min"}},
            f"combine.method needs statistics of each head, and m has none of a. {FIT}, or set combine.method=sum.",
        ),
        (
            {"combine": {"method": "min", "weights": {"z": 1.0, "d": 1.0}}},
            "combine.weights names d, z; the heads are a, b, c",
        ),
        (
            {"combine": {"method": "min", "weights": {"a": -1.0}}},
            "combine.weights: a=-1.0: a weight is zero or a positive number",
        ),
        (
            {"combine": {"method": "mean", "weights": {"a": 0.0, "b": 0.0, "c": 0.0}}},
            "combine.weights: one weight must be above zero, they are [0.0, 0.0, 0.0]",
        ),
        (
            {"combine": {"weights": {"a": 2.0}}},
            "combine.weights has no effect with combine.method=sum, the default for one model: its heads keep the weights of the "
            "checkpoint (a, b, c). Set combine.method=mean, min, softmin or and, which weigh heads.",
        ),
        ({"length_debias": 1.5}, "length_debias=1.5 is not between 0 and 1"),
        ({"length_debias": -0.5}, "length_debias=-0.5 is not between 0 and 1"),
        ({"length_debias": 1.0, "calibration": None}, f"length_debias=1.0 {CURVE_NEEDED}"),
        ({"length_debias": 1.0, "calibration": BARE}, f"length_debias=1.0 {CURVE_NEEDED}"),
        ({"length_debias": 1.0, "calibration": replace(FITTED, log_length=None)}, f"length_debias=1.0 {CURVE_NEEDED}"),
        *(
            ({"penalties": {name: value}}, f"penalties.{name}={value}: a penalty must not be below zero")
            for name in ("missing_end", "overlong", "repetition")
            for value in (-1.0, nan)
        ),
        *(
            (
                {"penalties": {"overlong": 1.0, "overlong_start": start, "overlong_end": end}},
                message,
            )
            for start, end, message in (
                (None, None, overlong_needs("overlong_start", "overlong_end")),
                (None, 9, overlong_needs("overlong_start")),
                (1, None, overlong_needs("overlong_end")),
                (-1, 9, "penalties.overlong_start=-1 must be at least 0 and below penalties.overlong_end=9."),
                (9, 9, "penalties.overlong_start=9 must be at least 0 and below penalties.overlong_end=9."),
            )
        ),
        ({"penalties": {"repetition": 1.0}, "calibration": BARE}, f"penalties.repetition=1.0 {USUAL_NEEDED}"),
        ({"penalties": {"repetition": 1.0}, "calibration": None}, f"penalties.repetition=1.0 {USUAL_NEEDED}"),
        ({"penalties": {"repetition": 1.0, "repetition_above": 1.0}}, f"penalties.repetition=1.0 {USUAL_NEEDED}"),
        ({"penalties": {"repetition": 1.0, "repetition_above": -0.1}}, f"penalties.repetition=1.0 {USUAL_NEEDED}"),
        ({"cap_low": 2.0, "cap_high": 2.0}, "cap_low=2.0 is not below cap_high=2.0"),
        *(
            (
                {"shape": shape, "calibration": BARE},
                f"shape={shape} needs a cap: set cap_low or cap_high, or use a checkpoint whose calibration.json has caps.",
            )
            for shape in ("cap", "softcap")
        ),
        *(({"shape": shape, "calibration": BARE}, references_needed(shape)) for shape in ("par", "lsc")),
        ({"shape": "par", "calibration": None}, references_needed("par")),
        ({"shape": "par", "combine": {"method": "min"}}, references_needed("par")),
        ({"shape": "par", "slope": 0.0}, "slope=0.0 is not above zero"),
        ({"shape": "lsc", "slope": nan}, "slope=nan is not above zero"),
    ],
)
def test_what_a_calibration_cannot_give_is_refused_with_the_setting_and_the_remedy(given, message):
    with pytest.raises(PipelineError) as refused:
        built(**given)
    assert str(refused.value) == message


def test_only_heads_of_one_model_can_be_summed():
    ensemble_members = [EnsembleMember("x", HEADS, FITTED), EnsembleMember("y", HEADS, None)]
    with pytest.raises(PipelineError) as refused:
        build_pipeline(ensemble_members, settings_of({"method": "sum"}))
    assert str(refused.value) == "combine.method=sum is for the heads of one model. Use mean, min, softmin or and."
    with pytest.raises(PipelineError, match="but y has no fitted statistics"):
        build_pipeline(ensemble_members, settings_of(normalize=True))


def test_bounds_of_settings_are_allowed():
    assert built(penalties={"repetition": 1.0, "repetition_above": 0.0}, shape="none").stages == (Repetition(1.0, 0.0),)
    assert built(length_debias=0.0, shape="none").stages == ()
    assert built(combine={"method": "softmin", "beta": 0.0}).combination.beta == 0.0
