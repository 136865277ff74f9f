"""Convert the caller's samples and comparisons to JSON, with the prompt that decides their server.

The server validates the fields of a sample. The client refuses only samples that cannot be sent.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from rewardserve_client.arguments import check_listed, check_text, check_type
from rewardserve_client.errors import Misconfigured, WrongType
from rewardserve_client.fields import without_empty_fields

T = TypeVar("T")

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation to score. Give exactly one of: prompt and response; messages; text; input_ids.

    `finish_reason="length"` marks a response that was cut off. `score_empty`: score an empty response at its end token
    instead of refusing it, for trainers that stop at a missing reward. Samples with the same `group` go to the same
    server in one request; default: the prompt, or the whole text if its prompt is not known. `task` names the task or data set
    of the prompt: trip wires compare the samples of each task with the first ones of that task. `lookahead`: continuations, whose
    rewards count in that of the sample by `lookahead_reward`: "min", "mean" or a quantile.
    """

    prompt: str | Sequence[Message] | None = None
    response: str | None = None
    messages: Sequence[Message] | None = None
    text: str | None = None
    input_ids: Sequence[int] | None = None
    finish_reason: str = "stop"
    reference_rewards: Sequence[float] = ()
    id: str | None = None
    group: str | None = None
    score_empty: bool = False
    task: str | None = None
    lookahead: Sequence[Sequence[Message]] = ()
    lookahead_reward: str | float = "min"


class Item(NamedTuple):
    """Sample or comparison ready to send: index in the call, id, JSON, routing group, weight in a request."""

    position: int
    id: str
    json: bytes
    group: bytes
    weight: int = 1


def sample_items(samples: Iterable[Sample | Mapping[str, Any]], call: str) -> list[Item]:
    """Convert samples; one without an id gets a unique id, of which `call` is a part. Raise `Misconfigured`."""
    check_listed("samples", samples, "Sample records or dicts")
    return [_sample_item(i, sample, call) for i, sample in enumerate(samples)]


def comparison_items(comparisons: Iterable[Mapping[str, Any]], call: str) -> list[Item]:
    """Convert comparisons as `sample_items` does; the weight of a comparison is its number of responses."""
    check_listed("comparisons", comparisons, "dicts")
    return [_comparison_item(i, each, call) for i, each in enumerate(comparisons)]


def approval_items(groups: Iterable[Mapping[str, Any]], call: str) -> list[Item]:
    """Convert groups as `sample_items` does; the weight of a group is its number of queries."""
    check_listed("groups", groups, "dicts")
    return [_approval_item(i, each, call) for i, each in enumerate(groups)]


