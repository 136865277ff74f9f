"""Engines to compare: a loaded model, and a way to divide a workload into batches for it.

`naive` does what common servers do; `sorted` is a careful use of the same model. The others are RewardServe's. Token
ids in, scores out: no tokenising, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import batch_forming
from benchmarks.batch_forming import Batch, Row
from rewardserve.model.backends import MatmulPrecision
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.checkpoint import Checkpoint, read
from rewardserve.model.checkpoint.transformers_logging import quiet_transformers
from rewardserve.model.padding import left_pad
from rewardserve.model.scorer import Scorer, TokenBatch

NAIVE_ROWS = 16
SORTED_BUDGET = 2048
Score = Callable[[Sequence[Row]], list[float]]


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """One engine: how it forms batches, and how it scores one."""

    name: str
    cut: Callable[[Sequence[Row]], list[Batch]]
    score: Score

    def run(self, rows: Sequence[Row]) -> list[float]:
        """Score every row, in order. Forming the batches is part of the work."""
        scores = [float("nan")] * len(rows)
        for batch in self.cut(rows):
            for i, score in zip(batch, self.score([rows[i] for i in batch]), strict=True):
                scores[i] = score
        return scores


@dataclass(frozen=True)
class LoadedCheckpoint:
    """One model in two forms: loaded by transformers, and read by RewardServe's backend."""

    folder: Path

    @cached_property
    def plain(self) -> Any:
        """`AutoModelForSequenceClassification` without changes."""
        from transformers import AutoModelForSequenceClassification

        with quiet_transformers():
            return AutoModelForSequenceClassification.from_pretrained(self.folder).eval()

    def ours(self) -> Checkpoint:
        """RewardServe's checkpoint, a copy for each engine: an engine may change the attention of its network."""
        return read(str(self.folder))

    def left_padded(self, rows: Sequence[Row]) -> list[float]:
        """One forward of transformers with an attention mask, and its `logits`."""
        ids_BT, mask_BT = left_pad(rows, self.plain.config.pad_token_id)
        with torch.inference_mode():
            scores: list[float] = self.plain(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].tolist()
        return scores

    def alone(self, row: Row) -> float:
        """Reference score: one row, no padding, float32."""
        with torch.inference_mode():
            return float(self.plain(input_ids=torch.tensor([row])).logits[0, 0])


def naive(model: LoadedCheckpoint, budget: int) -> EngineUnderTest:
    """Batches of 16 in order of arrival, left-padded."""
    return EngineUnderTest("naive", partial(batch_forming.in_order_of_arrival, size=NAIVE_ROWS), model.left_padded)


def sorted_by_length(model: LoadedCheckpoint, budget: int) -> EngineUnderTest:
    """The same model with rows of similar length together, 2,048 positions a batch."""
    return EngineUnderTest("sorted", partial(batch_forming.by_length, budget=SORTED_BUDGET), model.left_padded)


def padded(model: LoadedCheckpoint, budget: int) -> EngineUnderTest:
    """RewardServe's padded reference path, batched in the same way."""
    checkpoint = model.ours()
    scorer = PaddedScorer(checkpoint.network, pad_id=checkpoint.pad_id, max_tokens=checkpoint.policy.max_tokens)
    return EngineUnderTest("padded", partial(batch_forming.by_length, budget=SORTED_BUDGET), partial(_ours, scorer))


def ours(
    model: LoadedCheckpoint,
    budget: int,
    *,
    name: str,
    share: bool = False,
    matmul_precision: MatmulPrecision = "highest",
    change: Callable[[Any], None] = lambda network: None,
    **options: Any,
) -> EngineUnderTest:
    """RewardServe's packed path, in order of arrival, or batched by the server's planner where rows share prefixes."""
    checkpoint = model.ours()
    change(checkpoint.network)
    scorer = PackedScorer(
        checkpoint.network,
        max_tokens=checkpoint.policy.max_tokens,
        share=share,
        matmul_precision=matmul_precision,
        **options,
    )
    scorer.release_unpacked_weights()
    cut = batch_forming.planned if share else batch_forming.by_tokens
    return EngineUnderTest(name, partial(cut, budget=budget), partial(_ours, scorer))


def _in_bfloat16(network: Any) -> None:
    network.backbone.to(torch.bfloat16)


def _in_int8(network: Any) -> None:
    torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    network.backbone = torch.ao.quantization.quantize_dynamic(network.backbone, {torch.nn.Linear})


def _with_compiled_mlps(network: Any) -> None:
    for layer in network.backbone.layers:  # the other modules change their shape with every batch
        layer.mlp = torch.compile(layer.mlp, dynamic=True)


def _ours(scorer: Scorer, rows: Sequence[Row]) -> list[float]:
    return [row["score"] for row in scorer.score(TokenBatch(tuple(rows))).rows]


_OURS: dict[str, dict[str, Any]] = {
    # The server's defaults, and variants without one of them.
    "shared": {"share": True, "matmul_precision": "high"},
    "packed": {"matmul_precision": "high"},
    "shared_highest": {"share": True},
    "packed_highest": {},
    "plain_weights": {"prepack": False},
    "whole_last_layer": {"trim": False, "matmul_precision": "high"},
    "one_by_one": {"one_by_one": True, "matmul_precision": "high"},
    # Options that the server does not use.
    "bfloat16": {"change": _in_bfloat16},
    "int8": {"change": _in_int8},
    "compiled": {"change": _with_compiled_mlps},
}
ENGINE_BUILDERS: dict[str, Callable[[LoadedCheckpoint, int], EngineUnderTest]] = {
    "naive": naive,
    "sorted": sorted_by_length,
    "padded": padded,
    **{name: partial(ours, name=name, **options) for name, options in _OURS.items()},
}
