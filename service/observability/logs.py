"""Structured logs on stderr, as JSON or as text, an event a line. Never a conversation, never a key.

An exception of others may quote what it choked on, so of those only the type and the places in the code
are written. What uvicorn, asyncio and the libraries log passes through the same rule.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from rewardserve.model.text.printable import printable

LogFormat = Literal["json", "text"]
Logger = FilteringBoundLogger


def configure(level: str, fmt: LogFormat) -> None:
    """Set up structlog, and the standard library's logging for everybody else, once a process."""
    number = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        strip_exception_messages,
    ]
    renderer: Processor = structlog.processors.JSONRenderer() if fmt == "json" else _as_text
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _SafeStream(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    own = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(own)
    logging.root.handlers = [handler]
    # Libraries have much to say and little of it is ours; their warnings are worth a line.
    logging.root.setLevel(max(number, logging.WARNING))


_console = structlog.dev.ConsoleRenderer(colors=False)


def _as_text(logger: Any, method: str, event: EventDict) -> str:
    """One line for a terminal. Names, paths and errors in it may come from anywhere and steer nothing."""
    return printable(str(_console(logger, method, event)))


class _SafeStream:
    """A stream that may be full or gone: a line that cannot be written is no reason to fail a request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Or not."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Or not."""
        with suppress(OSError):
            self._stream.flush()


def logger(name: str) -> Logger:
    """A logger whose lines carry `component`."""
    bound: Logger = structlog.get_logger(component=name)
    return bound


def log_task_exception(task: asyncio.Task[Any]) -> None:
    """A done callback for tasks that nobody waits for: asyncio speaks of what ended them only when they are forgotten."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger("tasks").error("background_task_failed", task=task.get_name(), exc_info=error)


def strip_exception_messages(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the type of the exception and the places it came through."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["places"] = places(error)
    return event


def places(error: BaseException) -> list[str]:
    """`file:line function` for every frame, innermost last. No source lines, no values, no message."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
