"""`reward-score IN.jsonl OUT.jsonl`: score a file with the rooms of the server, and without HTTP.

One line in, one line out, in the same order; a line that cannot be scored gets an error in its place. OUT
is only ever appended to, so what was interrupted can be continued: complete lines are kept, a half-written
last one is cut off. Every line says which model and which settings made it, and a file is never continued
with others.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_settings import SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.backends import LoadedModel, LoadError
from model.calibration import CalibrationError
from model.reward import Pipeline, PipelineError
from model.traits import LexiconError
from service import engine as engines
from service.admission import Admission
from service.api import body
from service.api.replies import result
from service.api.schemas import SampleIn, to_sample
from service.api.stage import Details
from service.clock import MonotonicClock
from service.errors import Failure, RequestRefused
from service.observability import logs
from service.observability.metrics import Metrics
from service.scoring import Scored, Scoring
from service.settings import USAGE_ERROR, BulkSettings, complain, from_command_line

PROGRAM = "reward-score"
FAILED = 1
INTERRUPTED = 130
_WINDOW = 512
"""Lines that are sorted by length together."""
_LINE_START = b'{"id":'
_WINDOWS_IN_FLIGHT = 2
"""While one is written and the next is encoded, the scorer has work."""


class NotContinuable(Exception):
    """OUT is there and cannot be continued with this model or this input."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Who made a line: equal marks mean that two scores may stand in one file."""

    model: str
    contract: str
    calibration: str | None
    pipeline: str

    @classmethod
    def of(cls, loaded: LoadedModel, pipeline: Pipeline) -> Marks:
        """The marks of a loaded model and its settings."""
        calibration = loaded.calibration.digest if loaded.calibration else None
        return cls(loaded.identity.name, loaded.contract.digest, calibration, pipeline.digest)

    def as_json(self) -> dict[str, Any]:
        """The field `scored_by` of a line."""
        return {
            "model": self.model,
            "contract": self.contract,
            "calibration": self.calibration,
            "pipeline": self.pipeline,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input: a sample with its id, or why it is none."""

    sample_id: str
    sample: SampleIn | None
    failure: Failure | None = None


def main() -> None:
    """The console script."""
    settings = from_command_line(BulkSettings, PROGRAM, sys.argv[1:])
    code = run(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a forward that is running cannot be interrupted, and Python would wait for its thread


def run(settings: BulkSettings) -> int:
    """Score the file. The exit code."""
    logs.configure(settings.log_level, settings.log_format)
    try:
        with settings.source.open("rb") as source:
            n_lines = sum(1 for _ in source)
        loaded, pipeline = engines.load_model(settings)
        if settings.deterministic:
            engines.measure_noise(settings, loaded)
        marks = Marks.of(loaded, pipeline)
        n_done = prepare(settings.target, marks, settings.source)
        asyncio.run(_score_file(settings, loaded, pipeline, n_done, n_lines))
    except (LoadError, PipelineError, CalibrationError) as error:
        complain(PROGRAM, ["this model cannot be served.", *str(error).splitlines()])
        return FAILED
    except RequestRefused as error:
        complain(PROGRAM, [error.message, f"Run the same command again to continue {settings.target}."])
        return FAILED
    except (NotContinuable, SettingsError, LexiconError) as error:
        complain(PROGRAM, [str(error)])
        return USAGE_ERROR
    except OSError as error:
        complain(PROGRAM, [f"{error.filename}: {error.strerror}"])
        return USAGE_ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, [f"interrupted. Run the same command again to continue {settings.target}."])
        return INTERRUPTED
    return 0


# -- the two files ----------------------------------------------------------------------------------------------


def prepare(target: Path, marks: Marks, source: Path) -> int:
    """Cut off a half-written last line and count the complete ones. Raise `NotContinuable`, touching nothing."""
    if not target.exists():
        return 0
    n_done, end, last, half = 0, 0, b"", b""
    with target.open("rb") as out:
        for line in out:
            if line.endswith(b"\n"):
                n_done, end, last = n_done + 1, end + len(line), line
            else:
                half = line
    if n_done:
        _check_continuable(target, last, _nth(source, n_done - 1), marks)
    elif not half.startswith(_LINE_START[: len(half)]):
        raise NotContinuable(f"{target} was not written by {PROGRAM}; name another file.")
    os.truncate(target, end)
    return n_done


def _check_continuable(target: Path, last: bytes, asked: Line | None, marks: Marks) -> None:
    try:
        done = json.loads(last)
        made_by, sample_id = done["scored_by"], done["id"]
    except (ValueError, KeyError, TypeError):
        raise NotContinuable(f"{target} was not written by {PROGRAM}; name another file.") from None
    if made_by != marks.as_json():
        raise NotContinuable(
            f"{target} was scored by another model or other settings; name another file, or delete it."
        )
    if asked is None or asked.sample_id != sample_id:
        raise NotContinuable(f"{target} belongs to another input: its last line is about another sample.")


def _nth(source: Path, n: int) -> Line | None:
    with source.open("rb") as lines:
        return next((read_line(n, text) for text in islice(lines, n, n + 1)), None)


def read_line(number: int, text: bytes) -> Line:
    """One line of input; its default id is its number, counted from 0."""
    try:
        sample = body.check(body.parse(text), SampleIn)
    except RequestRefused as error:
        return Line(str(number), None, Failure.of(error))
    return Line(str(number) if sample.id is None else sample.id, sample)


def _windows(source: BinaryIO, n_done: int) -> Iterator[list[Line]]:
    numbered = islice(enumerate(source), n_done, None)
    while window := [read_line(number, text) for number, text in islice(numbered, _WINDOW)]:
        yield window


# -- scoring ----------------------------------------------------------------------------------------------------


async def _score_file(
    settings: BulkSettings, loaded: LoadedModel, pipeline: Pipeline, n_done: int, n_lines: int
) -> None:
    clock = MonotonicClock()
    n_in_flight = _WINDOW * _WINDOWS_IN_FLIGHT
    admission = Admission(n_in_flight, n_in_flight * loaded.identity.max_tokens, clock)
    commons = engines.build_commons(settings, admission, Metrics(), clock)
    engine = engines.build_engine(commons, engines.Prepared(loaded, pipeline), epoch=1)
    main_task = asyncio.current_task()
    if main_task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
    details = Details.of(loaded, pipeline)
    scored_by = Marks.of(loaded, pipeline).as_json()
    with settings.source.open("rb") as source, settings.target.open("ab") as out, _progress() as progress:
        bar = progress.add_task("scoring", total=n_lines, completed=n_done)
        async for lines, results in _in_order(engine.scoring, _windows(source, n_done)):
            for line, scored in zip(lines, results, strict=True):
                row = {**result(line.sample_id, scored, details), "scored_by": scored_by}
                out.write(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n")
            out.flush()
            progress.advance(bar, len(lines))
    await engine.stop()
    await commons.close()


async def _in_order(scoring: Scoring, windows: Iterator[list[Line]]) -> Any:
    """Windows with their results, in order, with the next one already on its way."""
    running: deque[tuple[list[Line], asyncio.Task[list[Scored]]]] = deque()
    try:
        while True:
            while len(running) < _WINDOWS_IN_FLIGHT and (lines := next(windows, None)):
                running.append((lines, asyncio.create_task(_score_window(scoring, lines))))
            if not running:
                return
            lines, task = running.popleft()
            yield lines, await task
    finally:
        for _, task in running:
            task.cancel()


async def _score_window(scoring: Scoring, lines: list[Line]) -> list[Scored]:
    asked = [to_sample(line.sample) for line in lines if line.sample is not None]
    scored = iter(await scoring.score(asked, math.inf) if asked else [])
    return [Scored(failure=line.failure) if line.sample is None else next(scored) for line in lines]


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    main()
