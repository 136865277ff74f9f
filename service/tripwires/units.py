"""Units of the numbers of alerts, for the webhook and for the annotations of the alert rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """`text` follows a number; `is_share`: the number is written in percent."""

    text: str
    is_share: bool = False

    def number(self, value: float) -> str:
        """Format a value without the text of its unit."""
        return f"{100 * value:.3g}%" if self.is_share else f"{value:.4g}"

    def measured(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{self.number(value)} {self.text}"

    def template(self) -> str:
        """Format `$value` with its unit, as a template of Prometheus."""
        number = "{{ $value | humanizePercentage }}" if self.is_share else '{{ printf "%.4g" $value }}'
        return f"{number} {self.text}"
