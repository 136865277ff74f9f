"""Score samples from a file with a loaded model, in windows: the next is encoded while one is computed."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardserve.model.backends import LoadedModel
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.reward import Pipeline
from rewardserve.service.admission import Admission
from rewardserve.service.api.replies import result_fields
from rewardserve.service.api.requests import MAX_LOOKAHEAD, to_sample
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.models import loading
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.runtime import ResultFields, start_runtime
from rewardserve.service.models.shared_resources import create_shared_resources
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.offline.input_file import WINDOW, InputDigest, Line, windows
from rewardserve.service.offline.output_file import Marks, Output
from rewardserve.service.scoring import SampleResult, Scoring
from rewardserve.service.settings import ModelSettings, ScoreSettings

T = TypeVar("T")

_WINDOWS_IN_FLIGHT = 2
"""Windows in progress: while one is written and the next is encoded, the scorer computes another."""


async def score_file(
    settings: ScoreSettings, loaded: LoadedModel, pipeline: Pipeline, out: Output, digest: InputDigest, n_lines: int
) -> None:
    """Append a result for every line of INPUT after those in the digest. Raise `OSError`, `RequestRefused` or `CancelledError`."""
    main_task = asyncio.current_task()
    if main_task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
    details = ResultFields.of(loaded, pipeline)
    scored_by = Marks.of(loaded, pipeline, settings).as_json()
    async with open_scoring(settings, loaded, pipeline) as scoring:

        async def score(lines: list[Line]) -> list[SampleResult]:
            return await _score_lines(scoring, lines)

        with settings.input.open("rb") as source, progress_bar() as progress:
            bar = progress.add_task("scoring", total=n_lines, completed=out.n_done)
            async for lines, results in _in_order(score, windows(source, digest)):
                rows = [
                    {
                        **result_fields(line.sample_id, scored, details),
                        "input_digest": line.input_digest,
                        "scored_by": scored_by,
                    }
                    for line, scored in zip(lines, results, strict=True)
                ]
                texts = [json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
                out.append("".join(texts).encode())
                out.n_done += len(lines)
                out.failed.update(scored.failure.code for scored in results if scored.failure is not None)
                progress.advance(bar, len(lines))


def load_model(settings: ModelSettings) -> tuple[LoadedModel, Pipeline]:
    """Load the model and its reward pipeline, and measure the noise where scores must not depend on the batch.

    Raise `LoadError`, `PipelineError` or `CalibrationError`.
    """
    loaded, pipeline = loading.load_model(settings)
    if settings.deterministic:
        loading.measure_noise(settings, loaded)
    return loaded, pipeline


@asynccontextmanager
async def open_scoring(settings: ModelSettings, loaded: LoadedModel, pipeline: Pipeline) -> AsyncIterator[Scoring]:
    """Run a loaded model without HTTP. It is stopped after a block without an exception; otherwise the process is about to end."""
    clock = MonotonicClock()
    n_in_flight = WINDOW * _WINDOWS_IN_FLIGHT * (1 + MAX_LOOKAHEAD)
    admission = Admission(n_in_flight, n_in_flight * loaded.identity.max_tokens, clock)
    resources = create_shared_resources(settings, admission, Metrics(), clock)
    source = Source(settings.model, settings.ensemble)
    runtime = start_runtime(resources, loading.PreparedModel(loaded, pipeline), 1, source)
    yield runtime.scoring
    await runtime.stop()
    await resources.close()


async def score_windows(scoring: Scoring, samples: Sequence[Sample | SampleError]) -> AsyncIterator[list[SampleResult]]:
    """Score samples in order, and yield the results of each window."""

    async def score(window: list[Sample | SampleError]) -> list[SampleResult]:
        return await scoring.score(window, math.inf)

    cuts = (list(samples[at : at + WINDOW]) for at in range(0, len(samples), WINDOW))
    async for _, results in _in_order(score, cuts):
        yield results


async def _in_order(
    score: Callable[[list[T]], Coroutine[Any, Any, list[SampleResult]]], cuts: Iterator[list[T]]
) -> AsyncIterator[tuple[list[T], list[SampleResult]]]:
    """Yield windows with their results in order, with the next window in progress."""
    running: deque[tuple[list[T], asyncio.Task[list[SampleResult]]]] = deque()
    try:
        while True:
            while len(running) < _WINDOWS_IN_FLIGHT and (window := next(cuts, None)):
                running.append((window, asyncio.create_task(score(window))))
            if not running:
                return
            window, task = running.popleft()
            yield window, await task
    finally:
        for _, task in running:
            task.cancel()


async def _score_lines(scoring: Scoring, lines: list[Line]) -> list[SampleResult]:
    asked = [to_sample(line.sample) for line in lines if line.sample is not None]
    scored = iter(await scoring.score(asked, math.inf) if asked else [])
    return [SampleResult(failure=line.failure) if line.sample is None else next(scored) for line in lines]


def progress_bar() -> Progress:
    """A progress bar on stderr if that is a terminal: a log file would keep its last state."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
