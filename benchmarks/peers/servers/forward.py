"""Common forward of these servers: tokenise, pad on the left, one forward for each 16 texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

BATCH = 16


class TransformersModel:
    """Model of transformers without changes."""

    def __init__(self, folder: str | Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, texts: Sequence[str | list[int]]) -> list[float]:
        """Raw score of every text, in order of arrival."""
        scores: list[float] = []
        for i in range(0, len(texts), BATCH):
            inputs = self._inputs(texts[i : i + BATCH])
            with self._torch.inference_mode():
                scores += self._model(**inputs).logits[:, 0].tolist()
        return scores

    def many(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, list[float]]]:
        """Reply to each of several requests that form a batch."""
        scores = iter(self(list(chain.from_iterable(request["query"] for request in requests))))
        return [{"rewards": [next(scores) for _ in request["query"]]} for request in requests]

    def _inputs(self, texts: Sequence[str | list[int]]) -> Any:
        if isinstance(texts[0], str):
            return self._tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt")
        return self._tokenizer.pad({"input_ids": list(texts)}, padding=True, return_tensors="pt")


def arguments() -> argparse.Namespace:
    """Parse the command-line arguments common to these servers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
