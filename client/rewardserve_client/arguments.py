"""Check arguments before a request is sent. An error names the argument and its type, never its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

from rewardserve_client.errors import Misconfigured, WrongType

T = TypeVar("T")


def check_type(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    """Raise `WrongType` naming the argument."""
    if not isinstance(value, types):
        raise WrongType(f"{name} must be {expected}, not {type(value).__name__}")


def check_text(name: str, value: object) -> None:
    """Raise `WrongType` unless the value is a string or None."""
    check_type(name, value, (str, type(None)), "a string")


def check_listed(name: str, value: object, expected: str) -> None:
    """Raise `WrongType` unless the value is an iterable of several items; a string or a mapping is rejected."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise WrongType(f"{name} must be a list of {expected}, not {type(value).__name__}: pass one as [it]")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `Misconfigured` unless the value is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise Misconfigured(f"{name} must be one of {', '.join(choices)}")


def check_callable(name: str, value: object) -> None:
    """Raise `WrongType` unless the value is callable or None."""
    if value is not None and not callable(value):
        raise WrongType(f"{name} must be callable, not {type(value).__name__}")


def seconds(name: str, value: object) -> float:
    """Convert to seconds, at least 0; infinity is allowed. Raise `WrongType` or `Misconfigured`."""
    return _at_least_zero(name, number(name, value))


def number(name: str, value: object) -> float:
    """Convert a real number, also of NumPy and similar libraries. Raise `WrongType` or, for NaN, `Misconfigured`."""
    found = _convert(name, value, float, "a number")
    if math.isnan(found):
        raise Misconfigured(f"{name} must be a number, not NaN")
    return found


def margin(name: str, value: object) -> float:
    """Convert to a finite number, at least 0. Raise `WrongType` or `Misconfigured`."""
    found = _at_least_zero(name, number(name, value))
    if math.isinf(found):
        raise Misconfigured(f"{name} must be finite")
    return found


def step_of(value: object) -> int | None:
    """Convert a step for the wire; NumPy integers are accepted. Raise `WrongType` or `Misconfigured`."""
    if value is None:
        return None
    found = _convert("step", value, operator.index, "a whole number")
    if found < 0:
        raise Misconfigured("step must be at least 0")
    return found


def kl_of(value: object) -> float | None:
    """Convert a KL divergence for the wire: clamp an estimate below zero to zero; return None for NaN and infinity.

    Raise `WrongType`.
    """
    if value is None:
        return None
    found = _convert("kl", value, float, "a number")
    return max(0.0, found) if math.isfinite(found) else None


def _convert(name: str, value: object, convert: Callable[[Any], T], expected: str) -> T:
    is_number = isinstance(value, Real) or hasattr(value, "__float__") or hasattr(value, "__index__")
    if not is_number or isinstance(value, bool | str | bytes):
        raise WrongType(f"{name} must be {expected}, not {type(value).__name__}")
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise WrongType(f"{name} must be {expected}, not {type(value).__name__}") from None


def _at_least_zero(name: str, value: float) -> float:
    if value < 0:
        raise Misconfigured(f"{name} must be at least 0")
    return value
