"""Under which label a run is kept, which run makes room for another, and what outlives it."""

from __future__ import annotations

from collections import deque

import pytest

from rewardserve.service.tripwires.board import CANARIES, OTHER, Alarm, Board, BoardLimits
from rewardserve.service.tripwires.reference import Yardstick
from rewardserve.service.tripwires.wire import CANARY, Finding, Observation

SAMPLE = Observation(1, None, 0.0, 0.0, is_capped=False, traits=())


def board_with(places=10, **limits):
    """Two samples show what is usual for a run, so that it is protected."""
    return Board(Yardstick(), BoardLimits(**{"window": 1, "warm_up": 2, "max_runs": places + 2, **limits}))


def observe(board, name, n=1, at=0.0, owner="", **fields):
    board.observe(name, 0, [SAMPLE._replace(**fields)] * n, at, owner=owner)


def found(wire):
    return Finding(wire, "page", 2.0, 1.0, None, ())


def test_a_board_begins_with_nothing():
    board = board_with()
    assert (board.runs, board.parked) == ({}, {})
    assert (board.n_looked_at, board.n_left_out, board.n_without_room) == (0, 0, 0)


# -- room -------------------------------------------------------------------------------------------------------------


def test_a_run_is_protected_until_it_was_silent_for_longer_than_that():
    board = board_with(places=1, protected_s=50.0)
    observe(board, "a", n=2, at=10.0)
    observe(board, "b", at=60.0)
    assert set(board.runs) == {"a", OTHER}
    observe(board, "b", at=60.5)
    assert set(board.runs) == {"b", OTHER}


def test_a_new_run_takes_the_place_of_one_of_its_own_owner_first():
    board = board_with(places=3)
    for name in ("a1", "a2", "b1", "b2"):
        observe(board, name, owner=name[0])
    assert set(board.runs) == {"a1", "a2", "b2"}


def test_an_owner_without_a_run_takes_a_place_from_the_owner_that_has_most():
    board = board_with(places=3)
    for name in ("b1", "a1", "a2", "c1"):
        observe(board, name, owner=name[0])
    assert set(board.runs) == {"a2", "b1", "c1"}


def test_protected_runs_make_room_for_an_owner_that_has_fewer_even_afterwards():
    board = board_with(places=4)
    for name in ("a1", "a2", "a3", "b1", "b2"):
        observe(board, name, n=2, owner=name[0])
    assert set(board.runs) == {"a2", "a3", "b1", "b2"}
    observe(board, "b3", owner="b")
    assert board.kept_as("b3", "b") == OTHER, "then both have as many"


def test_protected_runs_make_no_room_for_an_owner_that_would_have_as_many():
    board = board_with(places=5)
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        observe(board, name, n=2, owner=name[0])
    assert set(board.runs) == {"a1", "a2", "a3", "b1", "b2", OTHER}


def test_what_has_no_room_is_counted_and_is_nobody_s():
    board = board_with(places=0)
    observe(board, "a", n=2, owner="k")
    observe(board, "b", n=3)
    observe(board, None, n=7)
    assert board.n_without_room == 5
    ((label, run),) = board.runs.items()
    assert (label, run.owner, run.name) == (OTHER, "", "")


def test_each_request_forgets_at_most_two_silent_runs():
    board = board_with(expiry_s=100.0)
    for name in ("a", None, "c"):
        observe(board, name)
    observe(board, "d", at=100.0)
    assert set(board.runs) == {"a", OTHER, "c", "d"}
    observe(board, "d", at=100.5)
    assert set(board.runs) == {"c", "d"}
    observe(board, "d", at=100.5)
    assert set(board.runs) == {"d"}


# -- labels -----------------------------------------------------------------------------------------------------------


def test_a_label_that_is_taken_is_numbered():
    board = board_with()
    for name, owner in (("ppo", "a"), ("ppo@b", "c"), ("ppo", "b")):
        observe(board, name, owner=owner)
    assert board.kept_as("ppo", "b") == "ppo@b#2"
    board = board_with()
    for name, owner in (("ppo", "a"), ("ppo@b", "c"), ("ppo@b#2", "d"), ("ppo", "b")):
        observe(board, name, owner=owner)
    assert board.kept_as("ppo", "b") == "ppo@b#3"


