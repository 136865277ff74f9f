"""The e-process against drift. The references are the formulas written out, and simulated runs."""

from __future__ import annotations

from math import isnan, prod, sqrt
from random import Random
from statistics import linear_regression

import pytest

from rewardserve.service.tripwires import drift
from rewardserve.service.tripwires.drift import BAND, DriftStart, DriftTest, PromptMeans


def windows(rng: Random, n: int, size: int, shift=lambda _: 0.0, std: float = 1.0):
    return [[rng.gauss(shift(i), std) for _ in range(size)] for i in range(n)]


def behind(window):
    """Prompts of one score, whose judge is so far behind."""
    return [PromptMeans(0.0, -each) for each in window]


def fed(each, test: DriftTest | None = None) -> DriftTest:
    test = test or DriftTest()
    for window in each:
        test.add_window(behind(window))
    return test


def alarm(each) -> int | None:
    return alarm_of(map(behind, each))


def alarm_of(each) -> int | None:
    test = DriftTest()
    for i, window in enumerate(each):
        test.add_window(window)
        if test.e_value >= 1_000:
            return i
    return None


def test_the_wealth_is_the_mixture_over_the_windows_at_which_bets_begin():
    start, later = windows(Random(1), 4, 32), windows(Random(2), 3, 5, lambda _: 1.5)
    test = fed(start + later)
    values = [each for window in start for each in window]
    mean = sum(values) / 128
    std = sqrt(sum((each - mean) ** 2 for each in values) / 127)
    clipped = [max(-4, min(4, (each - mean) / std)) for each in values]
    offset, delta = sum(clipped) / 128, BAND + 3 / sqrt(128)
    bets = [[max(-4, min(4, (y - mean) / std - offset)) for y in window] for window in later]
    expected = 0.0
    for bet in (0.02, 0.05, 0.1, 0.17):
        gains = [prod(1 + bet * (y - delta) for y in window) for window in bets]
        expected += sum(prod(gains[k:]) / ((k + 1) * (k + 2)) for k in range(3)) / 4
    of_short = expected + 1 / 4  # change points to come
    assert test.e_value == pytest.approx((of_short + 1.0) / 2)
    assert test.start is not None
    assert (test.start.n, test.start.slope, test.start.band) == (128, 0.0, BAND)
    assert test.start.std == pytest.approx(std)
    assert test.start.intercept == pytest.approx(-(mean + offset * std))


def pupil(rng: Random, n: int, size: int, quality, paid=lambda _: 0.0, exploits=lambda _: 0.0):
    """Windows of a judge that sees .6 of the quality, and nothing of what the model pays for exploits."""
    return [
        [
            PromptMeans(score + paid(i), 0.6 * score + 0.8 * rng.gauss(0, 1) - exploits(i))
            for score in (rng.gauss(quality(i), 1) for _ in range(size))
        ]
        for i in range(n)
    ]


def test_a_judge_that_sees_a_part_of_what_gets_better_is_as_far_behind_as_its_line_expects():
    rng = Random(7)
    climbs = pupil(rng, 300, 64, lambda i: min(2.0, i / 50))
    assert alarm_of(climbs) is None
    test = DriftTest()
    for window in climbs:
        test.add_window(window)
    assert test.start is not None
    assert (test.start.n, test.start.slope) == (512, pytest.approx(0.6, abs=0.1))
    # least squares, written out
    first = [each for window in climbs[:8] for each in window]
    s, a = [each.score for each in first], [each.audit for each in first]
    assert test.start.slope == pytest.approx(linear_regression(s, a).slope)
    paid = pupil(rng, 300, 64, lambda _: 0.0, lambda i: min(2.0, i / 50), lambda i: min(0.7, i / 150))
    assert 0 < (alarm_of(paid) or 0) < 60


