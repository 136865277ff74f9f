"""Units of the numbers of an alert, for the webhook and for the annotations of the alert rules. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardserve.service.tripwires.wire import CANARY, VOTE
from rewardserve.service.tripwires.wires import (
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessShare,
    HoneypotHitRate,
    KlRoot,
    MeanShift,
    Saturation,
    Share,
    Statistic,
    Wire,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """`text` follows a number; `is_share`: the number is written in percent."""

    text: str
    is_share: bool = False

    def measured(self, value: float) -> str:
        """A value with its unit."""
        return f"{100 * value:.3g}% {self.text}" if self.is_share else f"{value:.4g} {self.text}"

    def template(self) -> str:
        """The value `$value` with its unit, as a template of Prometheus."""
        number = "{{ $value | humanizePercentage }}" if self.is_share else '{{ printf "%.4g" $value }}'
        return f"{number} {self.text}"


_OF_STATISTICS: Mapping[type, Unit] = {
    Share: Unit("of the samples", is_share=True),
    ExcessShare: Unit("of the samples", is_share=True),
    Saturation: Unit("of the scores", is_share=True),
    HoneypotHitRate: Unit("of the planted prompts", is_share=True),
    AuditGap: Unit("standard deviations above the audit judge"),
    AuditDivergence: Unit("standard errors, of the lesser of both trends"),
    ComponentShare: Unit("times the usual share of the variance"),
    KlRoot: Unit("(square root of the KL in nats)"),
}
_OF_NAMES = {VOTE: Unit("votes"), CANARY: Unit("times the change that numeric noise allows")}


def unit_of(statistic: Statistic) -> Unit:
    """The unit of a wire's statistic."""
    if isinstance(statistic, MeanShift):
        return Unit(f"standard deviations {'above' if statistic.sign > 0 else 'below'} the usual mean of the run")
    return _OF_STATISTICS[type(statistic)]


def units(wires: Sequence[Wire]) -> dict[str, Unit]:
    """Units by the names of the wires, of the vote and of the canaries."""
    return {wire.name: unit_of(wire.statistic) for wire in wires} | _OF_NAMES
