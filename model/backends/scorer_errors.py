"""Translate errors of torch into errors of a scorer: `OutOfMemory` for a batch that does not fit, else `ScorerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rewardserve.model.scorer import OutOfMemory, ScorerError


@contextmanager
def as_scorer_errors(n_tokens: int) -> Iterator[None]:
    """Raise `OutOfMemory` or `ScorerError` in place of the body's error; `n_tokens` is for the message."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{n_tokens} token positions do not fit: {error}") from error
    except (RuntimeError, IndexError) as error:  # an id beyond the embedding is an IndexError on a CPU
        if "can't allocate memory" in str(error):  # the CPU allocator has no exception type, only this message
            raise OutOfMemory(f"{n_tokens} token positions do not fit") from error
        raise ScorerError(f"the forward failed: {error}") from error
