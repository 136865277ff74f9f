"""Another checkpoint is told from one that is being written, and from the one that is known."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from contextlib import asynccontextmanager

import pytest

from service.lookout import Lookout, fingerprint, keep_looking

KNOWN, HALF, WHOLE = ((("a", 1, 1, 1),), (("a", 2, 1, 1),), (("a", 2, 9, 2),))


def test_what_is_known_is_no_news():
    lookout = Lookout(KNOWN)
    assert not any(lookout.is_news(KNOWN) for _ in range(3))


def test_what_is_being_written_is_left_alone_until_it_stands_still():
    lookout = Lookout(KNOWN)
    assert [lookout.is_news(seen) for seen in (HALF, WHOLE, WHOLE)] == [False, False, True]


def test_what_was_told_is_not_told_again():
    lookout = Lookout(KNOWN)
    assert [lookout.is_news(seen) for seen in (WHOLE, WHOLE, WHOLE, WHOLE)] == [False, True, False, False]


def test_a_way_back_to_what_was_known_before_is_news():
    lookout = Lookout(KNOWN)
    assert [lookout.is_news(seen) for seen in (WHOLE, WHOLE, KNOWN, KNOWN)] == [False, True, False, True]


def test_a_link_that_leads_nowhere_is_no_news():
    lookout = Lookout(KNOWN)
    assert not any(lookout.is_news(()) for _ in range(3))


def test_a_link_that_is_moved_changes_the_fingerprint(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    link = tmp_path / "current"
    link.symlink_to("one")
    before = fingerprint([link])
    os.replace(_link_to(tmp_path, "two"), link)
    assert fingerprint([link]) not in (before, ())
    assert fingerprint([link]) == fingerprint([tmp_path / "two"])


def test_a_file_that_is_replaced_by_one_of_its_size_changes_the_fingerprint(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    before = fingerprint([tmp_path])
    draft = tmp_path.parent / "draft"
    draft.write_bytes(b"two")
    os.utime(draft, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(draft, file)
    assert fingerprint([tmp_path]) != before


def test_what_is_empty_or_not_there_has_no_fingerprint(tmp_path):
    (tmp_path / "empty").mkdir()
    assert fingerprint([tmp_path / "empty"]) == fingerprint([tmp_path / "nowhere"]) == ()


def test_a_checkpoint_that_is_being_deleted_and_written_raises_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = threading.Event()

    def write_and_delete():
        while not done.is_set():
            for i in range(20):
                (tmp_path / "shards" / str(i)).mkdir(parents=True)
                (tmp_path / "shards" / str(i) / "model.safetensors").write_text("x")
            shutil.rmtree(tmp_path / "shards")

    writer = threading.Thread(target=write_and_delete)
    writer.start()
    try:
        for _ in range(500):
            fingerprint([tmp_path])
    finally:
        done.set()
        writer.join()


@asynccontextmanager
async def looking(folder, news, failed=pytest.fail):
    task = asyncio.create_task(keep_looking([folder], KNOWN, 0.001, news, failed))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_news_are_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    told = asyncio.Event()

    async def news():
        told.set()

    async with looking(tmp_path, news):
        await asyncio.wait_for(told.wait(), 10.0)


async def test_after_a_failure_that_nobody_foresaw_it_looks_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    failures, told = [], asyncio.Event()

    async def news():
        if not failures:
            raise RuntimeError("can't start new thread")
        told.set()

    def failed(error):
        failures.append(error)
        (tmp_path / "config.json").write_text("{ }")

    async with looking(tmp_path, news, failed):
        await asyncio.wait_for(told.wait(), 10.0)
    assert [str(error) for error in failures] == ["can't start new thread"]


def _link_to(folder, target):
    draft = folder / "draft"
    draft.symlink_to(target)
    return draft
