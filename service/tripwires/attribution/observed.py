"""One scored sample with its text, as attribution compares it. A pure record."""

from __future__ import annotations

from typing import NamedTuple

MAX_CHARACTERS = 4_000
"""Characters of a prompt or response that are read: the first and the last half of them where there are more."""


class ObservedSample(NamedTuple):
    """One scored sample of a run.

    `prompt` and `response` are texts, `prompt_key` is equal for samples of one prompt, `score` is the combined score before
    penalties and shape, `audit` the score of the audit judge where it scored the sample, both in their own units. `task` is the
    client's name of the task, "" without one. `system` are the system turns, "" without any, or where they are a part of `prompt`.
    """

    prompt: str
    response: str
    prompt_key: int
    score: float
    audit: float | None = None
    step: int | None = None
    task: str = ""
    system: str = ""

    def clipped(self) -> ObservedSample:
        """The sample with its texts clipped to `MAX_CHARACTERS`: all that is kept and read of it."""
        return self._replace(prompt=clip(self.prompt), response=clip(self.response), system=clip(self.system))


def clip(text: str) -> str:
    """Cut a long text to its beginning and its end, with a space between them."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]} {text[len(text) - half + 1 :]}"
