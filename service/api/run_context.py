"""Read run, step and task of a request from its URL or headers, for wire formats whose body has no field for them.

In most trainers only the URL of the reward model can be configured. An API key is never read from the query of a URL, since URLs
appear in logs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import Scope

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.service.api.names import MAX_NAME_CHARS, check_run_name, check_task_name, is_task_name
from rewardserve.service.api.requests import MAX_STEP
from rewardserve.service.auth.api_keys import RunPermissions
from rewardserve.service.errors import InvalidRequest, RunNotAllowed
from rewardserve.service.tripwires.run_context import RunContext, UnnamedClient

T = TypeVar("T")

_MAX_AGENT = 100
_MAX_STEP_DIGITS = len(str(MAX_STEP))
_MAX_DIGESTS = 3
_MAX_SUGGESTED_CHARS = 40
"""Longer names are not compared in full."""
_PLAIN_NAME = re.compile(r"[a-z][a-z_]{0,23}")
"""Shorter than an API key, and without its digits and capitals."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """Parameters of a request from its URL and headers. `options` are further query parameters, as text.

    `model_digests` select the only model that may answer. `task` is that of the samples without one.
    """

    run: str | None
    step: int | None
    options: Mapping[str, str]
    model_digests: tuple[str, ...] = ()
    task: str | None = None


NO_PARAMETERS = RequestParameters(None, None, {})


async def check_no_parameters(request: Request) -> None:
    """Raise `InvalidRequest` if the URL of a route without query parameters has one: ignored, it would seem to have an effect."""
    if request.scope["query_string"]:
        raise InvalidRequest("this route has no query parameters: leave them out; see /docs", field="query")


def read_parameters(
    scope: Scope, options: Collection[str] = (), remark: str = "", *, has_task: bool = True
) -> RequestParameters:
    """Read `?run=`, `?step=`, `?task=` and `?model_digest=`, or `x-run`, `x-step`, `x-task` and `x-model-digest`.

    `remark` describes the options. Without `has_task` the route has no use for a task: none is known in the URL, and the header
    is not read. Raise `InvalidRequest` for an unknown parameter, for two different values of one parameter, and for a task that is
    no name.
    """
    run = step = digest = task = None
    for name, value in scope["headers"]:
        if name[:2] == b"x-":  # `HttpProtocol` refuses duplicates
            if name == b"x-run":
                run = value
            elif name == b"x-step":
                step = value
            elif name == b"x-model-digest":
                digest = value
            elif name == b"x-task" and has_task:
                task = value
    if run is None and step is None and digest is None and task is None and not scope["query_string"]:
        return NO_PARAMETERS
    known = {*options, "run", "step", "model_digest", *(("task",) if has_task else ())}
    given = query_parameters(scope["query_string"], known, remark)
    others = {k: v for k, v in given.items() if k in options}
    return RequestParameters(
        single_value("run", given.get("run") or None, _header_text(run, "x-run") or None),
        single_value("step", _parse_step(given.get("step")), _parse_step(_header_text(step, "x-step"))),
        others,
        single_value(
            "model_digest",
            _parse_digests(given.get("model_digest")),
            _parse_digests(_header_text(digest, "x-model-digest")),
        )
        or (),
        _check_task(single_value("task", given.get("task") or None, _header_text(task, "x-task") or None)),
    )


def single_value(field: str, first: T | None, second: T | None) -> T | None:
    """Return the value that a request gives in one or two places. Raise `InvalidRequest` if they differ."""
    if first is None or second is None or first == second:
        return second if first is None else first
    header = f"x-{field.replace('_', '-')}"
    raise InvalidRequest(
        f"{field} has two different values (in body, URL or the header {header}): send one", field=field
    )


def run_context_of(
    scope: Scope,
    run: str | None,
    step: int | None,
    kl: float | None = None,
    ids: Sequence[str | None] = (),
    tasks: Sequence[str | None] = (),
) -> RunContext:
    """Determine the run of a request and its owner. Raise `InvalidRequest` for an invalid name of a run or task, and
    `RunNotAllowed` if the key may not send the run.

    A request without a run gets that of its key, if the key is bound to exactly one. The context is stored in the state of the
    request, so that the idempotency store can withhold the response of a run that is blocked later.
    """
    run = check_run_name(run) if run else None
    tasks = [check_task_name(task) if task else None for task in tasks] if any(tasks) else ()
    caller: RunPermissions | None = scope["state"].get("permissions")
    if caller is None:
        context = RunContext(run, step, kl, ids, tasks=tasks, client=None if run else _client_of(scope))
    else:
        run = run or caller.runs.only_name
        if run is not None and not caller.may_send(run):
            reason = "is bound to other runs" if caller.runs else "is not bound to this run, and another key is"
            raise RunNotAllowed(
                f"this key {reason}: send another run, or see runs= in docs/how-to/security.md", field="run"
            )
        client = None if run else _client_of(scope)
        context = RunContext(run, step, kl, ids, caller.owner, bool(caller.runs), tasks, client)
    scope["state"]["run_context"] = context
    return context


def with_tasks(context: RunContext, named: Sequence[str | None], of_request: str | None, n_samples: int) -> RunContext:
    """Set the tasks of the samples: those that the body names, empty where it names none, otherwise that of the request.

    Trainers send these names for other purposes, so one that cannot be displayed is no error, but no task either.
    """
    named = named or (None,) * n_samples
    tasks = [task if task and is_task_name(task) else of_request for task in named]
    return context._replace(tasks=tasks) if any(tasks) else context


def _check_task(task: str | None) -> str | None:
    if task is not None and len(task) > MAX_NAME_CHARS:
        raise InvalidRequest(
            f"task is longer than {MAX_NAME_CHARS} characters", field="task", n=len(task), limit=MAX_NAME_CHARS
        )
    return None if task is None else check_task_name(task)


def _client_of(scope: Scope) -> UnnamedClient:
    """The client of a request without a run. Headers of proxies are not read: any client can write them."""
    address, agent = (
        scope.get("client"),
        next((value for name, value in scope["headers"] if name == b"user-agent"), b""),
    )
    readable = "".join(each if each.isprintable() else "?" for each in agent[:_MAX_AGENT].decode("ascii", "replace"))
    return UnnamedClient(address[0] if address else "local", f"{readable} {scope['path']}")


def query_parameters(query: bytes, known: Collection[str], remark: str) -> dict[str, str]:
    """The parameters of a query by name. Raise `InvalidRequest` for one that is not known, or is given twice."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest("the query of the URL cannot be parsed: percent-encode it", field="query") from None
    if b";" in query:
        raise InvalidRequest(
            "the query of the URL has a semicolon, which some parsers take for a separator: separate parameters with &, and write "
            "%3B for a semicolon in a value",
            field="query",
        )
    if unknown := [(name, value) for name, value in pairs if name not in known]:
        # The message omits a name that may be a key: it must not appear in replies or their logs.
        named = next((name for name, value in unknown if value.strip("=") and _PLAIN_NAME.fullmatch(name)), None)
        meant = [named] if named else [name for name, _ in unknown]
        hints = (hint for name in meant if (hint := did_you_mean(name[:_MAX_SUGGESTED_CHARS], known)))
        key = "" if named else " Send an API key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/"
        raise InvalidRequest(
            f"the URL has an unknown query parameter{f' {named}' if named else ''}{next(hints, '') or ';'} known are "
            f"{', '.join(sorted(known))}{remark}.{key}",
            field="query", n_unknown=len(unknown),
        )  # fmt: skip
    given = dict(pairs)
    if len(given) < len(pairs):
        twice = next(name for name in given if [each for each, _ in pairs].count(name) > 1)
        raise InvalidRequest(
            f"the URL has the query parameter {twice} twice: send it once", field="query", n=len(pairs) - len(given)
        )
    return given


def _header_text(value: bytes | None, name: str) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} is not UTF-8: send it percent-encoded in the URL", field=name) from None


def _parse_digests(listed: str | None) -> tuple[str, ...] | None:
    if listed is None:
        return None
    digests = tuple(
        sorted({each.strip() for each in listed.split(",")})
    )  # an empty one is refused: it would select nothing
    if len(digests) > _MAX_DIGESTS or not all(_DIGEST.fullmatch(each) for each in digests):
        raise InvalidRequest(
            "model_digest must be one to three digests as in replies (sha256: and 64 hexadecimal digits), separated by commas",
            field="model_digest",
        )
    return digests


def _parse_step(step: str | None) -> int | None:
    if not step:
        return None
    if not (step.isascii() and step.isdigit() and len(step) <= _MAX_STEP_DIGITS and int(step) <= MAX_STEP):
        raise InvalidRequest(f"step must be a whole number from 0 to {MAX_STEP}", field="step", limit=MAX_STEP)
    return int(step)
