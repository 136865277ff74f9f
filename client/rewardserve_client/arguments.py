"""Check arguments before anything is sent: one of a wrong type is named, its value never quoted."""

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
    """Raise `WrongType` unless this is a string or None."""
    check_type(name, value, (str, type(None)), "a string")


def check_listed(name: str, value: object, expected: str) -> None:
    """Raise `WrongType` unless this can be a list of several: a text or a mapping can be iterated over, and is none."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise WrongType(f"{name} must be a list of {expected}, not {type(value).__name__}: pass one as [it]")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `Misconfigured` unless this is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise Misconfigured(f"{name} must be one of {', '.join(choices)}")


def check_callable(name: str, value: object) -> None:
    """Raise `WrongType` unless this can be called, or is None."""
    if value is not None and not callable(value):
        raise WrongType(f"{name} must be callable, not {type(value).__name__}")


def seconds(name: str, value: object) -> float:
    """A length of time; infinity is one. Raise `WrongType` or `Misconfigured`."""
    return _at_least_zero(name, number(name, value))


def number(name: str, value: object) -> float:
    """A real number, of NumPy and the like too. Raise `WrongType` or, for NaN, `Misconfigured`."""
    found = _convert(name, value, float, "a number")
    if math.isnan(found):
        raise Misconfigured(f"{name} must be a number, not NaN")
    return found


def margin(name: str, value: object) -> float:
    """A finite number, at least 0. Raise `WrongType` or `Misconfigured`."""
    found = _at_least_zero(name, number(name, value))
    if math.isinf(found):
        raise Misconfigured(f"{name} must be finite")
    return found


def step_of(value: object) -> int | None:
    """A step as the wire has it; integers of NumPy are some too. Raise `WrongType` or `Misconfigured`."""
    if value is None:
        return None
    found = _convert("step", value, operator.index, "a whole number")
    if found < 0:
        raise Misconfigured("step must be at least 0")
    return found


def kl_of(value: object) -> float | None:
    """A KL divergence for the wire: at least zero, though an estimate may be below it; None for NaN and infinity.

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
