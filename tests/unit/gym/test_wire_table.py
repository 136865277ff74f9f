"""A wire is worth the exploits and hacked runs that are paged in time only with it, alone or together with others."""

import pytest

from gym.monitored_runs import Curves, FirstAlert, RunKind
from gym.monitored_runs import outcome as run_of
from gym.streams.outcomes import StreamOutcome
from gym.streams.replay import ReplayEvent
from gym.wire_table import Evidence, wire_rows, without_row
from rewardserve.service.tripwires.wires import WIRES

SHARES = tuple(i / 10 for i in range(9))
UP_AND_DOWN = [1.0 + 0.01 * min(t, 120 - t) for t in range(120)]


def stream(*events, votes=(), is_exploit=True):
    found = tuple(ReplayEvent(step, wire, severity, "") for step, wire, severity in events)
    shares = SHARES if is_exploit else (0.0,) * len(SHARES)
    padded = (*votes, *({},) * (len(SHARES) - len(votes)))
    return StreamOutcome("planted", "", "s", is_exploit, 0, 100, 1.0, shares, found, padded, 3)


def run(*alerts, votes=(), gold=UP_AND_DOWN):
    zeros = [0.0] * len(gold)
    padded = (*votes, *({},) * (len(gold) - len(votes)))
    alerts = [FirstAlert(*alert) for alert in alerts]
    return run_of(RunKind("hacked"), 1, Curves(gold, zeros, zeros), alerts, (), samples=100, votes=padded)


TWO = ({}, {}, {"length_high": 2, "missing_end": 2})
EVIDENCE = Evidence.of(
    [
        stream((2, "vote", "page"), (3, "artefact_share", "page"), votes=TWO),
        stream((3, "artefact_share", "page"), (2, "kl", "warn")),
        stream((4, "vote", "page"), votes=TWO, is_exploit=False),
    ],
    [
        run(("length_high", "warn", 2), ("vote", "page", 2), votes=TWO),
        run(("kl", "warn", 5), gold=[1.0] * 120),
    ],
)


def test_each_wire_has_a_line():
    rows = {row["wire"]: row for row in wire_rows(EVIDENCE)}
    assert list(rows) == [wire.name for wire in WIRES]
    artefact, length = rows["artefact_share"], rows["length_high"]
    assert (artefact["is a"], artefact["exploits with it"], artefact["paged only with it"]) == ("page", "2/2", "1")
    assert (length["is a"], length["paged only with it"], length["honest paged only with it"]) == ("vote", "0", "1")
    assert (length["hacked with it"], length["hacked paged only with it"]) == ("1/1", "1")
    assert (rows["kl"]["hacked with it"], rows["kl"]["never falls, with it"]) == ("0/1", "1/1")


@pytest.mark.parametrize(
    ("wires", "exploits", "hacked"),
    [
        (("kl",), "2 -> 2 of 2", "1 -> 1 of 1"),
        (("length_high",), "2 -> 2 of 2", "1 -> 0 of 1"),
        (("length_high", "artefact_share"), "2 -> 0 of 2", "1 -> 0 of 1"),
    ],
)
def test_wires_are_taken_out_together(wires, exploits, hacked):
    row = without_row(EVIDENCE, wires)
    assert row["exploits paged by 40%"] == exploits
    assert row["hacked paged before the fall"] == hacked
