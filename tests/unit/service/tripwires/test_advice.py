"""What an alert says of the gym."""

from __future__ import annotations

from rewardserve.service.tripwires.advice import _gym


def test_figures_of_the_gym_are_written_with_both_kinds_of_runs_and_none_for_no_alarm_at_all():
    assert [_gym(102), _gym(82, 2)] == [
        "In the gym before the fall in 102 of 123 hacked runs, and in none of 17 healthy ones.",
        "In the gym before the fall in 82 of 123 hacked runs, and in 2 of 17 healthy ones.",
    ]
