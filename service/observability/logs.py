"""Structured logs on stderr, as JSON or as text, an event a line. Never a conversation, never a key.

An exception of a library may quote its input, so only its type and the places in the code are logged. The
logs of uvicorn, asyncio and the libraries follow the same rule.
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
    """Set up structlog, and the standard library's logging for the libraries, once per process."""
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
    # Libraries log much below warnings that does not concern this server.
    logging.root.setLevel(max(number, logging.WARNING))


_console = structlog.dev.ConsoleRenderer(colors=False)


def _as_text(logger: Any, method: str, event: EventDict) -> str:
    """Render one line for a terminal, with printable characters only: names, paths and errors may come from clients."""
    return printable(str(_console(logger, method, event)))


class _SafeStream:
    """Stream that drops a line that cannot be written, as on a full disk, so that no request fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the text, or drop it."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, or drop the text."""
        with suppress(OSError):
            self._stream.flush()


def logger(name: str) -> Logger:
    """A logger whose lines have the field `component`."""
    bound: Logger = structlog.get_logger(component=name)
    return bound


def log_task_exception(task: asyncio.Task[Any]) -> None:
    """Done callback for tasks without an awaiter: asyncio logs their exception only when they are garbage collected."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger("tasks").error("background_task_failed", task=task.get_name(), exc_info=error)


def strip_exception_messages(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the type of the exception and the frames of its traceback."""
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
