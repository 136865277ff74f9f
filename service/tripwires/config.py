"""Changes of an operator to the wires: thresholds, votes, severities, phrases. Checked here, read from a file by `io.config_file`.

    votes_for_a_page = 3
    lexicons = ["phrases/en.json"]
    block = ["judge_injection", "vote"]   # refuse the samples of a run while one of these alerts is not acknowledged

    [wires.length_high]
    threshold = 0.6

    [wires.markup]
    severity = "off"

`rewardserve rules` writes the alert rules of Prometheus from the same file. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from rewardserve.model.text.nearest_word import did_you_mean, nearest_word
from rewardserve.service.tripwires.alert import CANARY, VOTE, Severity
from rewardserve.service.tripwires.wires import WIRES, Wire

VOTES_FOR_A_PAGE = 3
_ENTRIES = {"votes_for_a_page", "lexicons", "block", "wires"}
_FIELDS = {"threshold", "severity", "votes"}
_SEVERITIES = (*get_args(Severity), "off")


class WireConfigError(Exception):
    """The file has an invalid entry; the message names it."""


@dataclass(frozen=True, slots=True)
class WireConfig:
    """The wires to evaluate, and the number of votes for a page. `lexicons`: files with phrases; none: the shipped ones.
    `block`: wires whose alerts block a run.
    """

    wires: tuple[Wire, ...] = WIRES
    votes_for_a_page: int = VOTES_FOR_A_PAGE
    lexicons: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


def parse_wire_config(entries: Mapping[str, Any], wires: Sequence[Wire] = WIRES) -> WireConfig:
    """Apply these changes to the shipped wires. Raise `WireConfigError`."""
    if unknown := sorted(set(entries) - _ENTRIES):
        raise WireConfigError(_unknown(unknown, _ENTRIES))
    changes = entries.get("wires", {})
    if not isinstance(changes, Mapping):
        raise WireConfigError(f"wires is {changes!r}; it must be a table")
    names = [wire.name for wire in wires]
    if unknown := sorted(set(changes) - set(names)):
        raise WireConfigError(_unknown(unknown, names, "wires: "))
    votes = entries.get("votes_for_a_page", VOTES_FOR_A_PAGE)
    if isinstance(votes, bool) or not isinstance(votes, int) or votes < 1:
        raise WireConfigError(f"votes_for_a_page is {votes!r}; it must be a whole number above zero")
    changed = [wire for each in wires if (wire := _changed(each, changes.get(each.name, {}))) is not None]
    block = _texts(entries, "block")
    trips = [*(wire.name for wire in changed), VOTE, CANARY]
    if idle := sorted(set(block) - set(trips)):
        if idle[0] in names:
            raise WireConfigError(f"block: {idle[0]} is off, so it cannot block a run")
        raise WireConfigError(_unknown(idle, trips, "block: "))
    return WireConfig(tuple(changed), votes, _texts(entries, "lexicons"), block)


def _unknown(found: Sequence[str], known: Iterable[str], where: str = "") -> str:
    """Describe names that are unknown, with the nearest known one of the first."""
    names = sorted(known)
    hint = nearest_word(found[0], names)
    meant = f"; did you mean {hint}?" if hint else "."
    return f"unknown: {where}{', '.join(found)}{meant} Known here: {', '.join(names)}"


def _texts(entries: Mapping[str, Any], name: str) -> tuple[str, ...]:
    texts = entries.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise WireConfigError(f"{name} must be a list of texts")
    return tuple(texts)


def _changed(wire: Wire, change: Any) -> Wire | None:
    """The wire with its changes; None where it is off."""
    where = f"wires.{wire.name}"
    if not isinstance(change, Mapping):
        raise WireConfigError(f"{where} is {change!r}; it must be a table with some of {', '.join(sorted(_FIELDS))}")
    if unknown := sorted(set(change) - _FIELDS):
        raise WireConfigError(_unknown(unknown, sorted(_FIELDS), f"{where}: "))
    threshold = change.get("threshold", wire.threshold)
    severity = change.get("severity", wire.severity)
    votes = change.get("votes", wire.votes)
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if "threshold" in change and not (is_number and threshold > 0):
        raise WireConfigError(f"{where}.threshold is {threshold!r}; it must be a number above zero")
    if severity not in _SEVERITIES:
        raise WireConfigError(
            f"{where}.severity is {severity!r}; it must be one of {', '.join(_SEVERITIES)}"
            + did_you_mean(severity, _SEVERITIES)
        )
    if not isinstance(votes, bool):
        raise WireConfigError(f"{where}.votes is {votes!r}; it must be true or false")
    return None if severity == "off" else replace(wire, threshold=float(threshold), severity=severity, votes=votes)
