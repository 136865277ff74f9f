"""Under which label a run is kept, which run replaces another, and what outlives it."""

from __future__ import annotations

from collections import deque

import pytest

from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_context import UnnamedClient
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import ActiveAlert, MonitorLimits
from rewardserve.service.tripwires.run_table import CANARIES, MAX_UNNAMED, OTHER

SAMPLE = SampleFeatures(1, None, 0.0, 0.0, is_capped=False, traits=())


def monitor_with(places=10, **limits):
    """A run learns its baseline from two samples, so that it is protected."""
    return RunMonitor(BaselineSource(), MonitorLimits(**{"window": 1, "warm_up": 2, "max_runs": places + 2, **limits}))


def observe(monitor, name, n=1, at=0.0, owner="", **fields):
    monitor.observe(name, 0, [SAMPLE._replace(**fields)] * n, at, owner=owner)


def found(wire):
    return Alert(wire, "page", 2.0, 1.0, None, ())


def test_a_monitor_begins_with_nothing():
    monitor = monitor_with()
    assert (monitor.runs, monitor.archived) == ({}, {})
    assert (monitor.n_inspected, monitor.n_skipped, monitor.n_over_limit) == (0, 0, 0)


# -- limit ------------------------------------------------------------------------------------------------------------


def test_a_run_is_protected_until_it_was_silent_for_longer_than_that():
    monitor = monitor_with(places=1, protected_s=50.0)
    observe(monitor, "a", n=2, at=10.0)
    observe(monitor, "b", at=60.0)
    assert set(monitor.runs) == {"a", OTHER}
    observe(monitor, "b", at=60.5)
    assert set(monitor.runs) == {"b", OTHER}


def test_a_new_run_takes_the_place_of_one_of_its_own_owner_first():
    monitor = monitor_with(places=3)
    for name in ("a1", "a2", "b1", "b2"):
        observe(monitor, name, owner=name[0])
    assert set(monitor.runs) == {"a1", "a2", "b2"}


def test_an_owner_without_a_run_takes_a_place_from_the_owner_that_has_most():
    monitor = monitor_with(places=3)
    for name in ("b1", "a1", "a2", "c1"):
        observe(monitor, name, owner=name[0])
    assert set(monitor.runs) == {"a2", "b1", "c1"}


def test_protected_runs_are_evicted_for_an_owner_that_has_fewer_even_afterwards():
    monitor = monitor_with(places=4)
    for name in ("a1", "a2", "a3", "b1", "b2"):
        observe(monitor, name, n=2, owner=name[0])
    assert set(monitor.runs) == {"a2", "a3", "b1", "b2"}
    observe(monitor, "b3", owner="b")
    assert monitor.label_of("b3", "b") == OTHER, "then both have as many"


def test_protected_runs_are_not_evicted_for_an_owner_that_would_have_as_many():
    monitor = monitor_with(places=5)
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        observe(monitor, name, n=2, owner=name[0])
    assert set(monitor.runs) == {"a1", "a2", "a3", "b1", "b2", OTHER}


def test_runs_over_the_limit_are_counted_under_other():
    monitor = monitor_with(places=0)
    observe(monitor, "a", n=2, owner="k")
    observe(monitor, "b", n=3)
    observe(monitor, None, n=7)
    assert monitor.n_over_limit == 5
    ((label, run),) = monitor.runs.items()
    assert (label, run.owner, run.name) == (OTHER, "", "")


def test_each_request_forgets_at_most_two_silent_runs():
    monitor = monitor_with(expiry_s=100.0)
    for name in ("a", None, "c"):
        observe(monitor, name)
    observe(monitor, "d", at=100.0)
    assert set(monitor.runs) == {"a", OTHER, "c", "d"}
    observe(monitor, "d", at=100.5)
    assert set(monitor.runs) == {"c", "d"}
    observe(monitor, "d", at=100.5)
    assert set(monitor.runs) == {"d"}


# -- labels -----------------------------------------------------------------------------------------------------------


