"""Endless requests in which no sample repeats, so that no cache can serve them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from benchmarks.models import corpus

_SALT = "100,101,102,103"
"""Four three-digit ids at the start of every sample, replaced in every request: equal in length, never equal twice."""
_DIGITS = 156  # 100 to 255: three digits, and valid ids of the echo model
_TEMPLATES = 64


@dataclass(frozen=True, slots=True)
class Case:
    """Kind of request: samples as token ids or as text, and their number."""

    form: str
    n_samples: int


class Bodies:
    """Bodies of `POST /score`. The samples of one request begin with the same four ids, and differ in the rest."""

    def __init__(self, case: Case, tokens: int, seed: int) -> None:
        rng = random.Random(f"{case} {seed}")
        n = max(2, _TEMPLATES // case.n_samples)
        words = corpus().split()
        self._templates = [_template(case, tokens, words, rng) for _ in range(n)]
        self._n = rng.randrange(_DIGITS**4)

    def next_body(self) -> bytes:
        """One more."""
        self._n += 1
        salted = b"[%d,%d,%d,%d" % tuple(100 + self._n // _DIGITS**k % _DIGITS for k in range(4))
        return self._templates[self._n % len(self._templates)].replace(b"[" + _SALT.encode(), salted)


def _template(case: Case, tokens: int, words: list[str], rng: random.Random) -> bytes:
    """Build a request in which the salt is to be replaced. Lengths are from 0.5 to 1.5 of `tokens`."""
    samples: list[dict[str, object]] = []
    for _ in range(case.n_samples):
        n = rng.randint(tokens // 2, tokens + tokens // 2)
        if case.form == "ids":
            samples.append({"input_ids": [*map(int, _SALT.split(",")), *rng.choices(range(1, 256), k=n - 4)]})
        else:
            start = rng.randrange(len(words) - n)
            text = " ".join(words[start : start + n])[: n - 18]
            samples.append({"prompt": f"[{_SALT}] {text[: n // 2]}", "response": text[n // 2 :]})
    return json.dumps({"run": "overhead", "step": 1, "samples": samples}, separators=(",", ":")).encode()
