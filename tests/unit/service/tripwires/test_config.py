"""Changes of the wires by an operator, and the errors of invalid ones."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from rewardserve.service.tripwires.config import WireConfig, WireConfigError, parse_wire_config
from rewardserve.service.tripwires.wires import WIRES


def by_name(plan):
    return {wire.name: wire for wire in plan.wires}


def test_without_a_plan_the_wires_are_those_that_are_shipped():
    assert parse_wire_config({}) == WireConfig() == WireConfig(WIRES, 3, ())


def test_each_wire_may_be_changed_or_left_out():
    changes = {
        "length_high": {"threshold": 1, "votes": False},
        "refusal": {"severity": "page"},
        "markup": {"severity": "off"},
    }
    plan = parse_wire_config(
        {
            "wires": changes,
            "votes_for_a_page": 4,
            "lexicons": ["a.json"],
            "block": ["judge_injection", "vote", "canary"],
        }
    )
    wires = by_name(plan)
    assert (wires["length_high"].threshold, wires["length_high"].votes) == (1.0, False)
    assert wires["refusal"].severity == "page"
    assert "markup" not in wires
    assert len(wires) == len(WIRES) - 1
    assert (plan.votes_for_a_page, plan.lexicons, plan.block) == (4, ("a.json",), ("judge_injection", "vote", "canary"))
    assert wires["judge_injection"] == by_name(WireConfig())["judge_injection"]


def test_all_wires_and_all_their_fields_may_be_changed_and_one_vote_may_be_a_page():
    change = {"threshold": 2, "severity": "note", "votes": True}
    plan = parse_wire_config({"wires": {wire.name: change for wire in WIRES}, "votes_for_a_page": 1})
    assert plan.wires == tuple(replace(wire, threshold=2.0, severity="note", votes=True) for wire in WIRES)
    assert plan.votes_for_a_page == 1


TWO = WIRES[:2]
KNOWN = "Known here: block, lexicons, votes_for_a_page, wires"
FIELDS = "severity, threshold, votes"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"wire": {}, "Wires": {}}, f"unknown: Wires, wire; did you mean wires? {KNOWN}"),
        ({"wires": []}, "wires is []; it must be a table"),
        ({"wires": 5}, "wires is 5; it must be a table"),
        (
            {"wires": {"score_shfit": {}, "zz": {}, "score_shift": {}}},
            "unknown: wires: score_shfit, zz; did you mean score_shift? Known here: saturation, score_shift",
        ),
        (
            {"wires": {"score_shift": {"treshold": 1}}},
            f"unknown: wires.score_shift: treshold; did you mean threshold? Known here: {FIELDS}",
        ),
        ({"wires": {"score_shift": {"z": 1}}}, f"unknown: wires.score_shift: z. Known here: {FIELDS}"),
        ({"wires": {"score_shift": 3}}, f"wires.score_shift is 3; it must be a table with some of {FIELDS}"),
        (
            {"wires": {"score_shift": {"threshold": 0}}},
            "wires.score_shift.threshold is 0; it must be a number above zero",
        ),
        (
            {"wires": {"score_shift": {"threshold": True}}},
            "wires.score_shift.threshold is True; it must be a number above zero",
        ),
        (
            {"wires": {"score_shift": {"threshold": "1"}}},
            "wires.score_shift.threshold is '1'; it must be a number above zero",
        ),
        (
            {"wires": {"score_shift": {"threshold": nan}}},
            "wires.score_shift.threshold is nan; it must be a number above zero",
        ),
        (
            {"wires": {"score_shift": {"severity": "loud"}}},
            "wires.score_shift.severity is 'loud'; it must be one of note, warn, page, off",
        ),
        (
            {"wires": {"score_shift": {"severity": "wran"}}},
            "wires.score_shift.severity is 'wran'; it must be one of note, warn, page, off; did you mean warn?",
        ),
        ({"wires": {"score_shift": {"votes": 1}}}, "wires.score_shift.votes is 1; it must be true or false"),
        ({"votes_for_a_page": 0}, "votes_for_a_page is 0; it must be a whole number above zero"),
        ({"votes_for_a_page": 1.5}, "votes_for_a_page is 1.5; it must be a whole number above zero"),
        ({"votes_for_a_page": True}, "votes_for_a_page is True; it must be a whole number above zero"),
        ({"lexicons": "a.json"}, "lexicons must be a list of texts"),
        ({"lexicons": ["a.json", 1]}, "lexicons must be a list of texts"),
        ({"block": "score_shift"}, "block must be a list of texts"),
        (
            {"block": ["score_shift", "levle", "lvel"]},
            "unknown: block: levle, lvel. Known here: canary, saturation, score_shift, vote",
        ),
        (
            {"block": ["score_shift"], "wires": {"score_shift": {"severity": "off"}}},
            "block: score_shift is off, so it cannot block a run",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_entry(entries, words):
    with pytest.raises(WireConfigError) as refused:
        parse_wire_config(entries, TWO)
    assert str(refused.value) == words