def test_a_label_that_is_taken_is_numbered():
    monitor = monitor_with()
    for name, owner in (("ppo", "a"), ("ppo@b", "c"), ("ppo", "b")):
        observe(monitor, name, owner=owner)
    assert monitor.label_of("ppo", "b") == "ppo@b#2"
    monitor = monitor_with()
    for name, owner in (("ppo", "a"), ("ppo@b", "c"), ("ppo@b#2", "d"), ("ppo", "b")):
        observe(monitor, name, owner=owner)
    assert monitor.label_of("ppo", "b") == "ppo@b#3"


# -- without a name -----------------------------------------------------------------------------------------------------


def client(address, detail="agent /score"):
    return UnnamedClient(address, detail)


def test_clients_without_a_run_have_one_each_under_their_address_or_owner():
    monitor = monitor_with()
    one, two, three = client("10.0.0.7"), client("10.0.0.7", "another /score"), client("10.0.0.8")
    for each, owner in ((one, ""), (two, ""), (three, ""), (one, "k"), (three, "k"), (one, "")):
        observe(monitor, each, owner=owner)
    assert list(monitor.runs) == ["other@10.0.0.7#2", "other@10.0.0.8", "other@k", "other@k#2", "other@10.0.0.7"]
    assert [monitor.label_of(each) for each in (one, two, None)] == ["other@10.0.0.7", "other@10.0.0.7#2", OTHER]
    assert monitor.runs["other@10.0.0.7"].all_sums["samples"] == 2.0


def test_an_owner_has_eight_runs_without_a_name_and_the_rest_shares_other():
    monitor = monitor_with(places=30, protected_s=50.0)
    for i in range(MAX_UNNAMED + 2):
        observe(monitor, client(f"h{i}"), n=2, at=float(i))
    assert set(monitor.runs) == {*(f"other@h{i}" for i in range(MAX_UNNAMED)), OTHER}
    assert monitor.n_over_limit == 4
    observe(monitor, client("key's"), owner="k")
    observe(monitor, "named")
    assert {"other@k", "named"} < set(monitor.runs)
    observe(monitor, client("h9"), at=50.5)
    assert {"other@h0", "other@h9"} & set(monitor.runs) == {"other@h9"}, (
        "a run without samples for long is evicted for a new one"
    )


def test_a_run_without_a_name_is_evicted_before_one_that_learns_and_evicts_none():
    monitor = monitor_with(places=2)
    observe(monitor, "learns")
    observe(monitor, client("a"), n=2)
    observe(monitor, client("b"))
    assert set(monitor.runs) == {"learns", "other@a", OTHER}
    observe(monitor, "new")
    assert set(monitor.runs) == {"learns", "new", OTHER}


