"""Run the model's encoding on a few threads, away from the event loop.

Knows nothing of the content; a sample that cannot be encoded gets an error, its neighbours do not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rewardserve.model.backends import SampleEncoder
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.service.errors import EncodingFailed, RowFailed
from rewardserve.service.inference.events import InferenceEvents

_MAX_INLINE_IDS = 16_384
"""Ids that are checked in about half a millisecond: less than the event loop would lose to a thread and back."""


class EncodePool:
    """A thread pool around `encode`. `events` are notified of exceptions that no encoder should raise."""

    def __init__(self, encode: SampleEncoder, n_threads: int, events: InferenceEvents) -> None:
        # Threads are those of this pool: the tokenizer's would spread a batch over all cores, also over the scorer's.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._encode = encode
        self._events = events
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="encoder")

    async def encode(self, samples: Sequence[Sample]) -> list[Encoded | SampleError | RowFailed]:
        """One entry a sample, in order, and no exception for any of them."""
        if _fits_inline(samples):
            return self._encode_all(samples)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._encode_all, samples)

    def close(self) -> None:
        """Begin no new encoding, without waiting for running ones."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _encode_all(self, samples: Sequence[Sample]) -> list[Encoded | SampleError | RowFailed]:
        try:
            return [*self._encode.many(samples)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of a Rust library is no Exception
            return [self._encode_one(sample) for sample in samples]  # find the sample at fault

    def _encode_one(self, sample: Sample) -> Encoded | SampleError | RowFailed:
        try:
            return self._encode(sample)
        except SampleError as error:
            return error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Its text may hold a piece of the conversation, so it is neither sent nor logged.
            self._events.on_encode_bug(error)
            if isinstance(error, OSError):  # a chat template needs a process that cannot be started
                return EncodingFailed(
                    f"the sample cannot be encoded now: {describe_resource_error(error) or error.strerror}."
                )
            return EncodingFailed(f"the encoder raised {type(error).__name__}. This is a bug in the encoder.")


def _fits_inline(samples: Sequence[Sample]) -> bool:
    n_ids = 0
    for sample in samples:
        if sample.input_ids is None:
            return False
        n_ids += len(sample.input_ids)
    return n_ids <= _MAX_INLINE_IDS
