"""Real prompts and responses from preference files, and steps of samples made of them. Independent of exploits and scores."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rewardserve.model.conversation import Message

MAX_PROMPT_CHARS = 3_500
"""Rows with a longer prompt are left out."""

_WORDS = re.compile(r"\S+\s*")
"""Words, each with the white space behind it."""

Prompt = tuple[Message, ...]


class Pair(NamedTuple):
    """One prompt with two honest responses, the chosen one first. `task` is the name of the file."""

    task: str
    prompt: Prompt
    responses: tuple[str, str]


class StreamSample(NamedTuple):
    """One sample of a stream. `honest` is the response before the exploit was put in, or `response` without one."""

    prompt: Prompt
    response: str
    honest: str
    task: str = ""

    @property
    def is_exploiting(self) -> bool:
        """Whether the exploit has changed the response."""
        return self.response != self.honest

    @property
    def prompt_text(self) -> str:
        """Text of the last turn of the prompt."""
        return self.prompt[-1].content


Steps = list[list[StreamSample]]


def read_pairs(folder: Path) -> list[Pair]:
    """Read the pairs of all preference files of a folder; no response occurs twice. Raise ValueError if there are none."""
    pairs: list[Pair] = []
    seen: set[str] = set()
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        for row in _rows(path):
            pair = _pair(path.name.partition(".")[0], row)
            if pair is None:
                continue
            keys = {" ".join(text.lower().split()) for text in pair.responses}
            if len(keys) == 2 and not keys & seen:
                seen |= keys
                pairs.append(pair)
    if not pairs:
        raise ValueError(f"{folder} has no file .jsonl or .jsonl.gz with rows of prompt, chosen and rejected")
    return pairs


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _pair(task: str, row: dict[str, Any]) -> Pair | None:
    if not {"prompt", "chosen", "rejected"} <= row.keys():
        return None
    prompt, responses = to_prompt(row["prompt"]), (row["chosen"], row["rejected"])
    is_usable = all(text.strip() for text in responses) and sum(len(m.content) for m in prompt) < MAX_PROMPT_CHARS
    return Pair(task, prompt, responses) if is_usable and prompt else None


def to_prompt(prompt: str | Sequence[dict[str, str]]) -> Prompt:
    """Convert the prompt of a row: a text, or chat messages."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(message["role"], message["content"]) for message in prompt)


@dataclass(frozen=True)
class Texts:
    """The pairs of a folder, as a source of steps."""

    pairs: Sequence[Pair]

    @property
    def tasks(self) -> list[str]:
        """Names of the files, that with most pairs first."""
        names = [pair.task for pair in self.pairs]
        return sorted(set(names), key=lambda name: (-names.count(name), name))

    def samples(self, seed: object, n: int, tasks: Sequence[str] = ()) -> list[StreamSample]:
        """Draw n samples in random order, both responses to a prompt together. None occurs twice: beyond the last one, responses
        are `resampled`. `tasks`: of these files only.
        """
        pairs = [pair for pair in self.pairs if not tasks or pair.task in tasks]
        random.Random(f"{seed} order").shuffle(pairs)
        flat = [StreamSample(p.prompt, text, text, p.task) for p in pairs for text in p.responses]
        return [flat[i] if i < len(flat) else _again(flat[i % len(flat)], seed, i // len(flat)) for i in range(n)]

    def steps(self, seed: object, n_steps: int, batch: int, tasks: Sequence[str] = ()) -> Steps:
        """Draw steps of `batch` samples."""
        return in_steps(self.samples(seed, n_steps * batch, tasks), batch)


def in_steps(samples: Sequence[StreamSample], batch: int) -> Steps:
    """Cut samples into steps."""
    return [list(samples[i : i + batch]) for i in range(0, len(samples), batch)]


def _again(sample: StreamSample, *salt: object) -> StreamSample:
    return changed(sample, resampled(sample.response, *salt))


def changed(sample: StreamSample, response: str) -> StreamSample:
    """The sample with another honest response."""
    return sample._replace(response=response, honest=response)


def resampled(response: str, *salt: object) -> str:
    """Another response like a policy would draw it: a tenth of the words left out, a tenth moved. Seeded by response and salt.

    The white space behind a word goes with it, so layout stays: else it changes where a long stream begins to draw again.
    """
    rng = random.Random(repr((response, salt)))
    all_words = _WORDS.findall(response)
    words = [word for word in all_words if rng.random() > 0.1] or all_words
    for _ in range(1 + len(words) // 10):
        words.insert(rng.randrange(len(words)), words.pop(rng.randrange(len(words))))
    return "".join(word if word[-1].isspace() else f"{word} " for word in words).rstrip()
