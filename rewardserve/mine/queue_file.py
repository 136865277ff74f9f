"""Write the audit queue: rows to be labelled, without scores and in random order, and the scores in a file beside it.

`rewardserve.training.dataset.counterexamples` reads the rows with their verdicts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardserve.model.conversation import Sample
from rewardserve.model.text.text_files import write_text
from rewardserve.training.dataset.counterexamples import QueueResponse, queue_id, scores_path


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with its raw score of the model, and the standardised scores of model and judge."""

    response: QueueResponse
    model: float
    model_z: float
    judge_z: float


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A pair to be labelled. `high` is the suspected response; `features` are those that it shares with other suspected ones."""

    sample: Sample
    high: ScoredResponse
    other: ScoredResponse
    gap: float
    kind: str
    features: tuple[str, ...] = ()


def write_queue(path: Path, entries: Sequence[QueueEntry]) -> None:
    """Write the queue and its scores. The order of rows and of responses is random and the same in each run."""
    rows, scores = [], []
    for entry in entries:
        prompt = _prompt(entry.sample)
        number = queue_id(prompt, entry.high.response, entry.other.response)
        sides = (entry.high, entry.other) if _digest(number, "order")[0] % 2 else (entry.other, entry.high)
        rows.append(_row(number, prompt, sides[0].response, sides[1].response))
        scores.append(
            {
                "id": number,
                "kind": entry.kind,
                "gap": entry.gap,
                "suspected": "a" if sides[0] is entry.high else "b",
                "features": list(entry.features),
                **{name: _scores(side) for name, side in zip("ab", sides, strict=True)},
            }
        )
    for target, lines in ((scores_path(path), scores), (path, rows)):
        ordered = sorted(lines, key=lambda row: _digest(str(row["id"]), "row"))
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered))


def _row(number: str, prompt: str | list[dict[str, str]], a: QueueResponse, b: QueueResponse) -> dict[str, Any]:
    ends = {"a_finish_reason": a.finish_reason, "b_finish_reason": b.finish_reason}
    unlabelled = {"verdict": None, "labelled_by": None, "labelled_at": None}
    return {"id": number, "prompt": prompt, "a": a.text, "b": b.text, **ends, **unlabelled}


def _prompt(sample: Sample) -> str | list[dict[str, str]]:
    """The prompt as training reads it: text for one user turn, otherwise messages."""
    turns = sample.conversation()[:-1]
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _scores(side: ScoredResponse) -> Mapping[str, Any]:
    return {"response": side.response.text, "model": side.model, "model_z": side.model_z, "judge_z": side.judge_z}


def _digest(number: str, purpose: str) -> bytes:
    return hashlib.sha256(f"{number}:{purpose}".encode()).digest()