def test_the_hypothesis_is_wider_where_scores_are_far_from_those_of_the_start():
    start = DriftStart(n=100, score_mean=1.0, score_std=2.0, slope=0.5, intercept=0.0, std=1.0, band=0.2)
    assert start.delta(0.2, 1.0) == pytest.approx(0.2 + 0.3)
    assert start.delta(0.2, 7.0) == pytest.approx(0.2 + 0.3 * sqrt(10))
    assert start.delta(0.2, 1e9) == 1.8
    assert start.residual(PromptMeans(1.0, -1.0)) == 1.5
    assert start.residual(PromptMeans(1.0, -9.0)) == 4.0


def test_nothing_is_bet_before_the_start_of_the_run_is_known():
    test = fed([[0.0, 1.0]] * 63 + [[]])
    assert (test.start, test.shift, test.e_value) == (None, None, 1.0)
    assert fed([[0.0, 1.0]], test).start is not None
    assert fed([[0.1] * 1_000] * 3).start is None
    assert fed([[0.1] * 1_000] * 4).start is not None


@pytest.mark.parametrize(
    "draw", [lambda r: r.gauss(0, 1), lambda r: r.choice((-1, 5)), lambda r: r.gauss(0, 1) / (r.random() + 0.05)]
)
@pytest.mark.parametrize("size", [3, 40])
def test_a_run_that_does_not_change_raises_no_alarm(draw, size):
    for seed in range(12):
        rng = Random(seed)
        assert alarm([[draw(rng) for _ in range(size)] for _ in range(400)]) is None


@pytest.mark.parametrize("n", [60, 120, 240, 480])
def test_growth_is_seen_at_every_speed(n):
    for seed in range(3):
        at = alarm(windows(Random(seed), n, 128, lambda i, n=n: 2.4 * 0.8 * i / (n - 1)))
        assert at is not None
        assert 0.8 * at / (n - 1) < 0.35


def test_a_growth_within_the_band_is_tolerated_and_a_fall_is_none():
    assert alarm(windows(Random(3), 600, 64, lambda i: min(0.2, i / 100))) is None
    assert alarm(windows(Random(3), 600, 64, lambda i: -i / 50)) is None


def test_the_band_grows_with_how_far_a_judge_wanders():
    n_alarms = 0
    for seed in range(8):
        rng, wander, each = Random(seed), 0.0, []
        for _ in range(250):
            wander = 0.95 * wander + 0.16 * sqrt(1 - 0.95**2) * rng.gauss(0, 1)
            each.append([rng.gauss(wander, 1) for _ in range(64)])
        n_alarms += alarm(each) is not None
    assert n_alarms <= 1


