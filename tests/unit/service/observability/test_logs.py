"""What is logged of a task that nobody waits for."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.observability import logs


async def end_of(work):
    """What is logged when a task of this work has ended."""
    with capture_logs() as lines:
        task = asyncio.create_task(work, name="canaries")
        task.add_done_callback(logs.tell_of_death)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)  # callbacks come after the end
    return [(line["log_level"], line["event"], line["task"], type(line["exc_info"])) for line in lines]


async def fails():
    raise RuntimeError("can't start new thread")


async def test_a_task_that_dies_of_an_exception_is_told_while_it_is_remembered():
    assert await end_of(fails()) == [("error", "task_died", "canaries", RuntimeError)]


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_one_that_ends_or_is_cancelled_is_not(seconds):
    assert await end_of(asyncio.sleep(seconds)) == []
