"""The streams of a benchmark: which ones, with which settings, and their texts. Also files of others, and recorded runs."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gym.streams import cherrl
from gym.streams.exploits import Corpus, Edit, draw, exploited
from gym.streams.honest import HONEST, Better, Plan
from gym.streams.learning import LESSONS, LearnedRun, Learning
from gym.streams.replay import Traffic
from gym.streams.texts import Prompt, Steps, StreamSample, Texts, to_prompt
from gym.streams.worlds import Planted
from rewardserve.model.traits import Lexicon

UNKNOWN_TASK = "made"
"""Task of prompts that a file of streams has made."""

Source = Literal["drawn", "exploits", "honest", "honest file", "recorded", "learned", "cherrl"]

_WORLDS = ("recorded", "learned", "cherrl")
"""Sources that bring scores."""


@dataclass(frozen=True)
class StreamSpec:
    """One stream with its settings. `name` is that of a function, for the sources that have several; `file` is its file.

    `is_real`: scored by the model, else `planted`. `until_page`: it ends with the step of its first page.
    """

    source: Source
    name: str = ""
    file: Path | None = None
    seed: int = 0
    n_steps: int = 60
    batch: int = 128
    top: float = 0.8
    is_real: bool = False
    planted: Planted = field(default_factory=Planted)
    traffic: Traffic = field(default_factory=Traffic)
    until_page: bool = False

    @property
    def is_exploit(self) -> bool | None:
        """Whether the stream has an exploit; None: not known beforehand."""
        return None if self.source in ("recorded", "learned") else self.source in ("drawn", "exploits", "cherrl")

    @property
    def chooses_by_score(self) -> bool:
        """Whether the stream takes responses by their score."""
        return self.source == "honest" and self.name == "improvement"

    @property
    def pay(self) -> str:
        """Pay of the exploit by the model and by the judge, in words; empty for other streams."""
        if not self.is_exploit:
            return ""
        return "real" if self.is_real else f"+{self.planted.bonus:g}/-{self.planted.penalty:g}"

    @property
    def settings(self) -> str:
        """The settings in words."""
        planted = self.planted
        judge = f"judge {self.traffic.judge_share:g}" if self.traffic.judge_share else "no judge"
        wander = f" wander {planted.wander:g}" if planted.wander and self.traffic.judge_share else ""
        size = self.traffic.per_request or "step"
        world = "real" if self.is_real else self.source if self.source in _WORLDS else "planted"
        tasks = ", tasks named" if self.traffic.names_tasks else ""
        return f"{world}, {judge}{wander}, {self.n_steps} steps, request {size}{tasks}"


@dataclass(frozen=True)
class StreamSource:
    """Maker of streams from one folder of texts."""

    texts: Texts
    is_better: Better

    @cached_property
    def corpus(self) -> Corpus:
        """Words and sentences for literals."""
        return Corpus.of(self.texts, Lexicon.read())

    def title(self, spec: StreamSpec) -> str:
        """Name of a stream for a table."""
        return draw(spec.seed, self.corpus).name if spec.source == "drawn" else spec.name

    def steps(self, spec: StreamSpec) -> Steps:
        """Make the samples of a stream."""
        if spec.source == "honest":
            return HONEST[spec.name](Plan(self.texts, spec.seed, spec.n_steps, spec.batch, self.is_better))
        if spec.source == "honest file":
            assert spec.file is not None
            made: Callable[[int], Any] = functions_of(spec.file, "HONEST")[spec.name]
            return [[self._named(_sample(*pair)) for pair in step] for step in made(spec.seed)]
        if spec.source == "recorded":
            assert spec.file is not None
            return read_recorded(spec.file)[0]
        if spec.source == "cherrl":
            assert spec.file is not None
            return cherrl.stream(cherrl.read_runs(spec.file)[spec.name], self.texts, spec.seed, spec.batch)
        edit = self._edit(spec)
        return exploited(self.texts.steps(spec.seed, spec.n_steps, spec.batch), edit, spec.seed, spec.top)

    @cached_property
    def _tasks(self) -> Mapping[Prompt, str]:
        return {pair.prompt: pair.task for pair in self.texts.pairs}

    def _named(self, sample: StreamSample) -> StreamSample:
        """The sample with the file of its prompt as its task, or with one name for all prompts of no file."""
        return sample._replace(task=self._tasks.get(sample.prompt, UNKNOWN_TASK))

    def learned(self, spec: StreamSpec) -> LearnedRun:
        """Train the policy of a stream."""
        size, correlation = (spec.n_steps, spec.batch), spec.planted.correlation
        return Learning(self.texts, self.corpus, LESSONS[spec.name], spec.seed, *size, correlation).run()

    def exploit(self, spec: StreamSpec) -> Edit | None:
        """The exploit of a stream; None: it is honest, or recorded."""
        return self._edit(spec) if spec.is_exploit else None

    def _edit(self, spec: StreamSpec) -> Edit:
        if spec.source == "drawn":
            return draw(spec.seed, self.corpus).edit
        assert spec.file is not None
        edit: Edit = functions_of(spec.file, "EXPLOITS")[spec.name]
        return edit


def functions_of(file: Path, name: str) -> Mapping[str, Callable[..., Any]]:
    """Run a Python file and return its dict of functions. Modules beside it can be imported by it."""
    functions: Mapping[str, Callable[..., Any]] = getattr(_module_of(file.resolve()), name)
    return functions


_modules: dict[Path, ModuleType] = {}


def _module_of(file: Path) -> ModuleType:
    if file not in _modules:
        spec = importlib.util.spec_from_file_location(f"stream_file_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{file} is no Python file")
        sys.path.append(str(file.parent))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _modules[file] = module
    return _modules[file]


def read_recorded(file: Path) -> tuple[Steps, list[list[float]]]:
    """Read a recorded run: a line a step, with `prompts`, `responses` and `rewards`. Return samples and rewards."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    steps = [[_sample(p, r) for p, r in zip(row["prompts"], row["responses"], strict=True)] for row in rows]
    return steps, [[float(reward) for reward in row["rewards"]] for row in rows]


def _sample(prompt: Any, response: str) -> StreamSample:
    # An empty response has no score; a policy's is a space in such files.
    return StreamSample(to_prompt(prompt), response, response)
