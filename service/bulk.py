"""`reward-score SOURCE TARGET`: score a file with the rooms of the server, and without HTTP.

One line in, one line out, in the same order; a line that cannot be scored gets an error in its place. TARGET
is only ever appended to, so what was interrupted can be continued: complete lines are kept, a half-written
last one is cut off. Every line says which model and which settings made it, and has a digest of SOURCE up to its own line: a file
is never continued with another model, with other settings, or where a line of SOURCE that it has a result of is another one or is
gone. What comes after these may change, so lines can be appended to SOURCE. One process at a time writes TARGET.

Exit codes: 0 every line has a score, 1 no model, 2 wrong settings or files, 3 some lines have an error, 130 interrupted.
"""

# ruff: noqa: E402
from __future__ import annotations

from rewardserve.model.resource_errors import explain_shortage, in_words

PROGRAM = "reward-score"
explain_shortage(PROGRAM)

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import signal
import stat
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_settings import SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardserve.model.backends import LoadedModel, LoadError
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.reward import Pipeline, PipelineError
from rewardserve.model.text.text_files import wide_encoding
from rewardserve.model.traits import LexiconError
from rewardserve.service.admission import Admission
from rewardserve.service.api import body
from rewardserve.service.api.replies import result
from rewardserve.service.api.schemas import SampleIn, to_sample
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import Failure, RequestRefused
from rewardserve.service.models import runtime as engines
from rewardserve.service.models.active_models import Details
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.scoring import Scored, Scoring
from rewardserve.service.settings import (
    USAGE_ERROR,
    BulkSettings,
    ModelSettings,
    complain,
    complain_of_model,
    from_command_line,
)

FAILED = 1
SOME_FAILED = 3
INTERRUPTED = 130
_WINDOW = 512
"""Lines that are sorted by length together."""
_STANDARD = "-"
"""What programs call standard input and output."""

_GZIP_MAGIC = b"\x1f\x8b"
_LINE_START = b'{"id":'
_WINDOWS_IN_FLIGHT = 2
"""While one is written and the next is encoded, the scorer has work."""