def test_the_audit_judge_and_ids_are_heard_for_the_run_that_they_are_of():
    board = board_with()
    board.hear("a", 3.0, -2.0, 0.0)
    window = board.runs["a"].window
    assert (window["audited"], window["audited_level_up"], window["audit_down"]) == (1.0, 3.0, 2.0)
    board.hear_ids("a", [(1, 10)], 0.0)
    board.hear_ids("a", [(1, 10), (1, 11), (2, 10), (1, 12)], 0.0)
    assert (window["replays"], window["replays_squared"]) == (2.0, 2.0)
    assert set(board.runs) == {"a"}


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_run_without_room_is_blocked_where_it_is_kept_unless_it_has_an_owner():
    board = board_with(places=1, blocks=frozenset({"judge"}))
    observe(board, None)
    board.report(OTHER, found("judge"), 0.0)
    assert board.blocked_by("new") is None, "there is room"
    observe(board, "a", n=2)
    assert [board.blocked_by("new"), board.blocked_by("new", "k"), board.blocked_by("a")] == ["judge", None, None]


def test_another_model_is_a_block_for_a_key_that_may_send_certain_runs_too():
    board = board_with(blocks=frozenset({CANARY}))
    observe(board, "a", owner="k")
    board.report(CANARIES, found(CANARY), 0.0)
    assert board.blocked_by("new", "k", is_bound=True) == CANARY


def test_a_blocked_run_that_made_room_is_known_until_its_last_block_is_acknowledged():
    board = board_with(places=1, blocks=frozenset({"judge", "opener"}))
    observe(board, "a")
    for wire in ("judge", "opener"):
        board.report("a", found(wire), 0.0)
    observe(board, "b")
    assert (set(board.runs), set(board.parked)) == ({"b"}, {"a"})
    assert board.acknowledge("a", "judge")
    assert (board.kept_as("a"), board.blocked_by("a")) == ("a", "opener")
    assert board.acknowledge("a", "opener")
    assert (board.kept_as("a"), set(board.parked)) == (OTHER, set())


def test_of_blocked_runs_that_made_room_the_latest_256_of_each_owner_are_kept():
    board = board_with(places=1, blocks=frozenset({"judge"}))
    names = ["of another", *(f"a{i}" for i in range(258))]
    for name in names:
        observe(board, name, owner=name[0])
        board.report(name, found("judge"), 0.0)
    assert list(board.parked) == [names[0], *names[2:-1]]
    assert [board.kept_as(name, "a") for name in ("a0", "a1", "a257")] == [OTHER, "a1", "a257"]


# -- what is said of a run ----------------------------------------------------------------------------------------------


def test_what_another_found_is_news_once():
    board = board_with()
    assert board.report(CANARIES, found(CANARY), 3.0) is True
    assert board.report(CANARIES, found(CANARY), 4.0) is False
    run = board.runs[CANARIES]
    assert (run.alarms, run.statistics) == ({CANARY: Alarm(found(CANARY), 3.0)}, {CANARY: 2.0})
    assert run.trips == {CANARY: 1}


def test_a_run_has_ended_when_it_was_silent_for_longer_than_that_and_canaries_never_have():
    board = board_with(ended_s=10.0)
    observe(board, "a", at=5.0)
    assert [board.has_ended("a", now) for now in (15.0, 15.5)] == [False, True]
    assert board.has_ended("nobody", 0.0)
    assert not board.has_ended(CANARIES, 0.0)
    board.report(CANARIES, found(CANARY), 0.0)
    assert not board.has_ended(CANARIES, 1e9)


def test_the_evidence_that_an_alarm_could_name_is_the_latest_and_that_of_each_wire():
    board = board_with(evidence=1)
    observe(board, "a", evidence="01", takes_bait=True)
    observe(board, "a", evidence="02")
    assert board.runs["a"].shown == {"baits": deque(["01"])}
    assert board.named("a") == {"01", "02"}
    assert board.named("nobody") == set()


# -- another model ------------------------------------------------------------------------------------------------------


def test_the_run_that_is_measured_anew_is_the_one_of_this_name_and_owner():
    board, other = board_with(places=3), Yardstick()
    for name, owner in (("a", ""), ("a", "k"), (None, "")):
        observe(board, name, owner=owner)
    board.measure("a", other, 1.0, "k")
    assert [label for label, run in board.runs.items() if run.yardstick is other] == ["a@k"]


@pytest.mark.parametrize(("now", "measured"), [(50.0, [OTHER]), (50.5, [])])
def test_a_run_without_room_is_measured_where_it_is_kept_unless_there_will_be_room(now, measured):
    board, other = board_with(places=1, protected_s=50.0), Yardstick()
    observe(board, "a", n=2)
    observe(board, None)
    board.measure("b", other, now)
    assert [label for label, run in board.runs.items() if run.yardstick is other] == measured
