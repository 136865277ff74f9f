"""Cache the scores of rows in bounded memory: an equal row needs no forward.

Knows bytes and scores, no models: every model version has a separate cache. Only scores are
cached, never a failure.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from rewardserve.model.scorer import HeadScores

_DIGEST_BYTES = 16  # among 2^40 rows, two would be taken for one with a probability of 2^-49


class ScoreCache:
    """The `n_rows` most recently used scores of one model. 0: no cache. Belongs to one event loop."""

    def __init__(self, n_rows: int, version: int) -> None:
        self._n_rows = n_rows
        self._salt = version.to_bytes(16, "big")
        self._scores: OrderedDict[bytes, HeadScores] = OrderedDict()

    def __len__(self) -> int:
        """Number of cached rows."""
        return len(self._scores)

    def digest(self, key: bytes) -> bytes:
        """Digest of a row: equal for equal rows of one version, different for all others."""
        return blake2b(key, digest_size=_DIGEST_BYTES, salt=self._salt).digest()

    def get(self, digest: bytes) -> HeadScores | None:
        """The scores of this row, if they are cached."""
        scores = self._scores.get(digest)
        if scores is not None:
            self._scores.move_to_end(digest)
        return scores

    def put(self, digest: bytes, scores: HeadScores) -> None:
        """Store scores, and evict those that were not used for longest."""
        self._scores[digest] = scores
        self._scores.move_to_end(digest)
        if len(self._scores) > self._n_rows:
            self._scores.popitem(last=False)
