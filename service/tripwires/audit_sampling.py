"""Choose the samples that the audit judge scores: one response of each of many prompts, rather than many of one.

`audit_drift` counts prompts, and responses to one prompt are alike, so an audit of another prompt tells more than one of the same.
While the test learns the start of a run, and while a divergence is suspected, every prompt is audited: the start is known, or the
suspicion decided, after the fewest samples. The choice depends on token ids and order alone, so the size of requests does not
matter. Pure.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Candidate(NamedTuple, Generic[T]):
    """A sample of the open block. `priority` is pseudo-random: the smallest is chosen first."""

    priority: int
    prompt_hash: int
    sample: T


class AuditSampler(Generic[T]):
    """Sampler of one run: of every `block` samples it chooses a `share`, or one response to each prompt where more is to be known.

    Keeps no more samples than it may choose.
    """

    def __init__(self, share: float, block: int) -> None:
        self._share, self._block = share, block
        self._n_blocks = 0
        self._budget = 0.0
        self._begin()

    def _begin(self) -> None:
        self._candidates: list[_Candidate[T]] = []
        self._prompts: set[int] = set()
        self._n = 0
        self._n_blocks += 1
        self._budget += self._share * self._block

    def add(self, sample: T, prompt_hash: int, ids_hash: int, *, every_prompt: bool) -> list[T]:
        """Add a sample. Return those to audit, when it completes a block."""
        self._n += 1
        self._prompts.add(prompt_hash)
        self._candidates.append(_Candidate(hash((self._n_blocks, ids_hash)), prompt_hash, sample))
        n_most = max(int(self._budget), len(self._prompts) if every_prompt else 0)
        if len(self._candidates) > 2 * n_most or self._n == self._block:
            # A sample beyond these stays beyond them, whatever comes later: its place in the order only rises.
            self._candidates = _ordered(self._candidates)[:n_most]
        if self._n < self._block:
            return []
        chosen = self._candidates
        self._budget = max(0.0, self._budget - len(chosen))
        self._begin()
        return [each.sample for each in chosen]


def _ordered(candidates: list[_Candidate[T]]) -> list[_Candidate[T]]:
    """One sample of each prompt first, then a second one of each; by priority among these."""
    turns: dict[int, int] = {}
    keyed = []
    for each in sorted(candidates, key=lambda each: each.priority):
        turn = turns[each.prompt_hash] = turns.get(each.prompt_hash, 0) + 1
        keyed.append((turn, each))
    return [each for _, each in sorted(keyed, key=lambda pair: (pair[0], pair[1].priority))]