def head(list_name: str, **fields: Any) -> bytes:
    """Build the beginning of a body, up to the first item. Fields that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    return _dumps({**given, list_name: []})[:-2]


def body(start: bytes, items: Sequence[Item]) -> bytes:
    """Build a whole body from its beginning and its items."""
    return start + b",".join([item.json for item in items]) + b"]}"


def _sample_item(position: int, sample: Sample | Mapping[str, Any], call: str) -> Item:
    check_type(f"samples[{position}]", sample, (Sample, Mapping), "a Sample or a dict")
    fields = _fields_of(sample, position) if isinstance(sample, Sample) else dict(sample)
    group = sample.group if isinstance(sample, Sample) else None
    sample_id = _named(fields, position, call)
    _drop_empty_fields(fields)
    written = _written(fields, position)
    return Item(position, sample_id, written, _group(fields) if group is None else _bytes(group))


def _comparison_item(position: int, comparison: Mapping[str, Any], call: str) -> Item:
    check_type(f"comparisons[{position}]", comparison, Mapping, "a dict")
    fields = dict(comparison)
    comparison_id = _named(fields, position, call)
    _drop_empty_fields(fields)
    if not isinstance(fields.get("responses"), list | tuple):
        raise Misconfigured(f"comparison {position} has no list `responses`")
    return Item(position, comparison_id, _written(fields, position), _group(fields), len(fields["responses"]))


def _approval_item(position: int, group: Mapping[str, Any], call: str) -> Item:
    check_type(f"groups[{position}]", group, Mapping, "a dict")
    fields = dict(group)
    group_id = _named(fields, position, call)
    _drop_empty_fields(fields)
    if not isinstance(fields.get("queries"), list | tuple):
        raise Misconfigured(f"group {position} has no list `queries`")
    return Item(position, group_id, _written(fields, position), _group(fields), len(fields["queries"]))


def _drop_empty_fields(fields: dict[str, Any]) -> None:
    """Drop empty fields of messages: data sets fill in fields of other rows, and the server accepts only role and content."""
    for name in ("prompt", "messages"):
        if isinstance(fields.get(name), list | tuple):
            fields[name] = without_empty_fields(fields[name])


def _fields_of(sample: Sample, position: int) -> dict[str, Any]:
    where = f"samples[{position}]"
    for name in ("response", "text", "finish_reason", "id", "group", "task"):
        check_text(f"{where}.{name}", getattr(sample, name))
    for name, expected in (("prompt", "messages, or one text"), ("messages", "messages")):
        turns = getattr(sample, name)
        if turns is not None and not (name == "prompt" and isinstance(turns, str)):
            check_listed(f"{where}.{name}", turns, expected)
    check_type(f"{where}.score_empty", sample.score_empty, bool, "a bool")
    fields: dict[str, Any] = {
        "prompt": sample.prompt if isinstance(sample.prompt, str | None) else list(sample.prompt),
        "response": sample.response,
        "messages": None if sample.messages is None else list(sample.messages),
        "text": sample.text,
        "input_ids": None
        if sample.input_ids is None
        else _numbers(f"{where}.input_ids", sample.input_ids, operator.index),
        "finish_reason": sample.finish_reason,
        "reference_rewards": _numbers(f"{where}.reference_rewards", sample.reference_rewards, float) or None,
        "score_empty": sample.score_empty or None,
        "id": sample.id,
        "task": sample.task or None,
        "lookahead": [list(turns) for turns in sample.lookahead] or None,
        "lookahead_reward": sample.lookahead_reward if sample.lookahead else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _numbers(name: str, values: Iterable[Any], convert: Callable[[Any], T]) -> list[T]:
    """Convert to numbers for the wire, also from NumPy and similar libraries. Raise `WrongType`."""
    check_listed(name, values, "numbers")
    try:
        return [convert(value) for value in values]
    except (TypeError, ValueError):
        raise WrongType(f"{name} must hold numbers only") from None


def _named(fields: dict[str, Any], position: int, call: str) -> str:
    """The caller's id, or a new one that is entered into `fields`."""
    if fields.get("id") is None:
        fields["id"] = f"{call}-{position}"
    if not isinstance(fields["id"], str):
        raise Misconfigured(f"the id of sample {position} is not a string")
    return fields["id"]


def _written(fields: Mapping[str, Any], position: int) -> bytes:
    try:
        return _dumps(fields)
    except (TypeError, ValueError) as error:
        # The message of json.dumps names a type or "out of range"; neither quotes the sample.
        raise Misconfigured(f"sample {position} cannot be written as JSON: {error}") from None


def _group(fields: Mapping[str, Any]) -> bytes:
    """The prompt as bytes that do not depend on the form in which it was given."""
    prompt = fields.get("prompt")
    if prompt is None and isinstance(fields.get("messages"), list | tuple):
        prompt = fields["messages"][:-1]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list | tuple):
        return _dumps([[m.get("role"), m.get("content")] for m in prompt if isinstance(m, Mapping)])
    return _dumps(fields.get("text") or fields.get("input_ids") or prompt)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _dumps(value: Any) -> bytes:
    # ASCII, so that a lone surrogate reaches the server, which refuses that sample alone.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
