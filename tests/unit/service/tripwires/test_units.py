"""The numbers of alerts and of alert rules are written with units, alike in both."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.statistics import (
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessShare,
    HoneypotHitRate,
    KlRoot,
    MeanShift,
    Saturation,
    Share,
)
from rewardserve.service.tripwires.units import Unit

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
    unit = statistic.unit
    assert unit.measured(0.12346) == words
    number = "{{ $value | humanizePercentage }}" if "%" in words else '{{ printf "%.4g" $value }}'
    assert unit.template() == f"{number} {words.partition(' ')[2]}"


def test_shares_are_percent_and_other_numbers_are_not():
    assert (Unit("x", is_share=True).measured(0.5), Unit("x").measured(0.5)) == ("50% x", "0.5 x")
    assert (Unit("x", is_share=True).measured(0.012345), Unit("x").measured(1234567.0)) == ("1.23% x", "1.235e+06 x")
