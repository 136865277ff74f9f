"""Scores of real texts by a reward model, through the engine that serves, kept in a file by content and model.

The second run with the same texts and model costs nothing: the engine is loaded only for texts that the file lacks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from gym.streams.texts import Prompt
from rewardserve.model import default
from rewardserve.model.backends import LoadedModel
from rewardserve.model.calibration import Calibration
from rewardserve.model.contract import ScoringContract
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.default.base_model import cache_folder
from rewardserve.model.reward import Pipeline
from rewardserve.model.scorer import HeadScores, TokenBatch
from rewardserve.service.offline.score_file import load_model, open_scoring
from rewardserve.service.scoring import SampleResult
from rewardserve.service.settings import ModelSettings

_WINDOW = 256
"""Rows that are scored between two writes of the file."""


class Model(NamedTuple):
    """A checkpoint as the benchmark needs it without its weights."""

    contract: ScoringContract
    calibration: Calibration

    @classmethod
    def read(cls, checkpoint: str = "") -> Model:
        """Read the sidecar files of a checkpoint folder; empty: the default model. Raise ValueError where one is missing."""
        folder = Path(checkpoint) if checkpoint else default.FOLDER
        contract, calibration = ScoringContract.load(folder), Calibration.load(folder)
        if contract is None or calibration is None:
            raise ValueError(
                f"{folder} has no scoring_contract.json and calibration.json; export and calibrate it first"
            )
        return cls(contract, calibration)

    def normalised(self, heads: HeadScores) -> float:
        """Score in standard deviations of the calibration."""
        raw = sum(weight * heads[name] for name, weight in self.contract.heads)
        return (raw - self.calibration.mean) / self.calibration.std


def key_of(prompt: Prompt, response: str) -> str:
    """Name of a text in the file: BLAKE2b of its turns."""
    turns = [[m.role, m.content] for m in prompt]
    return blake2b(json.dumps([turns, response]).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class ScoreTable:
    """Scores by key, in a file of one model. A text without a score, because it is too long, has None."""

    path: Path
    heads: dict[str, HeadScores | None]

    @classmethod
    def open(cls, model: Model, folder: Path | None = None) -> ScoreTable:
        """Read the file of this model; an incomplete last line is ignored."""
        where = folder or cache_folder() / "stream-scores"
        path = where / f"{model.contract.digest.rpartition(':')[2][:16]}.jsonl"
        return cls(path, dict(_lines(path)))

    def of(self, prompt: Prompt, response: str) -> HeadScores | None:
        """Heads of a text, where they are known."""
        return self.heads.get(key_of(prompt, response))

    def missing(self, texts: Iterable[tuple[Prompt, str]]) -> list[tuple[Prompt, str]]:
        """Texts that have not been scored, each once."""
        wanted = {key_of(*text): text for text in texts}
        return [text for key, text in wanted.items() if key not in self.heads]

    def add(self, texts: Sequence[tuple[Prompt, str]], heads: Sequence[HeadScores | None]) -> None:
        """Append scores to the file."""
        new = {key_of(*text): each for text, each in zip(texts, heads, strict=True)}
        self.heads.update(new)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as out:
            out.writelines(json.dumps([key, each]) + "\n" for key, each in new.items())


def _lines(path: Path) -> Iterator[tuple[str, HeadScores | None]]:
    if not path.is_file():
        return
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                key, heads = json.loads(line)
                yield key, heads


def fill(table: ScoreTable, texts: Sequence[tuple[Prompt, str]], checkpoint: str = "") -> float:
    """Score the texts that the table lacks. Print progress. Return rows a second; 0: nothing to do."""
    missing = table.missing(texts)
    if not missing:
        return 0.0
    print(f"scoring {len(missing):,} texts into {table.path}", file=sys.stderr)
    settings = ModelSettings(model=checkpoint)
    loaded, pipeline = load_model(settings)
    began = time.monotonic()
    asyncio.run(_fill(table, missing, settings, loaded, pipeline, began))
    return len(missing) / (time.monotonic() - began)


@dataclass(frozen=True)
class LiveModel:
    """A loaded model that scores a text at a time."""

    loaded: LoadedModel

    @classmethod
    def load(cls, checkpoint: str = "") -> LiveModel:
        """Load a checkpoint; empty: the default model."""
        return cls(load_model(ModelSettings(model=checkpoint))[0])

    def heads(self, prompt: Prompt, response: str) -> HeadScores | None:
        """Heads of a text; None where it is too long."""
        try:
            encoded = self.loaded.encode(Sample(prompt=prompt, response=response))
        except SampleError:
            return None
        return _plain(self.loaded.scorer.score(TokenBatch((encoded.ids,))).rows[0])


async def _fill(
    table: ScoreTable,
    missing: Sequence[tuple[Prompt, str]],
    settings: ModelSettings,
    loaded: LoadedModel,
    pipeline: Pipeline,
    began: float,
) -> None:
    async with open_scoring(settings, loaded, pipeline) as scoring:
        for at in range(0, len(missing), _WINDOW):
            window = missing[at : at + _WINDOW]
            results = await scoring.score([Sample(prompt=prompt, response=response) for prompt, response in window])
            table.add(window, [_heads(result) for result in results])
            n, seconds = at + len(window), time.monotonic() - began
            left = (len(missing) - n) * seconds / n
            print(f"  {n:,} of {len(missing):,}, {n / seconds:.1f} rows/s, {left / 60:.0f} min left", file=sys.stderr)


def _heads(result: SampleResult) -> HeadScores | None:
    return None if result.heads is None else _plain(result.heads)


def _plain(heads: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in heads.items()}
