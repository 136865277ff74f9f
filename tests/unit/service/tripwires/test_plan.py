"""What an operator may change of the wires, and what is said where that makes no sense."""

from __future__ import annotations

import pytest

from service.tripwires.plan import PlanError, WirePlan, plan_of
from service.tripwires.wires import WIRES


def by_name(plan):
    return {wire.name: wire for wire in plan.wires}


def test_without_a_plan_the_wires_are_those_that_are_shipped():
    assert plan_of({}) == WirePlan() == WirePlan(WIRES, 3, ())


def test_each_wire_may_be_changed_or_left_out():
    changes = {
        "length_high": {"threshold": 1, "votes": False},
        "refusal": {"severity": "page"},
        "markup": {"severity": "off"},
    }
    plan = plan_of(
        {"wires": changes, "votes_for_a_page": 4, "lexicons": ["a.json"], "block": ["judge", "vote", "canary"]}
    )
    wires = by_name(plan)
    assert (wires["length_high"].threshold, wires["length_high"].votes) == (1.0, False)
    assert wires["refusal"].severity == "page"
    assert "markup" not in wires
    assert len(wires) == len(WIRES) - 1
    assert (plan.votes_for_a_page, plan.lexicons, plan.block) == (4, ("a.json",), ("judge", "vote", "canary"))
    assert wires["judge"] == by_name(WirePlan())["judge"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"wire": {}}, "wire: known are"),
        ({"wires": []}, "there are level"),
        ({"wires": {"lenght": {}}}, "lenght"),
        ({"wires": {"level": {"treshold": 1}}}, r"wires\.level: known are"),
        ({"wires": {"level": 3}}, r"wires\.level"),
        ({"wires": {"level": {"threshold": 0}}}, r"level\.threshold is 0"),
        ({"wires": {"level": {"threshold": True}}}, r"level\.threshold is True"),
        ({"wires": {"level": {"threshold": float("nan")}}}, r"level\.threshold is nan"),
        ({"wires": {"level": {"severity": "loud"}}}, r"level\.severity is 'loud'"),
        ({"wires": {"level": {"votes": 1}}}, r"level\.votes is 1"),
        ({"votes_for_a_page": 0}, "votes_for_a_page is 0"),
        ({"lexicons": "a.json"}, "lexicons must be a list of texts"),
        ({"block": "judge"}, "block must be a list of texts"),
        ({"block": ["judge", "jugde"]}, "block: jugde cannot trip"),
        ({"block": ["judge"], "wires": {"judge": {"severity": "off"}}}, "block: judge cannot trip"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_entry(entries, words):
    with pytest.raises(PlanError, match=words):
        plan_of(entries)
