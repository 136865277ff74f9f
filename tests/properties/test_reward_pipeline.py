"""The reward pipeline for any finite number: order is kept, caps hold, nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.calibration import Calibration, CalibrationError
from model.reward import PipelineError, RewardSettings, build_pipeline

finite = st.floats(-1e6, 1e6, allow_nan=False)
calibrations = st.builds(
    Calibration,
    mean=st.floats(-100, 100),
    std=st.floats(1e-2, 1e2),
    cap_low=st.floats(-10, -0.5),
    cap_high=st.floats(0.5, 10),
)
settings_ = st.builds(
    RewardSettings,
    normalize=st.sampled_from([None, True, False]),
    shape=st.sampled_from([None, "none", "cap", "softcap"]),
)


@given(calibrations, settings_, finite, finite)
def test_a_better_raw_score_never_gets_a_lower_reward(calibration, settings, a, b):
    pipeline = build_pipeline(calibration, settings)
    low, high = sorted([a, b])
    assert pipeline(low).value <= pipeline(high).value


@given(calibrations, finite, st.floats(1e-2, 1e3))
def test_a_soft_cap_keeps_even_far_out_scores_apart(calibration, a, gap):
    pipeline = build_pipeline(calibration, RewardSettings(shape="softcap"))
    a = max(-1e4, min(1e4, a / 100)) * calibration.std
    assert pipeline(a).value < pipeline(a + gap * calibration.std).value


@given(calibrations, settings_, finite)
def test_caps_hold_and_are_noted(calibration, settings, raw):
    pipeline = build_pipeline(calibration, settings)
    reward = pipeline(raw)
    if pipeline.cap_low is not None:
        assert pipeline.cap_low <= reward.value <= pipeline.cap_high
    seen = reward.normalized if pipeline.normalizes else raw
    soft = "soft" if pipeline.shape == "softcap" else ""
    side = (f"{soft}capped_high",) if reward.value < seen else (f"{soft}capped_low",) if reward.value > seen else ()
    assert reward.notes == side


@given(calibrations, settings_, finite)
def test_all_three_numbers_are_returned(calibration, settings, raw):
    pipeline = build_pipeline(calibration, settings)
    reward = pipeline(raw)
    assert reward.raw == raw
    if pipeline.normalizes:
        assert reward.normalized == pytest.approx((raw - calibration.mean) / calibration.std, rel=1e-12)
    else:
        assert reward.normalized is None
    if pipeline.shape == "none":
        assert reward.value == (reward.normalized if pipeline.normalizes else raw)


@given(calibrations, st.floats(0, 1))
def test_a_soft_cap_leaves_the_middle_alone(calibration, where):
    pipeline = build_pipeline(calibration, RewardSettings(shape="softcap"))
    width = (calibration.cap_high - calibration.cap_low) / 8
    z = calibration.cap_low + width + where * (calibration.cap_high - calibration.cap_low - 2 * width)
    reward = pipeline(calibration.mean + z * calibration.std)
    assert reward.value == pytest.approx(reward.normalized, abs=1e-9)


@given(calibrations)
def test_a_soft_cap_has_no_kink_at_its_knee(calibration):
    pipeline = build_pipeline(calibration, RewardSettings(shape="softcap"))
    width = (calibration.cap_high - calibration.cap_low) / 8
    knee, step = calibration.cap_high - width, 1e-4 * width
    value = pipeline(calibration.mean + (knee + step) * calibration.std).value
    assert (value - knee) / step == pytest.approx(1.0, abs=1e-3)


@given(calibrations, settings_, finite)
def test_the_same_input_gives_the_same_bits(calibration, settings, raw):
    a, b = build_pipeline(calibration, settings), build_pipeline(calibration, settings)
    assert a(raw) == b(raw)
    assert a.digest == b.digest


def test_normalising_without_fitted_statistics_is_refused_with_the_remedy():
    with pytest.raises(PipelineError, match="reward-train calibrate"):
        build_pipeline(None, RewardSettings(normalize=True))


def test_without_statistics_the_default_is_the_raw_score():
    reward = build_pipeline(None, RewardSettings())(3.25)
    assert (reward.raw, reward.normalized, reward.value, reward.notes) == (3.25, None, 3.25, ())


@pytest.mark.parametrize("shape", ["cap", "softcap"])
def test_a_shape_that_needs_caps_is_refused_without_them(shape):
    with pytest.raises(PipelineError, match="REWARD_CAP_LOW"):
        build_pipeline(None, RewardSettings(shape=shape))


@pytest.mark.parametrize("shape", ["cap", "softcap"])
def test_one_side_may_stay_open(shape):
    pipeline = build_pipeline(None, RewardSettings(shape=shape, cap_high=2.0))
    assert pipeline(-1e5).value == -1e5
    assert pipeline(1e5).value <= 2.0
    assert pipeline(1e5).notes == (("capped_high",) if shape == "cap" else ("softcapped_high",))


def test_caps_of_the_calibration_follow_to_raw_units_where_nothing_is_normalised():
    calibration = Calibration(mean=10.0, std=2.0, cap_low=-3.0, cap_high=3.0)
    pipeline = build_pipeline(calibration, RewardSettings(normalize=False, shape="cap"))
    assert (pipeline(100.0).value, pipeline(-100.0).value) == (16.0, 4.0)


def test_crossed_caps_are_refused():
    with pytest.raises(PipelineError, match="not below"):
        build_pipeline(None, RewardSettings(cap_low=2.0, cap_high=1.0))


def test_settings_that_differ_have_different_digests():
    calibration = Calibration(mean=0.0, std=1.0, cap_low=-3.0, cap_high=3.0)
    digests = {
        build_pipeline(calibration, RewardSettings(shape=shape, normalize=normalize)).digest
        for shape in ("none", "cap", "softcap")
        for normalize in (True, False)
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    "fields",
    [{"mean": float("nan"), "std": 1.0}, {"mean": 0.0, "std": 0.0}, {"mean": 0.0, "std": 1.0, "temperature": -1.0}],
)
def test_a_calibration_that_makes_no_sense_is_refused(fields):
    with pytest.raises(CalibrationError, match=r"mean|std|temperature"):
        Calibration(**fields)


def test_a_calibration_survives_its_file(tmp_path):
    calibration = Calibration(mean=0.5, std=2.0, cap_low=-3.0, cap_high=3.0, quantiles=((0.1, -1.0), (0.9, 1.0)), n=7)
    calibration.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert again == calibration
    assert again.digest == calibration.digest
    (tmp_path / "calibration.json").write_text('{"mean": 1.0}')
    with pytest.raises(CalibrationError, match="unreadable"):
        Calibration.load(tmp_path)
    (tmp_path / "calibration.json").unlink()
    assert Calibration.load(tmp_path) is None
