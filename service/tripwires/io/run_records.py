"""Convert the state of runs to bytes and back, for the state file. Knows no file and no clock.

The fields of `Run` and of the records in it are read from their types, so a new field is stored without an edit here; a state
from before it has its default. Bytes are msgpack: floats are exact, also those that are not finite.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.alert import Cause
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.incidents import Incident
from rewardserve.service.tripwires.io.webhook import QueuedAlert
from rewardserve.service.tripwires.run_context import UnnamedClient
from rewardserve.service.tripwires.run_state import ActiveAlert, Run
from rewardserve.service.tripwires.running_sums import COMPONENT_ENTRIES, ENTRIES, RunningSums

FORMAT = 1
"""Version of the records. Raise it where an old state would be read with another meaning."""

_SCHEMA = sha256(repr((FORMAT, ENTRIES, COMPONENT_ENTRIES, TRAITS)).encode()).hexdigest()
_TYPES = {name: hint for name, hint in get_type_hints(Run).items() if name != "baseline_source"}


class _Alerts(msgspec.Struct):
    """Fields that a run keeps where its numbers do not fit: its name, its alerts, and how often each wire tripped."""

    owner: str
    name: str
    client: UnnamedClient | None
    seen_at: float
    alerts: dict[str, ActiveAlert]
    trips: dict[str, int]


class RunRecord(msgspec.Struct):
    """One run in the state file. `fits`: digest of all that its numbers depend on; `numbers`: its fields, without alerts.

    `waiting`: notifications that were not yet with the webhook.
    """

    label: str
    is_archived: bool
    fits: str
    alerts: _Alerts
    incidents: dict[Cause, Incident]
    waiting: list[QueuedAlert]
    numbers: msgspec.Raw


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """A run of an earlier process. `misfit`: the reason why it begins afresh, with its alerts alone; empty where it goes on."""

    label: str
    run: Run
    is_archived: bool
    incidents: Mapping[Cause, Incident] = field(default_factory=dict)
    waiting: Sequence[QueuedAlert] = ()
    misfit: str = ""


def encode_run(
    label: str, run: Run, *, is_archived: bool, incidents: Mapping[Cause, Incident], waiting: Sequence[QueuedAlert]
) -> bytes:
    """The bytes of one run, with its open incidents and its notifications that wait."""
    numbers = {each.name: _in_order(getattr(run, each.name)) for each in fields(run) if each.name in _TYPES}
    for name in _Alerts.__struct_fields__:
        del numbers[name]
    alerts = _Alerts(run.owner, run.name, run.client, run.seen_at, run.alerts, run.trips)
    raw = msgspec.Raw(_encode(numbers))
    return _encode(RunRecord(label, is_archived, _fits(run.baseline_source), alerts, dict(incidents), [*waiting], raw))


def decode_run(data: bytes, source: BaselineSource, later_s: float) -> RestoredRun:
    """The run of these bytes, measured by the model of `source`. Its times are `later_s` later than they were.

    Raise for bytes that are no run; where only the numbers do not fit, the run begins afresh with its alerts.
    """
    record = msgspec.msgpack.decode(data, type=RunRecord, dec_hook=_decoded)
    run, misfit = _numbers(record, source), ""
    if isinstance(run, str):
        misfit, run = run, Run.new(record.alerts.owner, record.alerts.name, record.alerts.client, source)
        run.model_changed_at = record.alerts.seen_at + later_s
    elif run.model_changed_at is not None:
        run.model_changed_at += later_s
    run.owner, run.name, run.client = record.alerts.owner, record.alerts.name, record.alerts.client
    run.seen_at = record.alerts.seen_at + later_s
    run.trips = Counter(record.alerts.trips)
    run.alerts = {
        wire: ActiveAlert(active.alert, active.since + later_s) for wire, active in record.alerts.alerts.items()
    }
    return RestoredRun(record.label, run, record.is_archived, record.incidents, record.waiting, misfit)


def encode_baselines(baselines: Sequence[tuple[str, str, Baseline]]) -> bytes:
    """The bytes of learned baselines, with their model and run."""
    return _encode(baselines)


def decode_baselines(data: bytes) -> list[tuple[str, str, Baseline]]:
    """The learned baselines of these bytes. Raise for anything else."""
    return msgspec.msgpack.decode(data, type=list[tuple[str, str, Baseline]], dec_hook=_decoded)


def _numbers(record: RunRecord, source: BaselineSource) -> Run | str:
    """The run with its numbers, or the reason why they do not fit."""
    if record.fits != _fits(source):
        return "it was measured by another model, pipeline or phrase list, or by another version of the server"
    try:
        kept = msgspec.msgpack.decode(record.numbers)
        known = {name: _converted(kept[name], hint) for name, hint in _TYPES.items() if name in kept}
        run = Run(source, **known)
        n = len(RunningSums(n_components=len(source.components)).sums)
        of_strata = [
            each for stratum in run.strata.values() for each in (stratum.window, stratum.total, stratum.smooth)
        ]
        if any(len(each.sums) != n for each in (run.total, run.window_ids, run.smooth, run.earlier, *of_strata)):
            return "its sums have another length"
    except Exception as error:  # a type that has changed, or a field that is gone
        return f"its numbers cannot be read ({type(error).__name__})"
    return run


def _fits(source: BaselineSource) -> str:
    return f"{_SCHEMA[:16]} {source.digest}"


def _in_order(value: Any) -> Any:
    """A mapping in its own order: msgspec reads an `OrderedDict` in that of its first insertions."""
    return dict(value.items()) if isinstance(value, OrderedDict) else value


def _encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_encoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, deque):
        return value.maxlen, list(value)
    if isinstance(value, RunningSums):
        return value.sums
    raise NotImplementedError(type(value).__name__)  # the error that msgspec asks a hook for


def _converted(value: Any, hint: Any) -> Any:
    return msgspec.convert(value, hint, dec_hook=_decoded)


def _decoded(hint: Any, value: Any) -> Any:
    made, of = get_origin(hint) or hint, get_args(hint)
    if made is deque:
        return deque(_converted(value[1], list[of[0]]), value[0])  # type: ignore[valid-type]
    if made is OrderedDict:
        return OrderedDict(_converted(value, dict[of[0], of[1]]))  # type: ignore[valid-type]
    if made is Counter:
        return Counter(_converted(value, dict[of[0], int]))  # type: ignore[valid-type]
    if made is RunningSums:
        return RunningSums(_converted(value, list[float]))
    raise NotImplementedError(hint)  # the same; a test reads and writes a value of every field