def test_samples_of_several_runs_raise_nothing_and_one_client_without_a_run_does():
    monitor = monitor_with(places=1, blocks=frozenset({"flat_groups"}))
    observe(monitor, "a", n=2)
    for i in range(40):
        for name in (None, "beyond", client("h")):
            observe(monitor, name, n=4, at=float(i))
    assert monitor.runs[OTHER].all_sums["samples"] == 480.0
    assert (monitor.runs[OTHER].alerts, monitor.runs[OTHER].statistics, monitor.runs[OTHER].is_watched) == (
        {},
        {},
        False,
    )
    monitor = monitor_with(window=64, blocks=frozenset({"flat_groups"}))
    for i in range(40):
        monitor.observe(client("h"), i, [SAMPLE._replace(prompt_hash=j // 2) for j in range(64)], float(i))
    assert set(monitor.runs["other@h"].alerts) == {"flat_groups"}
    assert [monitor.blocked_by(each) for each in (client("h"), client("g"), None)] == ["flat_groups", None, None]


def test_audits_and_ids_count_for_their_run():
    monitor = monitor_with()
    monitor.add_audit("a", 1, 3.0, -2.0, 0.0)
    window = monitor.runs["a"].window
    assert (window["audited"], window["audited_score_positive"], window["audit_negative"]) == (1.0, 3.0, 2.0)
    monitor.add_sample_ids("a", [(1, 10)], 0.0)
    monitor.add_sample_ids("a", [(1, 10), (1, 11), (2, 10), (1, 12)], 0.0)
    window = monitor.runs["a"].window
    assert (window["id_reuse"], window["id_reuse_squared"]) == (2.0, 2.0)
    assert set(monitor.runs) == {"a"}


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_another_model_is_a_block_for_a_key_that_may_send_certain_runs_too():
    monitor = monitor_with(blocks=frozenset({CANARY}))
    observe(monitor, "a", owner="k")
    monitor.report(CANARIES, found(CANARY), 0.0)
    assert monitor.blocked_by("new", "k", is_bound=True) == CANARY


def test_a_blocked_run_that_was_evicted_is_known_until_its_last_block_is_acknowledged():
    monitor = monitor_with(places=1, blocks=frozenset({"judge_injection", "empty_opener"}))
    observe(monitor, "a")
    for wire in ("judge_injection", "empty_opener"):
        monitor.report("a", found(wire), 0.0)
    observe(monitor, "b")
    assert (set(monitor.runs), set(monitor.archived)) == ({"b"}, {"a"})
    assert monitor.acknowledge("a", "judge_injection")
    assert (monitor.label_of("a"), monitor.blocked_by("a")) == ("a", "empty_opener")
    assert monitor.acknowledge("a", "empty_opener")
    assert (monitor.label_of("a"), set(monitor.archived)) == (OTHER, set())


def test_of_evicted_blocked_runs_the_latest_256_of_each_owner_are_kept():
    monitor = monitor_with(places=1, blocks=frozenset({"judge_injection"}))
    names = ["of another", *(f"a{i}" for i in range(258))]
    for name in names:
        observe(monitor, name, owner=name[0])
        monitor.report(name, found("judge_injection"), 0.0)
    assert list(monitor.archived) == [names[0], *names[2:-1]]
    assert [monitor.label_of(name, "a") for name in ("a0", "a1", "a257")] == [OTHER, "a1", "a257"]


# -- state of a run -----------------------------------------------------------------------------------------------------


def test_what_another_found_is_news_once():
    monitor = monitor_with()
    assert monitor.report(CANARIES, found(CANARY), 3.0) is True
    assert monitor.report(CANARIES, found(CANARY), 4.0) is False
    run = monitor.runs[CANARIES]
    assert (run.alerts, run.statistics) == ({CANARY: ActiveAlert(found(CANARY), 3.0)}, {CANARY: 2.0})
    assert run.trips == {CANARY: 1}


def test_a_run_has_ended_when_it_was_silent_for_longer_than_that_and_canaries_never_have():
    monitor = monitor_with(ended_s=10.0)
    observe(monitor, "a", at=5.0)
    assert [monitor.has_ended("a", now) for now in (15.0, 15.5)] == [False, True]
    assert monitor.has_ended("nobody", 0.0)
    assert not monitor.has_ended(CANARIES, 0.0)
    monitor.report(CANARIES, found(CANARY), 0.0)
    assert not monitor.has_ended(CANARIES, 1e9)


def test_the_evidence_that_an_alert_could_name_is_the_latest_and_that_of_each_wire():
    monitor = monitor_with(evidence=1)
    observe(monitor, "a", evidence="01", is_honeypot_hit=True)
    observe(monitor, "a", evidence="02")
    assert monitor.runs["a"].wire_evidence == {"honeypots": deque(["01"])}
    assert monitor.evidence_of("a") == {"01", "02"}
    assert monitor.evidence_of("nobody") == set()


# -- another model ------------------------------------------------------------------------------------------------------


def test_a_new_model_changes_the_run_of_this_name_and_owner():
    monitor, other = monitor_with(places=3), BaselineSource()
    for name, owner in (("a", ""), ("a", "k"), (None, "")):
        observe(monitor, name, owner=owner)
    monitor.set_baseline_source("a", other, 1.0, "k")
    assert [label for label, run in monitor.runs.items() if run.baseline_source is other] == ["a@k"]


@pytest.mark.parametrize(("now", "measured"), [(50.0, [OTHER]), (50.5, [])])
def test_a_run_beyond_the_limit_is_measured_where_it_is_kept_unless_another_may_be_evicted(now, measured):
    monitor, other = monitor_with(places=1, protected_s=50.0), BaselineSource()
    observe(monitor, "a", n=2)
    observe(monitor, None)
    monitor.set_baseline_source("b", other, now)
    assert [label for label, run in monitor.runs.items() if run.baseline_source is other] == measured
