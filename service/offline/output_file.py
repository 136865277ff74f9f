"""Write results to a file that can be continued after an interruption, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardserve.model.backends import LoadedModel
from rewardserve.model.reward import Pipeline
from rewardserve.service.offline.input_file import InputDigest, NotContinuable
from rewardserve.service.settings import ModelSettings

_PROGRAM = "rewardserve score"
_LINE_START = b'{"id":'


@dataclass(frozen=True, slots=True)
class Marks:
    """Origin of a line: lines with equal marks may be in one file.

    `settings` is a digest of the settings that change a score outside contract and pipeline: limits, numerics, a broken contract.
    """

    model: str
    contract: str
    calibration: str | None
    pipeline: str
    settings: str

    @classmethod
    def of(cls, loaded: LoadedModel, pipeline: Pipeline, settings: ModelSettings) -> Marks:
        """The marks of a loaded model and its settings."""
        identity = loaded.identity
        others = [
            identity.backend, identity.engine, identity.dtype, identity.device.partition(":")[0], identity.matmul_precision,
            identity.max_tokens, settings.truncation, settings.deterministic, [str(each) for each in loaded.report.breaches],
        ]  # fmt: skip
        digest = "sha256:" + hashlib.sha256(json.dumps(others).encode()).hexdigest()
        return cls(identity.name, loaded.contract.digest, loaded.calibration_digest, pipeline.digest, digest)

    def as_json(self) -> dict[str, Any]:
        """The field `scored_by` of a line."""
        return {
            "model": self.model,
            "contract": self.contract,
            "calibration": self.calibration,
            "pipeline": self.pipeline,
            "settings": self.settings,
        }


class Output:
    """OUTPUT, locked against a second process as long as this object lives, however the process ends; incomplete lines are removed.

    `n_done` lines existed, `failed` of them without a score.
    """

    def __init__(self, target: Path) -> None:
        """Lock OUTPUT. Raise `NotContinuable` where it is no regular file or in use, `OSError` where it cannot be opened."""
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
                f"{target} is being written by another {_PROGRAM}; wait for it, or name another file."
            ) from None

    def resume(self, marks: Marks, source: Path) -> InputDigest:
        """Count the complete lines and remove an incomplete last one. Return the digest of the input of these lines.

        Raise `NotContinuable`, with the file unchanged.
        """
        end, half = 0, b""
        digest, last = InputDigest(), None
        failed: Counter[str] = Counter()
        with self._target.open("rb") as out, source.open("rb") as lines:
            for line in out:
                if not line.endswith(b"\n"):
                    half = line
                    break
                last = _written(self._target, digest.n_lines + 1, line)
                text = next(lines, None)
                if text is None:
                    raise NotContinuable(
                        f"{self._target} belongs to another input: {source} has {digest.n_lines} lines, but more "
                        "were scored: lines were removed. Name another file for the results, or delete this one."
                    )
                digest.add(text)
                if last["input_digest"] != digest.hex:
                    raise NotContinuable(
                        f"{self._target} belongs to another input: line {digest.n_lines} of {source} is not the one that was "
                        "scored. Name another file, or delete it."
                    )
                failed.update([last["error"]["code"]] if last["error"] else [])
                end += len(line)
        if last is not None:
            _check_marks(self._target, last["scored_by"], marks)
        elif not half.startswith(_LINE_START[: len(half)]):
            raise NotContinuable(f"{self._target} was not written by {_PROGRAM}; name another file.")
        os.ftruncate(self._descriptor, end)
        self.n_done, self._end, self.failed = digest.n_lines, end, failed
        return digest

    def append(self, lines: bytes) -> None:
        """Write complete lines. Raise `OSError`; then no incomplete line is left."""
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
        """Sync all lines to the disk, and release the lock."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)


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
            f"line {number} of {target} was not written by {_PROGRAM}, or was changed: it needs an id, and a reward or an "
            "error. Name another file, or delete it."
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
