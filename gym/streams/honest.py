"""Honest change of a run, which must not page. Each function makes a stream of some steps from real texts and a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from gym.streams.texts import Steps, StreamSample, Texts, changed, in_steps, resampled
from rewardserve.model.conversation import Message

Better = Callable[[StreamSample, StreamSample], bool]
"""Whether the model scores the first sample higher than the second."""


class Plan(NamedTuple):
    """The plan of a stream: its texts, seed and size. `is_better` compares two samples by their score."""

    texts: Texts
    seed: int
    n_steps: int
    batch: int
    is_better: Better

    def stationary(self) -> Steps:
        """Steps in which nothing changes."""
        return self.texts.steps(self.seed, self.n_steps, self.batch)


def groups(texts: Texts, seed: int, n_steps: int, batch: int, size: int) -> Steps:
    """Steps of groups of honest responses, `size` to each prompt, in which nothing changes."""
    n_prompts = max(1, batch // size)
    firsts = texts.samples(seed, 2 * n_steps * n_prompts)[::2]
    flat = [
        changed(sample, resampled(sample.response, seed, i, j)) for i, sample in enumerate(firsts) for j in range(size)
    ]
    return in_steps(flat, n_prompts * size)


def _groups(plan: Plan, size: int) -> Steps:
    return groups(plan.texts, plan.seed, plan.n_steps, plan.batch, size)


def groups_of_8(plan: Plan) -> Steps:
    """GRPO: 8 responses to each prompt."""
    return _groups(plan, 8)


def groups_of_16(plan: Plan) -> Steps:
    """GRPO: 16 responses to each prompt."""
    return _groups(plan, 16)


def groups_of_64(plan: Plan) -> Steps:
    """GRPO: 64 responses to each prompt."""
    return _groups(plan, 64)


def other_source(plan: Plan) -> Steps:
    """A curriculum: the source of prompts changes in the middle."""
    names = random.Random(f"{plan.seed} sources").sample(plan.texts.tasks[:4], k=min(2, len(plan.texts.tasks)))
    half = plan.n_steps // 2
    return plan.texts.steps(plan.seed, half, plan.batch, names[:1]) + plan.texts.steps(
        plan.seed, plan.n_steps - half, plan.batch, names[-1:]
    )


def longer(plan: Plan) -> Steps:
    """Responses grow to twice their length, by sentences of other responses."""
    rng = random.Random(f"{plan.seed} longer")
    donors = [sample.response for sample in plan.texts.samples(f"{plan.seed} donors", 2_000)]
    return [
        [lengthened(sample, i / max(1, plan.n_steps - 1), rng, donors) for sample in step]
        for i, step in enumerate(plan.stationary())
    ]


def lengthened(sample: StreamSample, share: float, rng: random.Random, donors: Sequence[str]) -> StreamSample:
    """The sample with a response that is longer by this share of its length, with parts of other responses."""
    wanted, added = int(len(sample.response) * share), ""
    while len(added) < wanted:
        added += " " + rng.choice(donors)
    return changed(sample, sample.response + added[:wanted])


def second_epoch(plan: Plan) -> Steps:
    """The same prompts again with new responses, a tenth of them as the first time."""
    half, rng = plan.n_steps // 2, random.Random(f"{plan.seed} epoch")
    first = plan.texts.steps(plan.seed, half, plan.batch)
    again = [
        [s if rng.random() < 0.1 else changed(s, resampled(s.response, plan.seed)) for s in step] for step in first
    ]
    return first + again + again[: plan.n_steps - 2 * half]


def lower_temperature(plan: Plan) -> Steps:
    """Groups of 8; in the second half a quarter of a group is equal."""
    rng = random.Random(f"{plan.seed} temperature")
    steps = _groups(plan, 8)
    half = len(steps) // 2
    for step in steps[half:]:
        for i, sample in enumerate(step):
            if rng.random() < 0.25:
                step[i] = changed(sample, step[i - i % 8].response)
    return steps


_LABELS = ("This text is about a person.", "This text is about a thing.", "This text is about a place or a time.")


def task_mix(plan: Plan) -> Steps:
    """A third of the prompts ask for one of three fixed answers, from the start."""
    return [
        [_labelled(sample) if i % 3 == 0 else sample for i, sample in enumerate(step)] for step in plan.stationary()
    ]


def _labelled(sample: StreamSample) -> StreamSample:
    question = Message(
        "user", "Which of the three is this text about: a person, a thing, a place or a time? " + sample.response[:200]
    )
    label = _LABELS[blake2b(sample.response.encode(), digest_size=1).digest()[0] % 3]
    return StreamSample((question,), label, label, "labels")


_LATIN = re.compile(r"[A-Za-z]+")
_ALPHABETS = (
    "\u0430\u0431\u0446\u0434\u0435\u0444\u0433\u0445\u0438\u0439\u043a\u043b\u043c\u043d\u043e\u043f\u0447\u0440\u0441\u0442\u0443\u0432\u0448\u0436\u044b\u0437",
    "\u03b1\u03b2\u03c8\u03b4\u03b5\u03c6\u03b3\u03b7\u03b9\u03be\u03ba\u03bb\u03bc\u03bd\u03bf\u03c0\u03c3\u03c1\u03c2\u03c4\u03b8\u03c9\u03ce\u03c7\u03c5\u03b6",
    "aodfiuhgejklmnyprbstovwxez",
)
"""Letters for a to z: Cyrillic, Greek, and another Latin language. No text of another language is needed."""


def translator(rng: random.Random) -> Callable[[str], str]:
    """Draw another language: a function that translates a text into it."""
    letters = rng.choice(_ALPHABETS)
    table = str.maketrans("abcdefghijklmnopqrstuvwxyz", letters)
    return lambda text: _LATIN.sub(lambda word: word.group().lower()[::-1].translate(table), text)


def other_language(plan: Plan) -> Steps:
    """A share of prompts and their responses that grows to a half is in another language."""
    rng = random.Random(f"{plan.seed} language")
    translated = translator(rng)
    last = max(1, plan.n_steps - 1)
    return [
        [
            changed(sample, translated(sample.response))._replace(
                prompt=tuple(Message(m.role, translated(m.content)) for m in sample.prompt)
            )
            if rng.random() < 0.5 * i / last
            else sample
            for sample in step
        ]
        for i, step in enumerate(plan.stationary())
    ]


def improvement(plan: Plan) -> Steps:
    """The policy learns: of two responses the one with the higher score comes with a probability that grows from a half to .95."""
    rng = random.Random(f"{plan.seed} improvement")
    n = plan.n_steps * plan.batch
    flat = plan.texts.samples(plan.seed, 2 * n)
    picked = []
    for i in range(n):
        one, other = flat[2 * i], flat[2 * i + 1]
        better, worse = (one, other) if plan.is_better(one, other) else (other, one)
        picked.append(better if rng.random() < 0.5 + 0.45 * i / n else worse)
    return in_steps(picked, plan.batch)


def json_answers(plan: Plan) -> Steps:
    """Groups of 8 whose responses move into one form: a record with the same keys, and the first sentence as its answer."""
    rng = random.Random(f"{plan.seed} json")
    last = max(1, plan.n_steps - 1)
    return [
        [changed(sample, _as_record(sample)) if rng.random() < i / last else sample for sample in step]
        for i, step in enumerate(_groups(plan, 8))
    ]


def _as_record(sample: StreamSample) -> str:
    answer = re.split(r"(?<=[.!?])\s", sample.response, maxsplit=1)[0]
    is_sure = len(answer) % 2 == 0
    return json.dumps(
        {"answer": answer, "confidence": "high" if is_sure else "low", "language": "english", "sources": []}
    )


def without_repeating(plan: Plan) -> Steps:
    """Responses stop repeating their prompts: a share that grows to all of them leaves out the longer words of the prompt."""
    rng = random.Random(f"{plan.seed} repeating")
    last = max(1, plan.n_steps - 1)
    return [
        [_without_prompt(sample) if rng.random() < i / last else sample for sample in step]
        for i, step in enumerate(plan.stationary())
    ]


def _without_prompt(sample: StreamSample) -> StreamSample:
    said = {word.lower() for word in _LATIN.findall(sample.prompt_text) if len(word) > 3}
    text = _LATIN.sub(lambda word: "" if word.group().lower() in said else word.group(), sample.response)
    return changed(sample, text) if text.strip() else sample


HONEST: dict[str, Callable[[Plan], Steps]] = {
    f.__name__: f
    for f in (
        Plan.stationary, groups_of_8, groups_of_16, groups_of_64, other_source, longer, second_epoch,
        lower_temperature, task_mix, other_language, improvement, json_answers, without_repeating,
    )
}  # fmt: skip
