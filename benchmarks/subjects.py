"""The engines under measurement: a loaded model and a way to cut a workload into batches for it.

`naive` is what the common servers do; `sorted` is what a careful one does with the same model. The others are ours.
Token ids in, scores out: nobody tokenises here. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import cutting
from benchmarks.cutting import Batch, Row
from model.backends.packed import PackedScorer
from model.backends.padded import PaddedScorer
from model.checkpoint import Checkpoint, read
from model.checkpoint.reading import quiet_transformers
from model.padding import left_pad
from model.scorer import Scorer, TokenBatch

NAIVE_ROWS = 16
SORTED_BUDGET = 2048
Score = Callable[[Sequence[Row]], list[float]]


@dataclass(frozen=True, slots=True)
class Subject:
    """One engine: how it wants its batches, and what scores one of them."""

    name: str
    cut: Callable[[Sequence[Row]], list[Batch]]
    score: Score

    def run(self, rows: Sequence[Row]) -> list[float]:
        """The score of every row, in order. Cutting is part of the work."""
        scores = [float("nan")] * len(rows)
        for batch in self.cut(rows):
            for i, score in zip(batch, self.score([rows[i] for i in batch]), strict=True):
                scores[i] = score
        return scores


@dataclass(frozen=True)
class Loaded:
    """The two forms of one model: as transformers gives it, and as our backend reads it."""

    folder: Path

    @cached_property
    def plain(self) -> Any:
        """`AutoModelForSequenceClassification` as it comes."""
        from transformers import AutoModelForSequenceClassification

        with quiet_transformers():
            return AutoModelForSequenceClassification.from_pretrained(self.folder).eval()

    def ours(self) -> Checkpoint:
        """What our server reads, a copy for each: an engine may change how its network attends."""
        return read(str(self.folder))

    def left_padded(self, rows: Sequence[Row]) -> list[float]:
        """One forward with an attention mask, and `logits`."""
        ids_BT, mask_BT = left_pad(rows, self.plain.config.pad_token_id)
        with torch.inference_mode():
            scores: list[float] = self.plain(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].tolist()
        return scores

    def alone(self, row: Row) -> float:
        """The reference: one row, no padding, float32."""
        with torch.inference_mode():
            return float(self.plain(input_ids=torch.tensor([row])).logits[0, 0])


def naive(model: Loaded, budget: int) -> Subject:
    """Batches of 16 in order of arrival, left-padded."""
    return Subject("naive", partial(cutting.in_order_of_arrival, size=NAIVE_ROWS), model.left_padded)


def sorted_by_length(model: Loaded, budget: int) -> Subject:
    """The same model, rows of like length together, 2,048 positions a batch."""
    return Subject("sorted", partial(cutting.by_length, budget=SORTED_BUDGET), model.left_padded)


def padded(model: Loaded, budget: int) -> Subject:
    """Our own reference path, cut in the same way."""
    ours = model.ours()
    scorer = PaddedScorer(ours.network, pad_id=ours.pad_id, max_tokens=ours.policy.max_tokens)
    return Subject("padded", partial(cutting.by_length, budget=SORTED_BUDGET), partial(_ours, scorer))


def packed(model: Loaded, budget: int) -> Subject:
    """Our packed path, every row for itself, in order of arrival."""
    ours = model.ours()
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=False)
    return Subject("packed", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def shared(model: Loaded, budget: int) -> Subject:
    """Our packed path; what rows of a batch begin with in common is computed once, and equal rows once."""
    ours = model.ours()
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=True)
    return Subject("shared", partial(cutting.planned, budget=budget), partial(_ours, scorer))


def one_by_one(model: Loaded, budget: int) -> Subject:
    """What `REWARD_DETERMINISTIC=1` costs: packed, and every row has a forward of its own."""
    ours = model.ours()
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, one_by_one=True)
    return Subject("one_by_one", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def whole_last_layer(model: Loaded, budget: int) -> Subject:
    """Packed, but the last layer is computed for every token."""
    ours = model.ours()
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=False, trim=False)
    return Subject("whole_last_layer", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def bfloat16(model: Loaded, budget: int) -> Subject:
    """Packed, with the network in bfloat16: fast where the CPU has instructions for it, and further off."""
    ours = model.ours()
    ours.network.backbone.to(torch.bfloat16)
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=False)
    return Subject("bfloat16", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def int8(model: Loaded, budget: int) -> Subject:
    """Packed, with the weights of all linear layers in dynamic int8."""
    ours = model.ours()
    torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    ours.network.backbone = torch.ao.quantization.quantize_dynamic(ours.network.backbone, {torch.nn.Linear})
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=False)
    return Subject("int8", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def compiled(model: Loaded, budget: int) -> Subject:
    """Packed, with the MLP of every layer through torch.compile: the rest changes its shape with every batch."""
    ours = model.ours()
    for layer in ours.network.backbone.layers:
        layer.mlp = torch.compile(layer.mlp, dynamic=True)
    scorer = PackedScorer(ours.network, max_tokens=ours.policy.max_tokens, share=False)
    return Subject("compiled", partial(cutting.by_tokens, budget=budget), partial(_ours, scorer))


def _ours(scorer: Scorer, rows: Sequence[Row]) -> list[float]:
    return [row["score"] for row in scorer.score(TokenBatch(tuple(rows))).rows]


SUBJECTS: dict[str, Callable[[Loaded, int], Subject]] = {
    "naive": naive,
    "sorted": sorted_by_length,
    "padded": padded,
    "packed": packed,
    "shared": shared,
    "one_by_one": one_by_one,
    "whole_last_layer": whole_last_layer,
    "bfloat16": bfloat16,
    "int8": int8,
    "compiled": compiled,
}
