"""Stand-ins for vLLM's engine: one that reads the given folder, and one that a test controls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification

from rewardserve.model.backends.vllm_api import EngineSpec, PooledRow

TIMEOUT_S = 30.0


class ReadingEngine:
    """Scores of a folder as vLLM computes them, by transformers: a label for each row of `score.weight`, without biases."""

    def __init__(self, spec: EngineSpec, off_by: float = 0.0) -> None:
        self.spec, self.off_by = spec, off_by
        self.files = sorted(path.name for path in spec.folder.iterdir())
        dtype = getattr(torch, spec.dtype)
        self._model = AutoModelForSequenceClassification.from_pretrained(spec.folder, dtype=dtype).eval()
        self.is_dead = False

    @torch.inference_mode()
    async def pool(self, ids: Sequence[int], name: str) -> PooledRow:
        assert len(ids) <= self.spec.max_tokens
        logits = self._model(torch.tensor([list(ids)])).logits[0].float()
        return PooledRow(tuple((logits + self.off_by).tolist()), 0)

    def shutdown(self) -> None:
        assert not self.is_dead, "once is enough"
        self.is_dead = True


class GatedEngine:
    """Returns the first id of a row, or the result of `gives`, when the test releases the row. `here`: the waiting rows."""

    def __init__(self, gives=None) -> None:
        self.is_dead = False
        self.here: dict[tuple[int, ...], asyncio.Future[None]] = {}
        self.given_up: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.n_shutdowns = 0
        self._came = threading.Semaphore(0)
        self._gives = gives or (lambda ids: PooledRow((float(ids[0]),), n_cached=len(ids) - 1))

    async def pool(self, ids: Sequence[int], name: str) -> PooledRow:
        self.names.append(name)
        gate = self.here[tuple(ids)] = asyncio.get_running_loop().create_future()
        self._came.release()
        try:
            await gate
        except asyncio.CancelledError:
            self.given_up.append(tuple(ids))
            raise
        return self._gives(ids)

    def wait_for(self, n_rows: int) -> None:
        """Return when so many more rows have arrived."""
        for _ in range(n_rows):
            assert self._came.acquire(timeout=TIMEOUT_S), "no row came"

    def let_go(self, ids: Sequence[int], error: BaseException | None = None) -> None:
        gate = self.here.pop(tuple(ids))
        if error is None:
            gate.get_loop().call_soon_threadsafe(gate.set_result, None)
        else:
            gate.get_loop().call_soon_threadsafe(gate.set_exception, error)

    def shutdown(self) -> None:
        self.n_shutdowns += 1
        self.is_dead = True
