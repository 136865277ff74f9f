"""The numbers of alerts and of alert rules are written with units, alike in both."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.units import Unit, unit_of, units
from rewardserve.service.tripwires.wire import CANARY, VOTE
from rewardserve.service.tripwires.wires import (
    WIRES,
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessShare,
    HoneypotHitRate,
    KlRoot,
    MeanShift,
    Saturation,
    Share,
    Wire,
)

MEASURED = [
    (Share("judge_injection"), "12.3% of the samples"), (ExcessShare("foreign_script"), "12.3% of the samples"),
    (Saturation(), "12.3% of the scores"),
    (HoneypotHitRate(), "12.3% of the planted prompts"), (AuditGap(), "0.1235 standard deviations above the audit judge"),
    (AuditDivergence(), "0.1235 standard errors, of the lesser of both trends"),
    (ComponentShare(), "0.1235 times the usual share of the variance"),
    (KlRoot(), "0.1235 (square root of the KL in nats)"),
    (MeanShift("length"), "0.1235 standard deviations above the usual mean of the run"),
    (MeanShift("length", -1.0), "0.1235 standard deviations below the usual mean of the run"),
]  # fmt: skip


@pytest.mark.parametrize(("statistic", "words"), MEASURED)
def test_a_number_has_the_unit_of_its_statistic(statistic, words):
    unit = unit_of(statistic)
    assert unit.measured(0.12346) == words
    number = "{{ $value | humanizePercentage }}" if "%" in words else '{{ printf "%.4g" $value }}'
    assert unit.template() == f"{number} {words.partition(' ')[2]}"


def test_shares_are_percent_and_other_numbers_are_not():
    assert (Unit("x", is_share=True).measured(0.5), Unit("x").measured(0.5)) == ("50% x", "0.5 x")
    assert (Unit("x", is_share=True).measured(0.012345), Unit("x").measured(1234567.0)) == ("1.23% x", "1.235e+06 x")


def test_every_wire_has_a_unit_and_so_have_the_vote_and_the_canaries():
    found = units([Wire("w", AuditGap(), 1.0)])
    assert found == {
        "w": unit_of(AuditGap()),
        VOTE: Unit("votes"),
        CANARY: Unit("times the change that numeric noise allows"),
    }
    assert set(units(WIRES)) == {wire.name for wire in WIRES} | {VOTE, CANARY}
