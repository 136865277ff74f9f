"""Who is in service, who stands by, and who may be let go of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rewardserve.service.models.deployment import Roster


def roster(*line, **fields):
    return Roster(tuple(line), **fields)


def test_who_is_activated_serves_and_the_one_before_stands_by():
    now = roster(1).activated(2).activated(3)
    assert (now.serving, now.previous, now.standby, now.loaded) == (3, 2, (2, 1), (3, 2, 1))


def test_to_activate_who_serves_already_changes_nothing():
    before = roster(1).activated(2)
    assert before.activated(2) == before


def test_a_rollback_leads_back_along_the_line_and_the_next_one_further():
    now = roster(1).activated(2).activated(3)
    now = now.rolled_back(2)
    assert (now.serving, now.previous, now.standby) == (2, 1, (3, 1))
    now = now.rolled_back(1)
    assert (now.serving, now.previous) == (1, None)


def test_what_was_let_go_of_comes_back_under_another_number():
    now = roster(1).activated(2).without(1).rolled_back(7)
    assert (now.serving, now.line, now.standby) == (7, (7,), (2,))


def test_a_shadow_that_takes_over_is_a_shadow_no_longer():
    now = roster(1).with_shadow(2)
    assert (now.state_of(2), now.loaded) == ("shadow", (1, 2))
    now = now.activated(2)
    assert (now.state_of(2), now.shadow, now.standby) == ("serving", None, (1,))


def test_those_that_left_service_last_are_kept():
    now = roster(1).activated(2).activated(3).activated(4)
    assert [now.surplus(keep) for keep in range(4)] == [(3, 2, 1), (2, 1), (1,), ()]


def test_who_has_a_pinned_run_is_kept_however_old():
    now = roster(1).pinned({"a": 1}).activated(2).activated(3)
    assert now.surplus(0) == (2,)
    assert now.unpinned("a").surplus(0) == (2, 1)
    assert now.unpinned("nobody") == now


def test_a_run_that_is_pinned_again_has_the_newer_pin():
    assert roster(1).pinned({"a": 1, "b": 1}).pinned({"a": 2}).pins == {"a": 2, "b": 1}


class Successions(RuleBasedStateMachine):
    """Any order of what an operator can do."""

    def __init__(self):
        super().__init__()
        self.roster = Roster((1,))
        self.newest = 1

    def tidy(self, keep):
        for version in self.roster.surplus(keep):
            self.roster = self.roster.without(version)

    @rule(keep=st.integers(0, 3))
    def load_and_switch(self, keep):
        self.newest += 1
        self.roster = self.roster.activated(self.newest)
        self.tidy(keep)

    @rule()
    def load_into_the_shadow(self):
        self.newest += 1
        self.roster = self.roster.with_shadow(self.newest)

    @rule(data=st.data(), keep=st.integers(0, 3))
    def activate(self, data, keep):
        self.roster = self.roster.activated(data.draw(st.sampled_from(self.roster.loaded)))
        self.tidy(keep)

    @rule(keep=st.integers(0, 3))
    def roll_back(self, keep):
        previous = self.roster.previous
        if previous is None:
            return
        if previous not in self.roster.loaded:
            self.newest += 1
            previous = self.newest
        self.roster = self.roster.rolled_back(previous)
        self.tidy(keep)

    @rule(data=st.data(), run=st.sampled_from("abc"))
    def pin(self, data, run):
        versions = [self.roster.serving, *self.roster.standby]
        self.roster = self.roster.pinned({run: data.draw(st.sampled_from(versions))})

    @rule(run=st.sampled_from("abc"))
    def unpin(self, run):
        self.roster = self.roster.unpinned(run)

    @invariant()
    def every_loaded_model_has_one_place(self):
        loaded = self.roster.loaded
        assert len(set(loaded)) == len(loaded)
        assert self.roster.serving not in self.roster.standby

    @invariant()
    def the_model_of_a_pinned_run_is_loaded(self):
        assert set(self.roster.pins.values()) <= {self.roster.serving, *self.roster.standby}


test_successions = Successions.TestCase


@given(st.integers(0, 40))
def test_the_line_of_rollbacks_is_bounded(n):
    now = Roster((1,))
    for version in range(2, n + 2):
        now = now.activated(version)
    assert len(now.line) <= 32
    assert now.serving == n + 1
