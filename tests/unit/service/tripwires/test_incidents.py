"""One notification per run and cause: those of a stream of alerts."""

from __future__ import annotations

from rewardserve.service.tripwires.alert import CANARY, VOTE, Alert
from rewardserve.service.tripwires.incidents import IncidentTracker, most_severe_first
from rewardserve.service.tripwires.wires import WIRES, cause_of


def alert(wire, severity="warn"):
    return Alert(wire, severity, 1.0, 0.5, 3, ())


def told(incidents, *events):
    """(wire, is an update) of each notification; events are alerts of the run `a`, all of which stay active."""
    found, latched = [], []
    for each in events:
        latched.append(each.wire)
        if notice := incidents.notification_for("a", each, latched):
            found.append((each.wire, notice.is_update))
    return found


def test_wires_after_the_first_are_not_sent_but_the_first_page_is_as_an_update():
    events = [
        alert("flattery"),
        alert("length_high"),
        alert("judge_injection", "page"),
        alert(VOTE, "page"),
        alert("markup"),
    ]
    assert told(IncidentTracker(), *events) == [("flattery", False), ("judge_injection", True)]


def test_findings_of_one_moment_are_one_notification_with_the_worst():
    together = most_severe_first([alert("flattery"), alert("judge_injection", "page"), alert(VOTE, "page")])
    assert told(IncidentTracker(), *together) == [("judge_injection", False)]


def test_an_update_has_the_name_of_its_incident():
    incidents = IncidentTracker()
    first = incidents.notification_for("a", alert("flattery"), ["flattery"])
    update = incidents.notification_for("a", alert(VOTE, "page"), ["flattery", VOTE])
    assert (first.incident_id, first.is_update, update.is_update) == (update.incident_id, False, True)


def test_runs_and_causes_are_incidents_of_their_own():
    incidents = IncidentTracker()
    wires = ["flattery", "id_reuse"]
    notices = [
        incidents.notification_for("a", alert("flattery"), wires),
        incidents.notification_for("b", alert("flattery"), wires),
        incidents.notification_for("a", alert("id_reuse"), wires),
        incidents.notification_for("canaries", alert(CANARY, "page"), [CANARY]),
    ]
    assert len({notice.incident_id for notice in notices}) == 4
    assert [notice.cause for notice in notices] == ["policy", "policy", "client", "model"]
    assert not any(notice.is_update for notice in notices)


def test_after_every_wire_is_acknowledged_the_next_one_is_news():
    incidents = IncidentTracker()
    first = incidents.notification_for("a", alert("flattery"), ["flattery"])
    again = incidents.notification_for(
        "a", alert("flattery"), ["flattery"]
    )  # acknowledged between, or the run was forgotten
    other = incidents.notification_for("a", alert("length_high"), ["length_high"])
    assert len({first.incident_id, again.incident_id, other.incident_id}) == 3
    assert not any(each.is_update for each in (first, again, other))


def test_one_acknowledged_wire_of_several_does_not_open_the_incident_again():
    incidents = IncidentTracker()
    incidents.notification_for("a", alert("flattery"), ["flattery"])
    assert incidents.notification_for("a", alert("length_high"), ["flattery", "length_high"]) is None
    assert incidents.notification_for("a", alert("flattery"), ["length_high", "flattery"]) is None


def test_notes_are_not_sent():
    assert IncidentTracker().notification_for("a", alert("score_shift", "note"), ["score_shift"]) is None


def test_beyond_4096_open_incidents_the_oldest_is_forgotten():
    def is_open(i):
        return incidents.notification_for(f"run {i}", alert("markup"), ["flattery", "markup"]) is None

    incidents = IncidentTracker()
    for i in range(4_096):
        incidents.notification_for(f"run {i}", alert("flattery"), ["flattery"])
    assert is_open(0)
    incidents.notification_for("one more", alert("flattery"), ["flattery"])
    assert [is_open(i) for i in (1, 4_095)] == [True, True]
    assert not is_open(0), "which opens it again, so that the next one is forgotten"
    assert not is_open(1)
    assert len(incidents._open) == 4_096


def test_every_wire_has_a_cause():
    assert {cause_of(wire.name) for wire in WIRES} == {"policy", "client"}
    assert (cause_of(VOTE), cause_of(CANARY)) == ("policy", "model")