def test_wandering_is_a_fall_that_the_spread_of_prompts_does_not_explain():
    wanders, grows, spreads = drift._Wander(), drift._Wander(), drift._Wander()
    rng = Random(4)
    for i in range(320):
        wanders.add_window([rng.gauss(0.5 * (-1) ** (i // 16), 1) for _ in range(50)])
        grows.add_window([rng.gauss(i / 50, 1) for _ in range(50)])
        spreads.add_window([rng.gauss(0, 1) for _ in range(50)])
    # Half of the moves are falls of 1, whose mean square is twice the variance between both levels.
    assert wanders.std == pytest.approx(sqrt(0.5), abs=0.1)
    assert grows.std == 0.0
    assert spreads.std < 0.05


def test_a_restart_bets_again_against_the_same_start():
    test = fed(windows(Random(5), 40, 64, lambda i: 2.0 * (i >= 8)))
    start = test.start
    assert test.e_value > 1e6
    assert test.shift == pytest.approx(2.0, abs=0.2)
    test.restart()
    assert (test.e_value, test.shift, test.start) == (1.0, 0.0, start)
    assert fed(windows(Random(6), 20, 64, lambda _: 2.0), test).e_value > 1_000


def test_numbers_without_a_difference_and_huge_ones_stay_finite():
    test = fed([[0.5] * 64] * 10 + [[1e308] * 64] * 300)
    assert 1e90 < test.e_value < float("inf")
    assert fed([[-1e308] * 64] * 300, test).e_value < float("inf")


@pytest.mark.parametrize("huge", [1e200, -1e300, 1.7e308])
def test_huge_scores_end_no_test(huge):
    test = DriftTest()
    for i in range(40):
        test.add_window([PromptMeans(huge * (i % 2), -huge), PromptMeans(0.0, 0.0)] * 64)
    assert not isnan(test.e_value)


def test_the_test_is_learning_until_it_knows_both_starts():
    test = DriftTest()
    for n in range(8):
        assert test.is_learning, n
        test.add_window([PromptMeans(each, each) for each in range(64)])
    assert not test.is_learning


# -- tasks ------------------------------------------------------------------------------------------------------------


def of_tasks(rng, n, mix, gap=lambda _: 0.0, size=32, apart=4.0):
    """Windows of prompts of two tasks, of which the judge likes the second less; `mix`: share of the second task."""
    made = []
    for i in range(n):
        window = []
        for _ in range(size):
            task = "b" if rng.random() < mix(i) else "a"
            score = rng.gauss(2.0 if task == "b" else 0.0, 1.0)
            window.append(PromptMeans(score + gap(i), 0.6 * score + rng.gauss(-apart * (task == "b"), 0.8), task))
        made.append(window)
    return made


def unnamed(windows):
    return [[prompt._replace(task="") for prompt in window] for window in windows]


@pytest.mark.parametrize("begins", [0, 40])
def test_a_curriculum_between_tasks_is_no_drift(begins):
    """Also to a task that begins later: it learns its own start first."""
    mixes = {0: lambda i: 0.1 + 0.8 * i / 200, 40: lambda i: 0.0 if i < 40 else min(1.0, (i - 40) / 60)}
    made = [of_tasks(Random(seed), 200, mixes[begins]) for seed in range(8)]
    assert [alarm_of(each) for each in made] == [None] * 8
    assert None not in [alarm_of(unnamed(each)) for each in made]


def test_drift_in_all_tasks_is_seen_about_as_early_as_without_tasks():
    made = [of_tasks(Random(seed), 120, lambda _: 0.5, lambda i: 0.03 * max(0, i - 20), apart=0.0) for seed in range(8)]
    pairs = [(alarm_of(each), alarm_of(unnamed(each))) for each in made]
    assert max(named for named, _ in pairs) < 80
    assert sum(named for named, _ in pairs) <= 1.15 * sum(alone for _, alone in pairs)


def test_tasks_without_drift_seldom_raise_an_alarm_however_many_they_are():
    def window(rng):
        return [PromptMeans(rng.gauss(t, 1.0), rng.gauss(-t, 1.0), f"t{t}") for t in rng.choices(range(12), k=32)]

    rngs = [Random(seed) for seed in range(20)]
    assert [alarm_of([window(rng) for _ in range(150)]) for rng in rngs] == [None] * 20


# -- divergence -------------------------------------------------------------------------------------------------------


def audited(rng: Random, n: int, rise: float = 0.0, judge_rises: float = 0.0, correlation: float = 0.6):
    """Prompts whose scores have risen by so many standard deviations, and the judge's by so many."""
    for _ in range(n):
        quality = rng.gauss(0, 1)
        noise = sqrt(1 - correlation**2) * rng.gauss(0, 1)
        yield PromptMeans(quality + rise, correlation * quality + noise + judge_rises)


def learned(rng: Random, **known: float) -> DriftTest:
    test = DriftTest()
    for _ in range(8):
        test.add_window(list(audited(rng, 64, **known)))
    return test


def test_a_divergence_is_the_lower_bound_of_the_fall_of_a_judge_whose_model_s_score_rises():
    rng = Random(3)
    start = [list(audited(rng, 64)) for _ in range(8)]
    later = [list(audited(rng, 40, 2.0, -0.8)) for _ in range(3)]
    test = DriftTest()
    for window in [*start, *later]:
        test.add_window(window)
    first = [p.audit for window in start for p in window]
    falls = [sum(first) / 512 - prompt.audit for window in later for prompt in window]
    weights = [(127 / 128) ** (len(falls) - 1 - i) for i in range(len(falls))]
    fall = sum(w * each for w, each in zip(weights, falls, strict=True)) / sum(weights)
    variance = sum(w * (each - fall) ** 2 for w, each in zip(weights, falls, strict=True)) / sum(weights)
    n = sum(weights) ** 2 / sum(w * w for w in weights)
    low = fall - 3 * sqrt(variance * (1 / n + 1 / 512))
    assert test.divergence() == pytest.approx(low, abs=0.01)  # the height of the line is that of clipped residuals


@pytest.mark.parametrize(
    ("rise", "judge_rises", "diverges"),
    [
        (2.0, -0.7, True),
        (0.7, -2.0, True),
        (2.0, 0.0, False),  # a dull judge: `audit_drift` says so
        (2.0, 1.2, False),  # as the line of the start expects
        (0.0, 0.0, False),
        (-1.0, -1.0, False),  # both fall: other prompts, or a policy that becomes worse
        (0.0, -1.0, False),  # the judge alone falls: `audit_drift` says so
    ],
)
def test_a_divergence_is_a_rise_of_the_score_and_a_fall_of_the_judge(rise, judge_rises, diverges):
    rng = Random(4)
    test = learned(rng)
    for _ in range(40):
        test.add_window(list(audited(rng, 13, rise, judge_rises)))
    assert ((test.divergence() or 0.0) > 0.1) is diverges


def test_a_judge_that_wanders_diverges_later():
    def ended(std: float) -> float:
        rng, test, wander = Random(6), DriftTest(), 0.0
        for i in range(120):
            wander = 0.9 * wander + std * rng.gauss(0, 1)
            test.add_window(list(audited(rng, 64, 0.03 * max(0, i - 60), wander - 0.01 * max(0, i - 60))))
        return test.divergence() or 0.0

    assert ended(0.1) < 0.0 < ended(0.0)


@pytest.mark.parametrize("seed", range(3))
def test_no_divergence_is_found_where_nothing_changes(seed):
    rng = Random(100 + seed)
    test = learned(rng)
    for _ in range(300):
        test.add_window(list(audited(rng, 13)))
        assert (test.divergence() or 0.0) < 0.0


def test_every_prompt_is_audited_where_a_divergence_is_suspected_up_to_a_bound():
    rng = Random(7)
    test = learned(rng)
    assert not test.wants_every_prompt
    n = 0
    for _ in range(200):
        test.add_window(list(audited(rng, 64, 1.0, -0.3)))
        n += test.wants_every_prompt
    assert not test.wants_every_prompt
    assert 8 <= n <= 14, "512 prompts, and a quarter of those before"


def test_an_acknowledged_divergence_is_measured_on_later_prompts_alone():
    rng = Random(8)
    test = learned(rng)
    for _ in range(20):
        test.add_window(list(audited(rng, 13, 2.0, -0.7)))
    wealth = test.e_value
    test.forget_recent()
    assert (test.divergence(), test.e_value) == (None, wealth)


@pytest.mark.parametrize("outlier", [300.0, 1e200, 1.7e308])
def test_one_prompt_far_off_neither_ends_nor_makes_a_divergence(outlier):
    rng = Random(10)
    exploited, honest = learned(rng), learned(rng)
    for test, rise, fall in ((exploited, 2.0, -0.7), (honest, 0.0, 0.0)):
        test.add_window([PromptMeans(outlier, -outlier), *audited(rng, 12, rise, fall)])
        for _ in range(20):
            test.add_window(list(audited(rng, 13, rise, fall)))
    assert (exploited.divergence() or 0.0) > 0.1 > (honest.divergence() or 0.0)


def test_tasks_are_compared_with_their_own_starts():
    rng, test = Random(9), DriftTest()

    def window(share: float) -> list[PromptMeans]:
        easy = [
            p._replace(score=p.score + 2.0, audit=p.audit - 1.0, task="easy") for p in audited(rng, round(64 * share))
        ]
        return [*easy, *(p._replace(task="hard") for p in audited(rng, 64 - len(easy)))]

    for _ in range(8):
        test.add_window(window(0.5))
    for i in range(60):
        test.add_window(window(min(0.95, 0.5 + i / 60)))
    assert (test.divergence() or 0.0) < 0.0
