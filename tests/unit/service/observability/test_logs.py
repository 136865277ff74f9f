"""Log lines of background tasks, and of texts from clients and libraries, which cannot alter the log."""

from __future__ import annotations

import asyncio
import logging

import pytest
import structlog
from structlog.testing import capture_logs

from rewardserve.service.observability import logs


async def end_of(work):
    """What is logged when a task of this work has ended."""
    with capture_logs() as lines:
        task = asyncio.create_task(work, name="canaries")
        task.add_done_callback(logs.log_task_exception)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)  # callbacks come after the end
    return [(line["log_level"], line["event"], line["task"], type(line["exc_info"])) for line in lines]


async def fails():
    raise RuntimeError("can't start new thread")


async def test_a_task_that_ends_with_an_exception_is_logged_while_it_is_referenced():
    assert await end_of(fails()) == [("error", "background_task_failed", "canaries", RuntimeError)]


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_one_that_ends_or_is_cancelled_is_not(seconds):
    assert await end_of(asyncio.sleep(seconds)) == []


NASTY = {
    "escape": "\x1b[2J\x1b]0;owned\x07", "c1": "\x9b31m", "newline": "a\nlevel=error event=forged", "return": "a\rforged",
    "delete": "a\x7f\b\b", "nothing": "a\0b", "bidi": "user\u202egnp.exe\u2066", "separators": "a\u2028b\u2029c\u0085d",
    "no width": "a\u200bb\ufeff", "surrogate": "\ud800",
}  # fmt: skip


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("how", ["value", "list", "nested", "event", "key", "object", "foreign", "error"])
def test_the_text_log_steers_no_terminal_and_forges_no_line(capsys, text, how):
    class Named:
        def __repr__(self):
            return text

    handlers, level = logging.root.handlers, logging.root.level
    try:
        logs.configure("info", "text")
        log = logs.logger("api")
        if how == "foreign":
            logging.getLogger("theirs").error("%s and %r", text, {text: 1})
        elif how == "error":
            try:
                raise (
                    type(f"Bad{text}", (Exception,), {})(text)
                    if "\0" not in text and "\ud800" not in text
                    else ValueError(text)
                )
            except Exception:
                log.error("failed", exc_info=True)
        elif how == "event":
            log.info(text)
        else:
            value = {"value": text, "list": ["x", text], "nested": {"a": (text,)}, "object": Named(), "key": 1}[how]
            log.info("request", **{text if how == "key" else "run": value})
        output = capsys.readouterr().err
    finally:
        structlog.reset_defaults()
        logging.root.handlers, logging.root.level = handlers, level
    assert output.endswith("\n")
    assert output[:-1].isprintable(), output
    assert len(output) > 20
