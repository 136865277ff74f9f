"""Text is encoded on other threads, a few ids on the spot; whatever goes wrong is one sample's own."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import closing

import pytest

from rewardserve.model.backends.echo import EchoEncoder
from rewardserve.model.conversation import EmptyResponse, Sample
from rewardserve.model.encoding import Encoded
from rewardserve.service.errors import EncodingFailed
from rewardserve.service.inference.encode_pool import _MAX_INLINE_IDS, EncodePool
from tests.support.service_fakes import InferenceLog

TEXT, IDS = Sample(text="hi"), Sample(input_ids=(1, 2))


class Panic(BaseException):
    """What a panic of a Rust library looks like from Python."""


class Watched:
    """Remembers where it ran; chokes on a text that asks for it."""

    def __init__(self):
        self.threads = []
        self._echo = EchoEncoder(100_000)

    def __call__(self, sample):
        self.threads.append(threading.current_thread())
        if sample.text == "bug":
            raise ValueError("of what was said")
        if sample.text == "panic":
            raise Panic
        if sample.text == "shortage":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return self._echo(sample)

    def many(self, samples):
        return [self(sample) for sample in samples]


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def bugs():
    return []


@pytest.fixture
def pool(watched, bugs):
    with closing(EncodePool(watched, 2, InferenceLog(on_encode_bug=bugs.append))) as encoder:
        yield encoder


@pytest.mark.parametrize(
    ("samples", "here"),
    [
        ([IDS], True),
        ([IDS] * 5, True),
        ([TEXT], False),
        ([IDS, TEXT], False),
        ([Sample(input_ids=(1,) * _MAX_INLINE_IDS)], True),
        ([Sample(input_ids=(1,) * _MAX_INLINE_IDS), IDS], False),
    ],
)
async def test_a_few_ids_are_encoded_on_the_spot_and_all_else_on_another_thread(pool, watched, samples, here):
    encoded = await pool.encode(samples)
    assert [len(e.ids) for e in encoded] == [3 if s in (TEXT, IDS) else _MAX_INLINE_IDS + 1 for s in samples]
    assert {thread is threading.current_thread() for thread in watched.threads} == {here}


@pytest.mark.parametrize("trouble", ["bug", "panic"])
async def test_a_bug_of_the_encoder_fails_one_sample_and_is_reported_without_its_message(pool, bugs, trouble):
    before, bad, empty, after = await pool.encode(
        [TEXT, Sample(text=trouble), Sample(input_ids=(), finish_reason="length"), IDS]
    )
    assert isinstance(before, Encoded)
    assert isinstance(after, Encoded)
    assert isinstance(bad, EncodingFailed)
    assert isinstance(empty, EmptyResponse)
    assert len(bugs) == 1
    assert "what was said" not in bad.message


async def test_a_process_that_cannot_be_started_is_a_shortage_and_no_bug(pool, bugs):
    (failed,) = await pool.encode([Sample(text="shortage")])
    assert isinstance(failed, EncodingFailed)
    assert "ulimit -u" in failed.message
    assert "bug" not in failed.message
    assert len(bugs) == 1, "the operator reads it in the log"


def test_the_tokenizers_own_threads_are_not_used(pool):
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
