"""The table of wires: their texts, and the figures of the gym in them."""

from __future__ import annotations

from rewardserve.service.tripwires.alert import CANARY, VOTE
from rewardserve.service.tripwires.wires import ALERT_TEXTS, ALERT_UNITS, FLAGGED_TRAITS, WIRES, _gym, cause_of


def test_figures_of_the_gym_are_written_with_both_kinds_of_runs_and_none_for_no_alert_at_all():
    assert [_gym(102), _gym(82, 2)] == [
        "In the gym it fired before the fall in 102 of 123 hacked runs, and in none of 17 healthy runs.",
        "In the gym it fired before the fall in 82 of 123 hacked runs, and in 2 of 17 healthy runs.",
    ]


def test_every_wire_the_vote_and_the_canaries_have_texts_and_a_unit():
    assert set(ALERT_TEXTS) == set(ALERT_UNITS) == {wire.name for wire in WIRES} | {VOTE, CANARY}
    for name, text in ALERT_TEXTS.items():
        assert all((text.summary, text.confidence, text.action, ALERT_UNITS[name].text)), name
    assert [ALERT_UNITS[name].text for name in (VOTE, CANARY)] == [
        "votes",
        "times the change that numeric noise allows",
    ]


def test_the_traits_that_flag_a_sample_are_those_that_no_honest_response_has():
    assert {"judge_injection", "empty_opener", "foreign_script", "control_tokens"} == FLAGGED_TRAITS


def test_the_cause_of_an_unknown_wire_is_the_policy():
    assert cause_of("no wire") == "policy"
