"""Parse the bytes of a reply into records, or raise `InvalidReply`. Pure.

A reply is accepted only if it has one entry for every item, each with the id that was sent, and each with either a
finite reward or an error. The client never returns a number that the server did not send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rewardserve_client.results import ApprovalResult, ComparisonResult, Failure, ModelIdentity, Result
from rewardserve_client.samples import Item


class InvalidReply(Exception):
    """A reply of status 200 that does not match its request."""


def parse_scores(body: bytes, items: Sequence[Item]) -> list[Result]:
    """Parse the reply of `POST /score`, in the order of `items`."""
    reply = _object(_parsed(body))
    identity, results = _identity(reply), _list(reply, "results", len(items))
    rewards = _list(reply, "rewards", len(items))
    return [
        _result(_object(result), reward, item, identity)
        for result, reward, item in zip(results, rewards, items, strict=True)
    ]


def parse_comparisons(body: bytes, items: Sequence[Item]) -> list[ComparisonResult]:
    """Parse the reply of `POST /compare`, in the order of `items`."""
    reply = _object(_parsed(body))
    identity, results = _identity(reply), _list(reply, "results", len(items))
    return [_comparison(_object(result), item, identity) for result, item in zip(results, items, strict=True)]


def parse_approvals(body: bytes, items: Sequence[Item]) -> list[ApprovalResult]:
    """Parse the reply of `POST /approvals`, in the order of `items`."""
    reply = _object(_parsed(body))
    identity, snapshot = _identity(reply), _text(reply.get("snapshot"))
    results = _list(reply, "results", len(items))
    return [_approval(_object(result), item, identity, snapshot) for result, item in zip(results, items, strict=True)]


def parse_model(body: bytes) -> dict[str, Any]:
    """Parse the reply of `GET /model`."""
    return dict(_object(_parsed(body)))


def parse_error(body: bytes, status: int) -> Failure:
    """Parse the error of a reply other than 200; a proxy's error page yields its status alone."""
    try:
        error = _object(_object(_parsed(body))["error"])
        return _failure(error)
    except (InvalidReply, KeyError):
        return Failure(f"http_{status}", "the reply is not in the server's error format; a proxy may have sent it")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        # The message of the exception might quote the reply.
        raise InvalidReply("the reply is not JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _result(result: Mapping[str, Any], reward: Any, item: Item, identity: ModelIdentity) -> Result:
    _check_id(result, item)
    if result.get("reward") != reward:
        raise InvalidReply("the reward in `results` differs from the one in `rewards`")
    error = result.get("error")
    if (error is None) == (reward is None):
        raise InvalidReply("a sample has both a reward and an error, or neither")
    return Result(
        id=item.id,
        reward=_number(reward),
        raw=_number(result.get("raw")),
        normalized=_number(result.get("normalized")),
        heads=_numbers(result.get("heads")),
        stages=_numbers(result.get("stages")),
        notes=_words(result.get("notes")),
        flags=_words(result.get("flags")),
        tokens=_count(result.get("tokens")),
        truncated=result.get("truncated") is True,
        missing_end=result.get("missing_end") is True,
        cached=result.get("cached") is True,
        error=None if error is None else _failure(_object(error)),
        identity=identity,
    )


def _comparison(result: Mapping[str, Any], item: Item, identity: ModelIdentity) -> ComparisonResult:
    _check_id(result, item)
    if result.get("error") is not None:
        return ComparisonResult(item.id, error=_failure(_object(result["error"])), identity=identity)
    n = item.weight
    ranking = tuple(_list(result, "ranking", n))
    if sorted(_count(i) or 0 for i in ranking) != list(range(n)):
        raise InvalidReply("the ranking does not name every response once")
    winner = _count(result.get("winner"))
    if winner is not None and not 0 <= winner < n:
        raise InvalidReply("the winner is not one of the responses")
    return ComparisonResult(
        id=item.id,
        ranking=ranking,
        winner=winner,
        raw=_row(_list(result, "raw", n)),
        probabilities=tuple(_row(_as_list(row, n)) for row in _list(result, "probabilities", n)),
        margin=_required(_number(result.get("margin"))),
        identity=identity,
    )


def _approval(result: Mapping[str, Any], item: Item, identity: ModelIdentity, snapshot: str) -> ApprovalResult:
    _check_id(result, item)
    approvals = tuple(_number(each) for each in _list(result, "approvals", item.weight))
    errors = tuple(None if each is None else _failure(_object(each)) for each in _list(result, "errors", item.weight))
    if any((error is None) == (approval is None) for error, approval in zip(errors, approvals, strict=True)):
        raise InvalidReply("a query has both an approval and an error, or neither")
    repeats = result.get("repeats_taken")
    return ApprovalResult(
        id=item.id,
        approvals=approvals,
        errors=errors,
        repeats_taken=tuple(_required(_count(i)) for i in (repeats if isinstance(repeats, list) else [None])),
        snapshot=snapshot,
        error=next((error for error in errors if error is not None), None),
        identity=identity,
    )


def _check_id(result: Mapping[str, Any], item: Item) -> None:
    if result.get("id") != item.id:
        raise InvalidReply("the ids of the reply differ from those of the request")


def _identity(reply: Mapping[str, Any]) -> ModelIdentity:
    calibration = reply.get("calibration")
    return ModelIdentity(
        model=_text(reply.get("model")),
        version=_required(_count(reply.get("model_version"))),
        contract=_text(reply.get("contract")),
        calibration=None if calibration is None else _text(calibration),
        pipeline=_text(reply.get("pipeline")),
    )


def _failure(error: Mapping[str, Any]) -> Failure:
    details = {name: value for name, value in error.items() if name not in ("code", "message")}
    return Failure(_text(error.get("code")), _text(error.get("message")), details)


# -- one value ------------------------------------------------------------------------------------------------


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidReply("a value is not an object")
    return value


def _list(fields: Mapping[str, Any], name: str, n: int) -> list[Any]:
    return _as_list(fields.get(name), n, name)


def _as_list(value: Any, n: int, name: str = "a list") -> list[Any]:
    if not isinstance(value, list):
        raise InvalidReply(f"{name} is not a list")
    if len(value) != n:
        raise InvalidReply(f"{name} has {len(value)} entries for {n} items")
    return value


def _number(value: Any) -> float | None:
    """Check a number. Raise `InvalidReply` unless it is finite or None; a bool is not a number."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidReply("a value is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidReply("a number is not finite")
    return number


def _required(value: Any) -> Any:
    if value is None:
        raise InvalidReply("a number is missing")
    return value


def _row(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(_required(_number(value)) for value in values)


def _count(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InvalidReply("a value is not an integer")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidReply("a value is not a string")
    return value


def _numbers(value: Any) -> dict[str, float] | None:
    return None if value is None else {name: _required(_number(v)) for name, v in _object(value).items()}


def _words(value: Any) -> tuple[str, ...]:
    return () if value is None else tuple(map(_text, value if isinstance(value, list) else [None]))
