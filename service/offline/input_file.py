"""Read samples from a file, one per line, with a digest of the lines so far."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rewardserve.model.text.text_files import wide_encoding
from rewardserve.service.api import body
from rewardserve.service.api.requests import SampleIn
from rewardserve.service.api.validation import NO_SUCH_FIELD, check
from rewardserve.service.errors import Failure, RequestRefused

WINDOW = 512
"""Lines that are sorted by length in one window."""
_STANDARD = "-"
"""The usual file name for standard input and output."""
_GZIP_MAGIC = b"\x1f\x8b"


class NotContinuable(Exception):
    """OUTPUT exists and cannot be continued with this model or this input."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input: a sample with its id, or the error of the line. `input_digest`: of all lines up to this one."""

    sample_id: str
    sample: SampleIn | None
    failure: Failure | None = None
    input_digest: str = ""


class InputDigest:
    """SHA-256 of the first `n_lines` lines of INPUT, without their line endings; in the file they have `n_bytes`."""

    def __init__(self) -> None:
        self.n_lines = self.n_bytes = 0
        self._sha256 = hashlib.sha256()

    def add(self, line: bytes) -> None:
        """Add the next line."""
        self.n_lines += 1
        self.n_bytes += len(line)
        self._sha256.update(line.rstrip(b"\r\n") + b"\n")

    @property
    def hex(self) -> str:
        """The digest as OUTPUT has it."""
        return self._sha256.hexdigest()


def count_lines(source: Path, target: Path) -> int:
    """Read the lines of INPUT. Raise `NotContinuable` where it is not JSONL or read only once, `OSError` where it is missing."""
    for argument, path in (("INPUT", source), ("OUTPUT", target)):
        if str(path) == _STANDARD:
            raise NotContinuable(
                f"{argument} is -, and standard input and output cannot be read twice, as resuming needs: name a file."
            )
    if not stat.S_ISREG(source.stat().st_mode):
        raise NotContinuable(f"{source} is no regular file, and INPUT is read twice: write it to a file first.")
    if target.exists() and source.samefile(target):
        raise NotContinuable(f"{source} is both INPUT and OUTPUT; name another file for the results.")
    with source.open("rb") as lines:
        check_encoding(source, lines.peek(4))
        n_lines, has_object = 0, False
        for n_lines, text in enumerate(lines, 1):
            row = None if has_object else _object_of(text)
            if row is not None and n_lines == 1 and {"chosen", "rejected"} <= row.keys():
                raise NotContinuable(
                    f"{source} has preference pairs (chosen, rejected), not samples: rewardserve compare MODEL_A MODEL_B "
                    f"{source} scores both sides. A sample has a prompt and a response."
                )
            has_object = has_object or row is not None
    if not n_lines:
        raise NotContinuable(f"{source} is empty: it has no sample to score.")
    if not has_object:
        raise NotContinuable(
            f"{source} is not JSONL: none of its {n_lines:,} lines is a JSON object. Write one sample a line, such as "
            '{"prompt": "...", "response": "..."}.'
        )
    return n_lines


def check_encoding(source: Path, start: bytes) -> None:
    """Raise `NotContinuable` if a file that begins so is not UTF-8."""
    if start.startswith(_GZIP_MAGIC):
        raise NotContinuable(f"{source} is gzipped; decompress it first.")
    if (name := wide_encoding(start)) is not None:
        raise NotContinuable(f"{source} is {name}; convert it to UTF-8 (iconv -f {name.lower()} -t utf-8).")


def _object_of(text: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it has none."""
    try:
        row = body.parse(text)
    except RequestRefused:
        return None
    return row if isinstance(row, dict) else None


def read_line(number: int, text: bytes) -> Line:
    """Parse one line of input; its default id is its number, counted from 0. An error has that of an editor, from 1."""
    try:
        sample = check(body.parse(text.rstrip(b"\r\n")), SampleIn, NO_SUCH_FIELD)
    except RequestRefused as error:
        failure = Failure.of(error)
        message = f"line {number + 1}: {failure.message.replace('the body', 'the line')}"
        return Line(
            str(number), None, replace(failure, message=message, details={**failure.details, "line": number + 1})
        )
    return Line(str(number) if sample.id is None else sample.id, sample)


def windows(source: BinaryIO, digest: InputDigest) -> Iterator[list[Line]]:
    """Yield the lines after those in the digest, `WINDOW` at a time. They are added to it."""
    source.seek(digest.n_bytes)
    numbered = enumerate(source, digest.n_lines)
    while window := [_digested(read_line(number, text), text, digest) for number, text in islice(numbered, WINDOW)]:
        yield window


def _digested(line: Line, text: bytes, digest: InputDigest) -> Line:
    digest.add(text)
    return replace(line, input_digest=digest.hex)
