"""CPU time of a request by component: each component of the server is called separately, in this process.

The components are those of a real server on the echo backend. Requests are all new, and as many run at a time as there
would be connections. Times are CPU time of all threads. The time of a component that calls others is given without
theirs.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import uvloop

from benchmarks.traffic import Bodies, Case
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.scorer import TokenBatch
from rewardserve.service import app
from rewardserve.service.api import body
from rewardserve.service.api.replies import score_reply
from rewardserve.service.api.requests import ScoreRequest, to_sample
from rewardserve.service.auth.api_keys import ApiKeys
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.loading import PreparedModel, load_model
from rewardserve.service.models.registry import ModelRegistry, tune_garbage_collector
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.models.shared_resources import create_shared_resources
from rewardserve.service.observability import logs
from rewardserve.service.settings import ServeSettings

T = TypeVar("T")

_REPEATS = 5
_decoder = msgspec.json.Decoder(ScoreRequest)

MEANINGS = {
    "read": "the body -> samples",
    "encode": "samples -> checked ids with an end token",
    "model": "the echo model",
    "batch": "queue, planner, hand-over to the scorer's thread and back",
    "account": "admission, deadline, reward, metrics of the samples",
    "reply": "results -> JSON",
    "around": "request id, key, body limits, disconnect check, metrics and log of the request",
}


def measure(case: Case, tokens: int, at_once: int, n_samples: int) -> dict[str, float]:
    """CPU microseconds a request, by component. Each repetition runs `n_samples` samples, whatever the size of a request."""
    return uvloop.run(_measure(case, tokens, at_once, n_samples))


async def _measure(case: Case, tokens: int, at_once: int, n_samples: int) -> dict[str, float]:
    application, runtime = open_echo_server()
    bodies = Bodies(case, tokens, seed=-1)
    n = max(at_once, n_samples // case.n_samples)

    def fresh(upto: Callable[[bytes], T]) -> Callable[[], list[T]]:
        return lambda: [upto(bodies.next_body()) for _ in range(n)]

    async def whole(content: bytes) -> None:
        await _call(application.app, content)

    async def cost(work: Callable[[T], Awaitable[Any]], inputs: Callable[[], list[T]]) -> float:
        return await _cost(work, inputs, at_once)

    encode, score = runtime.loaded.encode.many, runtime.loaded.scorer.score
    for _ in range(4):  # adapt the batch size, fill the caches
        await _cost(whole, fresh(lambda content: content), at_once)
    total = await cost(whole, fresh(lambda content: content))
    read = await cost(_now(_samples), fresh(lambda content: content))
    encoded = await cost(_now(encode), fresh(_samples))
    model = await cost(
        _now(lambda rows: score(TokenBatch(tuple(rows)))), fresh(lambda content: _rows(encode(_samples(content))))
    )
    batched = await cost(runtime.batcher.score, fresh(lambda content: _rows(encode(_samples(content)))))
    scored = await cost(runtime.scoring.score, fresh(_samples))
    results = [await runtime.scoring.score(_samples(bodies.next_body())) for _ in range(n)]
    ids = [str(i) for i in range(case.n_samples)]
    reply = await cost(_now(lambda found: score_reply(runtime, ids, found)), lambda: results)
    await runtime.stop()
    return {
        "read": read,
        "encode": encoded,
        "model": model,
        "batch": batched - model,
        "account": scored - batched - encoded,
        "reply": reply,
        "around": total - read - scored - reply,
    }


def open_echo_server() -> tuple[app.Application, ModelRuntime]:
    """Start a server with the echo backend in this process. Needs a running event loop."""
    settings = ServeSettings(backend="echo", model="echo", log_level="warning", _cli_parse_args=[])
    logs.configure(settings.log_level, settings.log_format)
    application = app.create_app(settings, ApiKeys())
    loaded, pipeline = load_model(settings)
    resources = create_shared_resources(settings, application.admission, application.metrics, application.clock)
    registry = ModelRegistry(
        resources, application.active_models, PreparedModel(loaded, pipeline), Source(model="echo"), keep=0
    )
    tune_garbage_collector()
    return application, registry.serving


async def _cost(work: Callable[[T], Awaitable[Any]], inputs: Callable[[], list[T]], at_once: int) -> float:
    """CPU microseconds a call, `at_once` calls at a time; the median of several repetitions."""

    async def one_after_the_other(inputs: Iterable[T]) -> None:
        for each in inputs:
            await work(each)

    found = []
    for _ in range(_REPEATS):
        todo = inputs()
        started = time.process_time()
        await asyncio.gather(*(one_after_the_other(todo[i::at_once]) for i in range(at_once)))
        found.append((time.process_time() - started) / len(todo))
    return 1e6 * statistics.median(found)


def _now(work: Callable[[T], Any]) -> Callable[[T], Awaitable[Any]]:
    async def at_once(value: T) -> Any:
        return work(value)

    return at_once


def _samples(content: bytes) -> list[Sample]:
    samples = [to_sample(sample) for sample in body.decode(content, _decoder).samples]
    return [sample for sample in samples if isinstance(sample, Sample)]


def _rows(encoded: Sequence[Encoded | SampleError]) -> list[tuple[int, ...]]:
    return [each.ids for each in encoded if isinstance(each, Encoded)]


async def _call(application: Any, content: bytes) -> None:
    """Send one request through the whole application, without a network. Raise unless its status is 200."""
    length = str(len(content)).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/score", "raw_path": b"/score", "query_string": b"", "root_path": "",
        "scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "state": {},
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", length)],
    }  # fmt: skip
    message: dict[str, Any] | None = {"type": "http.request", "body": content, "more_body": False}
    stays = asyncio.get_running_loop().create_future()

    async def receive() -> dict[str, Any]:
        nonlocal message
        if message is None:
            await stays
        came, message = message, None
        assert came is not None
        return came

    async def send(reply: dict[str, Any]) -> None:
        if reply.get("status", 200) != 200:
            raise RuntimeError(f"the server replied {reply['status']}")

    await application(scope, receive, send)
