"""Versions in service, on standby, and to unload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rewardserve.service.models.deployment import DeploymentState


def state(*history, **fields):
    return DeploymentState(tuple(history), **fields)


def test_an_activated_version_serves_and_the_previous_one_stands_by():
    now = state(1).activated(2).activated(3)
    assert (now.serving, now.previous, now.standby, now.loaded) == (3, 2, (2, 1), (3, 2, 1))


def test_activating_the_version_in_service_changes_nothing():
    before = state(1).activated(2)
    assert before.activated(2) == before


def test_a_rollback_leads_back_along_the_line_and_the_next_one_further():
    now = state(1).activated(2).activated(3)
    now = now.rolled_back(2)
    assert (now.serving, now.previous, now.standby) == (2, 1, (3, 1))
    now = now.rolled_back(1)
    assert (now.serving, now.previous) == (1, None)


def test_what_was_let_go_of_comes_back_under_another_number():
    now = state(1).activated(2).without(1).rolled_back(7)
    assert (now.serving, now.history, now.standby) == (7, (7,), (2,))


def test_a_shadow_that_takes_over_is_a_shadow_no_longer():
    now = state(1).with_shadow(2)
    assert (now.state_of(2), now.loaded) == ("shadow", (1, 2))
    now = now.activated(2)
    assert (now.state_of(2), now.shadow, now.standby) == ("serving", None, (1,))


def test_those_that_left_service_last_are_kept():
    now = state(1).activated(2).activated(3).activated(4)
    assert [now.to_unload(keep) for keep in range(4)] == [(3, 2, 1), (2, 1), (1,), ()]


def test_a_version_with_a_pinned_run_is_kept_however_old():
    now = state(1).pinned({"a": 1}).activated(2).activated(3)
    assert now.to_unload(0) == (2,)
    assert now.unpinned("a").to_unload(0) == (2, 1)
    assert now.unpinned("nobody") == now


def test_a_run_that_is_pinned_again_has_the_newer_pin():
    assert state(1).pinned({"a": 1, "b": 1}).pinned({"a": 2}).pins == {"a": 2, "b": 1}


class Successions(RuleBasedStateMachine):
    """Any order of what an operator can do."""

    def __init__(self):
        super().__init__()
        self.state = DeploymentState((1,))
        self.newest = 1

    def tidy(self, keep):
        for version in self.state.to_unload(keep):
            self.state = self.state.without(version)

    @rule(keep=st.integers(0, 3))
    def load_and_switch(self, keep):
        self.newest += 1
        self.state = self.state.activated(self.newest)
        self.tidy(keep)

    @rule()
    def load_into_the_shadow(self):
        self.newest += 1
        self.state = self.state.with_shadow(self.newest)

    @rule(data=st.data(), keep=st.integers(0, 3))
    def activate(self, data, keep):
        self.state = self.state.activated(data.draw(st.sampled_from(self.state.loaded)))
        self.tidy(keep)

    @rule(keep=st.integers(0, 3))
    def roll_back(self, keep):
        previous = self.state.previous
        if previous is None:
            return
        if previous not in self.state.loaded:
            self.newest += 1
            previous = self.newest
        self.state = self.state.rolled_back(previous)
        self.tidy(keep)

    @rule(data=st.data(), run=st.sampled_from("abc"))
    def pin(self, data, run):
        versions = [self.state.serving, *self.state.standby]
        self.state = self.state.pinned({run: data.draw(st.sampled_from(versions))})

    @rule(run=st.sampled_from("abc"))
    def unpin(self, run):
        self.state = self.state.unpinned(run)

    @invariant()
    def every_loaded_model_has_one_place(self):
        loaded = self.state.loaded
        assert len(set(loaded)) == len(loaded)
        assert self.state.serving not in self.state.standby

    @invariant()
    def the_model_of_a_pinned_run_is_loaded(self):
        assert set(self.state.pins.values()) <= {self.state.serving, *self.state.standby}


test_successions = Successions.TestCase


@given(st.integers(0, 40))
def test_the_line_of_rollbacks_is_bounded(n):
    now = DeploymentState((1,))
    for version in range(2, n + 2):
        now = now.activated(version)
    assert len(now.history) <= 32
    assert now.serving == n + 1
