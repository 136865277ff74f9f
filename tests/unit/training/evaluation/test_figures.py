"""Metrics and calibration against references that are written another way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewardserve.model.calibration import REFERENCE_QUANTILES
from rewardserve.model.traits import TRAITS
from rewardserve.training.evaluation import calibrate, evaluate, graded_metrics
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.evaluation.evaluate import ScoredPairs
from rewardserve.training.results import report

FLOATS = st.floats(-50, 50, allow_subnormal=False)
DIFFS = hnp.arrays(float, st.integers(1, 60), elements=FLOATS)


def judged(chosen, rejected, group=None, chars=None):
    chosen, rejected = np.asarray(chosen, float), np.asarray(rejected, float)
    n = len(chosen)
    return ScoredPairs(
        "score", "s", chosen, rejected,
        np.full(n, 5) if chars is None else np.asarray(chars[0]),
        np.full(n, 5) if chars is None else np.asarray(chars[1]),
        np.arange(n) if group is None else np.asarray(group),
        np.concatenate([chosen, rejected]), np.arange(1, 2 * n + 1),
    )  # fmt: skip


def test_accuracy_and_both_length_rules_are_of_the_very_same_pairs():
    m = evaluate.slice_metrics(judged([2, 2, 2, 0], [1, 1, 1, 0], chars=([9, 9, 1, 1], [1, 1, 9, 1])))
    assert (m.accuracy, m.longer, m.shorter) == (0.875, 0.625, 0.375)
    assert (m.n_pairs, m.n_groups, m.margin) == (4, 4, 0.75)


@given(diff=DIFFS)
def test_nll_is_the_mean_of_minus_log_sigmoid(diff):
    expected = sum(-math.log(1 / (1 + math.exp(-d))) for d in diff) / len(diff)
    assert evaluate.nll(diff) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(diff=DIFFS)
def test_ece_is_the_one_written_as_a_loop(diff):
    order = sorted(range(len(diff)), key=lambda i: (1 / (1 + math.exp(-abs(diff[i]))), i))
    n_bins = min(15, max(1, len(diff) // 10))
    size, extra = divmod(len(diff), n_bins)
    total, at = 0.0, 0
    for b in range(n_bins):
        members = order[at : at + size + (b < extra)]
        at += len(members)
        if members:
            sure = sum(1 / (1 + math.exp(-abs(diff[i]))) for i in members)
            right = sum(1.0 if diff[i] > 0 else 0.5 if diff[i] == 0 else 0.0 for i in members)
            total += abs(sure - right)
    # Equal confidences may be put into either of two bins.
    if len({round(abs(d), 9) for d in diff}) == len(diff):
        assert evaluate.ece(diff) == pytest.approx(total / len(diff), abs=1e-9)


def test_ece_of_a_calibrated_judge_is_small_and_of_a_boaster_is_not():
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 2, 20_000))
    right = rng.random(20_000) < 1 / (1 + np.exp(-size))
    diff = np.where(right, size, -size)
    assert evaluate.ece(diff) < 0.015
    assert evaluate.ece(diff * 5) > 0.15
    assert calibrate.temperature(diff * 5) == pytest.approx(5, rel=0.05)
    assert evaluate.ece(evaluate.cross_fitted(diff * 5, np.arange(20_000))) < 0.015


@given(diff=hnp.arrays(float, st.integers(2, 50), elements=st.floats(-5, 5)).filter(lambda d: d.mean() > 0.05))
def test_the_temperature_is_where_no_grid_point_does_better(diff):
    label = (len(diff) + 1) / (len(diff) + 2)

    def cost(t):
        return float((label * np.logaddexp(0, -diff / t) + (1 - label) * np.logaddexp(0, diff / t)).mean())

    t = calibrate.temperature(diff)
    grid = np.abs(diff).mean() * np.logspace(-2.9, 2.9, 400)
    assert cost(t) <= min(map(cost, grid)) + 1e-9


@pytest.mark.parametrize("diff", [[3.0, 4.0, 5.0], [-1.0, -2.0], [0.0, 0.0], [1e-300], [1e300, 1e299]])
def test_a_temperature_is_always_finite_and_above_zero(diff):
    t = calibrate.temperature(np.array(diff))
    assert math.isfinite(t)
    assert t > 0


@given(x=hnp.arrays(float, 12, elements=st.integers(-5, 5).map(float)))
def test_ranks_share_ties(x):
    expected = [sum(y < v for y in x) + (1 + sum(y == v for y in x)) / 2 for v in x]
    assert evaluate.ranks(x).tolist() == expected


@given(x=hnp.arrays(float, 10, elements=FLOATS, unique=True), y=hnp.arrays(float, 10, elements=FLOATS, unique=True))
def test_correlation_is_numpys(x, y):
    if x.std() > 1e-6 and y.std() > 1e-6:
        assert evaluate.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert -1 - 1e-12 <= evaluate.pearson(x, y) <= 1 + 1e-12


def test_the_interval_counts_groups_not_pairs():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(20), 50)
    won = np.repeat((rng.random(20) < 0.7).astype(float), 50)
    by_group = evaluate.bootstrap_accuracy(won, group, 500)
    by_pair = evaluate.bootstrap_accuracy(won, np.arange(1000), 500)
    assert by_group[1] - by_group[0] > 3 * (by_pair[1] - by_pair[0])
    assert by_group[0] <= won.mean() <= by_group[1]
    assert by_group == evaluate.bootstrap_accuracy(won, group, 500), "the seed is fixed"


def test_no_group_sees_its_own_temperature():
    diff = np.array([1.0, 2.0, -1.0, 3.0, -2.0, 4.0])
    group = np.array([0, 1, 2, 3, 0, 1])
    out = evaluate.cross_fitted(diff, group)
    even = group % 2 == 0
    assert out[even] == pytest.approx(diff[even] / calibrate.temperature(diff[~even]))
    assert out[~even] == pytest.approx(diff[~even] / calibrate.temperature(diff[even]))


def test_length_balanced_accuracy_weighs_both_sides_of_length_alike():
    """Three pairs won by length alone, and one that length loses."""
    j = judged([3.0, 3.0, 3.0, 1.0], [1.0, 1.0, 1.0, 2.0])
    j = replace(j, chosen_chars_P=np.array([9, 9, 9, 2]), rejected_chars_P=np.array([2, 2, 2, 9]))
    m = evaluate.slice_metrics(j, n_bootstrap=10)
    assert (m.accuracy, m.longer_chosen, m.shorter_chosen, m.length_balanced) == (0.75, 1.0, 0.0, 0.5)
    one_side = replace(j, rejected_chars_P=np.array([2, 2, 2, 1]))
    assert evaluate.slice_metrics(one_side, n_bootstrap=10).length_balanced is None


def test_curves_of_a_long_run_are_thinned_and_evaluations_are_kept():
    history = [{"step": i, "loss": 1 / i, "learning_rate": 1e-3, "grad_norm": 2.0} for i in range(1, 2501)]
    history += [{"step": 2000, "eval_accuracy": 0.7}, {"step": 2500, "train_runtime": 3.0}]
    found = report.curves(history)
    assert set(found) == {"loss", "learning_rate", "eval_accuracy"}
    assert [step for step, _ in found["loss"]] == list(range(1, 2501, 3))
    assert found["eval_accuracy"] == [(2000, 0.7)]


# -- calibration ------------------------------------------------------------------------------------------


def held_out(raw, tokens, diff, heads=None):
    heads = raw[:, None] if heads is None else heads
    names = [f"head {i}" for i in range(heads.shape[1])]
    traits = np.zeros((len(raw), len(TRAITS)))
    return calibrate.HeldOut(raw, tokens, diff, names, heads, [diff] * len(names), traits, "xx.1")


def test_a_calibration_gives_mean_zero_and_deviation_one():
    rng = np.random.default_rng(2)
    raw, tokens = rng.normal(3, 2, 5_000), rng.integers(5, 200, 5_000)
    c = calibrate.fit(held_out(raw, tokens, rng.normal(1, 1, 100)), data_digest="d")
    z = (raw - c.mean) / c.std
    assert abs(z.mean()) < 1e-9
    assert z.std() == pytest.approx(1)
    assert np.mean((z >= c.cap_low) & (z <= c.cap_high)) == pytest.approx(0.99, abs=0.001)
    assert c.length_slope == pytest.approx(np.polyfit(np.log(tokens), z, 1)[0])
    assert [p for p, _ in c.quantiles] == list(REFERENCE_QUANTILES)
    assert dict(c.quantiles)[0.5] == pytest.approx(np.median(raw))
    assert (c.n, c.data_digest) == (5_000, "d")


def test_with_its_weights_the_raw_score_is_the_sum_of_normalised_heads_but_for_a_constant():
    rng = np.random.default_rng(3)
    scores = rng.normal([1, -4], [0.5, 20], (400, 2))
    targets = (2.0, 1.0)
    raw = scores @ np.array(calibrate.head_weights(scores, targets))
    normalised = ((scores - scores.mean(0)) / scores.std(0)) @ np.array(targets)
    assert np.ptp(raw - normalised) < 1e-9
    c = calibrate.fit(held_out(raw, np.full(400, 9), np.ones(3), scores), data_digest="")
    assert (raw - c.mean) / c.std == pytest.approx(normalised / normalised.std())
    assert [head.name for head in c.heads] == ["head 0", "head 1"]
    assert [(h.mean, h.std) for h in c.heads] == [pytest.approx((s.mean(), s.std())) for s in scores.T]


def test_the_length_curve_finds_what_length_is_worth():
    rng = np.random.default_rng(5)
    tokens = np.exp(rng.normal(4, 1, 4_000)).astype(int) + 1
    worth = np.minimum(np.log(tokens), 4.5)  # grows, then bends
    raw = 7 + 3 * (worth + rng.normal(0, 0.3, 4_000))
    c = calibrate.fit(held_out(raw, tokens, np.ones(3)), data_digest="")
    knots = np.array(c.length_curve)
    assert len(knots) == 40
    expected = (7 + 3 * np.minimum(knots[:, 0], 4.5) - c.mean) / c.std
    assert np.abs(knots[:, 1] - expected).max() < 0.12, "0.1 is what the bend is rounded off by"
    assert c.log_length == pytest.approx(np.median(np.log(tokens)))


def test_the_length_curve_has_a_number_everywhere_where_only_few_lengths_occur():
    log_N = np.log(np.repeat([6.0, 7.0], 20))
    knots = calibrate.length_curve(log_N, np.repeat([-1.0, 1.0], 20))
    assert [y for _, y in knots] == sorted(y for _, y in knots), "rises with length, as the two groups do"
    assert (knots[0][1], knots[-1][1]) == (pytest.approx(-1.0), pytest.approx(1.0))
    assert np.isfinite(knots).all()


@pytest.mark.parametrize("x", [0.0, 0.4, 1.0])
def test_the_length_curve_is_a_weighted_straight_line_at_each_place(x):
    rng = np.random.default_rng(6)
    lengths, z = rng.uniform(0, 1, 60), rng.normal(0, 1, 60)
    near = np.argsort(np.abs(lengths - x))[:20]
    reach = np.abs(lengths - x)[near].max()
    weight = (1 - (np.abs(lengths[near] - x) / reach) ** 3) ** 3
    slope, level = np.polyfit(lengths[near], z[near], 1, w=np.sqrt(weight))
    assert calibrate._local_fit(x, lengths, z, 20) == pytest.approx(level + slope * x, abs=1e-6)


def test_lengths_that_do_not_vary_have_a_curve_of_one_knot():
    raw = np.array([1.0, 2.0, 3.0])
    c = calibrate.fit(held_out(raw, np.full(3, 5), raw), data_digest="")
    assert c.length_curve == ((pytest.approx(np.log(5)), pytest.approx(0.0)),)


def test_what_repetition_is_usual_is_exceeded_by_one_in_a_hundred():
    raw, traits = np.arange(1000.0), np.zeros((1000, len(TRAITS)))
    traits[:, TRAITS.index("repetition")] = np.linspace(0, 1, 1000)
    c = calibrate.fit(replace(held_out(raw, np.full(1000, 5), raw), traits_NT=traits), data_digest="")
    assert np.mean(traits[:, TRAITS.index("repetition")] > c.repetition_high) == pytest.approx(0.01, abs=0.001)
    assert {t.name: t.mean for t in c.traits}["repetition"] == pytest.approx(0.5)
    assert c.lexicon == "xx.1"


@pytest.mark.parametrize("raw", [np.array([]), np.array([1.0]), np.array([2.0, 2.0, 2.0])])
def test_there_must_be_something_to_calibrate_on(raw):
    with pytest.raises(NothingToFit, match=r"data\.eval_fraction"):
        calibrate.fit(held_out(raw, np.ones(len(raw)), raw), data_digest="")


def test_a_head_that_says_nothing_cannot_be_weighed():
    with pytest.raises(NothingToFit, match="same score"):
        calibrate.head_weights(np.array([[1.0, 2.0], [1.0, 3.0]]), (1.0, 1.0))


# -- report -----------------------------------------------------------------------------------------------


def test_a_report_is_one_file_that_escapes_what_it_prints(tmp_path):
    j = judged([1.0, 2.0, 0.0], [0.0, 1.0, 1.0])
    m = evaluate.slice_metrics(j, n_bootstrap=10)
    page = report.Page("<script>", {"a": "<b>"}, [m], [m], [j], {"model": {"path": "x"}})
    report.write(tmp_path / "deep" / "r.html", page)
    text = (tmp_path / "deep" / "r.html").read_text()
    assert "<script>" not in text
    assert "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text.replace("http-equiv", "")
    assert "0.667" in text


@pytest.mark.parametrize(("won", "low", "high"), [([1, 0, 0, 1], 0.01, 0.99), ([1, 1, 1, 1], 0.03, 1.0)])
def test_one_group_gives_an_interval_that_says_next_to_nothing(won, low, high):
    found = evaluate.bootstrap_accuracy(np.array(won, dtype=float), np.zeros(4), 100)
    assert found[0] < low + 0.02
    assert found[1] > high - 0.02


def test_groups_that_are_all_won_leave_the_bound_of_what_was_not_seen():
    low, high = evaluate.bootstrap_accuracy(np.ones(36), np.arange(36), 100)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 36)), 1.0)


@pytest.mark.parametrize(
    ("kind", "interval"), [("ratings", "[-1.000, 1.000] of 4 ratings"), ("labels", "[0.000, 1.000] of 4 labels")]
)
def test_ratings_and_labels_of_one_group_have_no_interval_and_say_so(kind, interval):
    values = np.array([0.0, 1.0, 0.0, 1.0])
    measure = {"ratings": graded_metrics.spearman, "labels": graded_metrics.auc}[kind]
    low, high = graded_metrics._bootstrap(measure, np.arange(4.0), values, np.zeros(4, dtype=int), 10)
    line = graded_metrics.GradedMetrics("score", "s", kind, "m", 4, 1, 0.5, low, high, None)
    (text,) = graded_metrics.graded_lines([line])
    assert f"{interval} in 1 group; one group says next to nothing about others" in text