class NotContinuable(Exception):
    """TARGET is there and cannot be continued with this model or this input."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Who made a line: equal marks mean that two scores may stand in one file.

    `settings` is a digest of what changes a score and is no part of contract or pipeline: limits, numerics, a broken contract.
    """

    model: str
    contract: str
    calibration: str | None
    pipeline: str
    settings: str

    @classmethod
    def of(cls, loaded: LoadedModel, pipeline: Pipeline, settings: ModelSettings) -> Marks:
        """The marks of a loaded model and its settings."""
        calibration = loaded.calibration.digest if loaded.calibration else None
        identity = loaded.identity
        others = [
            identity.backend, identity.engine, identity.dtype, identity.device.partition(":")[0], identity.matmul_precision,
            identity.max_tokens, settings.truncation, settings.deterministic, [str(each) for each in loaded.report.breaches],
        ]  # fmt: skip
        digest = "sha256:" + hashlib.sha256(json.dumps(others).encode()).hexdigest()
        return cls(identity.name, loaded.contract.digest, calibration, pipeline.digest, digest)

    def as_json(self) -> dict[str, Any]:
        """The field `scored_by` of a line."""
        return {
            "model": self.model,
            "contract": self.contract,
            "calibration": self.calibration,
            "pipeline": self.pipeline,
            "settings": self.settings,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input: a sample with its id, or why it is none. `input_digest`: of all lines up to this one."""

    sample_id: str
    sample: SampleIn | None
    failure: Failure | None = None
    input_digest: str = ""


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
        n_lines = count_lines(settings.source, settings.target)
        out = Output(settings.target)
        with contextlib.closing(out):
            loaded, pipeline = engines.load_model(settings)
            if settings.deterministic:
                engines.measure_noise(settings, loaded)
            out.resume(Marks.of(loaded, pipeline, settings), settings.source)
            asyncio.run(_score_file(settings, loaded, pipeline, out, n_lines))
        say_summary(out)
        return SOME_FAILED if out.failed else 0
    except (LoadError, PipelineError, CalibrationError) as error:
        complain_of_model(PROGRAM, error)
        return FAILED
    except RequestRefused as error:
        complain(PROGRAM, [error.message, f"Run the same command again to continue {settings.target}."])
        return FAILED
    except (NotContinuable, SettingsError, LexiconError) as error:
        complain(PROGRAM, [str(error)])
        return USAGE_ERROR
    except OSError as error:
        if error.filename is None:
            complain(PROGRAM, [f"{in_words(error) or error.strerror}."])
            return FAILED
        again = f" Complete lines are kept: run the same command again to continue {settings.target}."
        complain(
            PROGRAM, [f"{error.filename}: {error.strerror}." + again * (error.errno in (errno.ENOSPC, errno.EDQUOT))]
        )
        return USAGE_ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, [f"interrupted. Run the same command again to continue {settings.target}."])
        return INTERRUPTED


def say_summary(out: Output) -> None:
    """How many lines have a score, and what became of the others."""
    n_failed = out.failed.total()
    reasons = ", ".join(f"{code} {n}" for code, n in sorted(out.failed.items()))
    complain(
        PROGRAM,
        [
            f"{out.n_done} lines: {out.n_done - n_failed} scored, {n_failed} without a score"
            + f" ({reasons})" * bool(reasons)
        ],
    )


def count_lines(source: Path, target: Path) -> int:
    """The lines of SOURCE. Raise `NotContinuable` where it is no text that can be read twice, `OSError` where it is not there."""
    for argument, path in (("SOURCE", source), ("TARGET", target)):
        if str(path) == _STANDARD:
            raise NotContinuable(
                f"{argument} is -, and standard input and output cannot be read twice, as resuming needs: name a file."
            )
    if not stat.S_ISREG(source.stat().st_mode):
        raise NotContinuable(f"{source} is no regular file, and SOURCE is read twice: write it to a file first.")
    if target.exists() and source.samefile(target):
        raise NotContinuable(f"{source} is both SOURCE and TARGET; name another file for the results.")
    with source.open("rb") as lines:
        start = lines.peek(4)
        if start.startswith(_GZIP_MAGIC):
            raise NotContinuable(f"{source} is gzipped; decompress it first.")
        if (name := wide_encoding(start)) is not None:
            raise NotContinuable(f"{source} is {name}; convert it to UTF-8 (iconv -f {name.lower()} -t utf-8).")
        return sum(1 for _ in lines)


# -- the two files ----------------------------------------------------------------------------------------------


class Output:
    """TARGET: locked against a second process, as long as this object lives, whatever ends the process; only complete lines stay.

    `n_done` lines were there, `failed` of them without a score.
    """

    def __init__(self, target: Path) -> None:
        """Raise `NotContinuable` for what is no file of ours alone, `OSError` where it cannot be opened."""
        self._target = target
        # Not blocking: a pipe has no reader to wait for.
        self._descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        self.n_done = self._end = 0
        self.failed: Counter[str] = Counter()
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise NotContinuable(f"{target} is no regular file; name another one.")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotContinuable(
                f"{target} is being written by another {PROGRAM}; wait for it, or name another file."
            ) from None

    def resume(self, marks: Marks, source: Path) -> None:
        """Count the complete lines and cut off a half-written last one. Raise `NotContinuable`, touching nothing."""
        n_done, end, half = 0, 0, b""
        digest, last = InputDigest(), None
        failed: Counter[str] = Counter()
        with self._target.open("rb") as out, source.open("rb") as lines:
            for line in out:
                if not line.endswith(b"\n"):
                    half = line
                    break
                last = _written(self._target, n_done + 1, line)
                text = next(lines, None)
                if text is None:
                    raise NotContinuable(
                        f"{self._target} belongs to another input: {source} has {n_done} lines, of which more were scored: lines "
                        "were taken away. Name another file, or delete it."
                    )
                digest.add(text)
                if last["input_digest"] != digest.hex:
                    raise NotContinuable(
                        f"{self._target} belongs to another input: line {n_done + 1} of {source} is not the one that was scored. "
                        "Name another file, or delete it."
                    )
                failed.update([last["error"]["code"]] if last["error"] else [])
                n_done, end = n_done + 1, end + len(line)
        if last is not None:
            _check_marks(self._target, last["scored_by"], marks)
        elif not half.startswith(_LINE_START[: len(half)]):
            raise NotContinuable(f"{self._target} was not written by {PROGRAM}; name another file.")
        os.ftruncate(self._descriptor, end)
        self.n_done, self._end, self.failed = n_done, end, failed

    def append(self, lines: bytes) -> None:
        """Write complete lines. Raise `OSError`; then none of what failed is left half there."""
        os.lseek(self._descriptor, self._end, os.SEEK_SET)
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            whole = lines[: len(lines) - len(rest)].rpartition(b"\n")
            self._end += len(whole[0]) + len(whole[1])
            os.ftruncate(self._descriptor, self._end)
            raise OSError(error.errno, error.strerror, str(self._target)) from None
        self._end += len(lines)

    def close(self) -> None:
        """Let go of the lock, with all lines on the disk."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)


class InputDigest:
    """SHA-256 of the lines of SOURCE up to here, without their line endings."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, line: bytes) -> None:
        """One more line."""
        self._sha256.update(line.rstrip(b"\r\n") + b"\n")

    @property
    def hex(self) -> str:
        """As a line of TARGET has it."""
        return self._sha256.hexdigest()


def _written(target: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        done: dict[str, Any] = json.loads(line)
        reward, error = done["reward"], done["error"]
        is_whole = (
            isinstance(done["id"], str)
            and isinstance(done["scored_by"], dict)
            and isinstance(done["input_digest"], str)
        )
        is_scored = error is None and type(reward) in (int, float) and math.isfinite(reward)
        is_failed = reward is None and isinstance(error, dict) and isinstance(error["code"], str)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        is_whole = is_scored = is_failed = False
    if not (is_whole and (is_scored or is_failed)):
        raise NotContinuable(
            f"line {number} of {target} was not written by {PROGRAM}, or was changed: it has no id, reward or error of ours. "
            "Name another file, or delete it."
        )
    return done


def _check_marks(target: Path, made_by: Any, marks: Marks) -> None:
    now = marks.as_json()
    if made_by == now:
        return
    changed = sorted(name for name in now if not isinstance(made_by, dict) or made_by.get(name) != now[name])
    raise NotContinuable(
        f"{target} was scored by another model or other settings ({', '.join(changed)}); name another file, or delete it."
    )


def read_line(number: int, text: bytes) -> Line:
    """One line of input; its default id is its number, counted from 0."""
    try:
        sample = body.check(body.parse(text), SampleIn)
    except RequestRefused as error:
        return Line(str(number), None, Failure.of(error))
    return Line(str(number) if sample.id is None else sample.id, sample)


def _windows(source: BinaryIO, n_done: int) -> Iterator[list[Line]]:
    digest = InputDigest()
    for text in islice(source, n_done):
        digest.add(text)
    numbered = enumerate(source, n_done)
    while window := [_digested(read_line(number, text), text, digest) for number, text in islice(numbered, _WINDOW)]:
        yield window


def _digested(line: Line, text: bytes, digest: InputDigest) -> Line:
    digest.add(text)
    return replace(line, input_digest=digest.hex)


# -- scoring ----------------------------------------------------------------------------------------------------


async def _score_file(
    settings: BulkSettings, loaded: LoadedModel, pipeline: Pipeline, out: Output, n_lines: int
) -> None:
    clock = MonotonicClock()
    n_in_flight = _WINDOW * _WINDOWS_IN_FLIGHT
    admission = Admission(n_in_flight, n_in_flight * loaded.identity.max_tokens, clock)
    commons = engines.build_commons(settings, admission, Metrics(), clock)
    engine = engines.build_engine(commons, engines.Prepared(loaded, pipeline), version=1)
    main_task = asyncio.current_task()
    if main_task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
    details = Details.of(loaded, pipeline)
    scored_by = Marks.of(loaded, pipeline, settings).as_json()
    with settings.source.open("rb") as source, _progress() as progress:
        bar = progress.add_task("scoring", total=n_lines, completed=out.n_done)
        async for lines, results in _in_order(engine.scoring, _windows(source, out.n_done)):
            rows = [
                {**result(line.sample_id, scored, details), "input_digest": line.input_digest, "scored_by": scored_by}
                for line, scored in zip(lines, results, strict=True)
            ]
            texts = [json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
            out.append("".join(texts).encode())
            out.n_done += len(lines)
            out.failed.update(scored.failure.code for scored in results if scored.failure is not None)
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
