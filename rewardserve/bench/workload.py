"""Requests of a measurement: samples of a file, or synthetic ones of ragged length of which no two are equal."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from rewardserve.service.offline.input_file import check_encoding, read_line

PROMPT_WORDS, RESPONSE_WORDS = (20, 400), (10, 300)
_N_TEXTS = 1024
"""Synthetic texts that are made before the clock starts; each prompt gets a number in front that no other has."""
_COMMON_WORDS = (
    "the of and to in is it you that he was for on are with as they be at one have this from or had by hot word but "
    "what some we can out other were all there when up use your how said an each she which do their time if will way "
    "about many then them write would like so these her long make thing see him two has look more day could go come "
    "did number sound no most people my over know water than call first who may down side been now find any new work "
    "part take get place made live where after back little only round man year came show every good me give our under "
    "name very through just form sentence great think say help low line differ turn cause much mean before move right "
    "boy old too same tell does set three want air well also play small end put home read hand port large spell add "
    "even land here must big high such follow act why ask men change went light kind off need house picture try us "
    "again animal point mother world near build self earth father"
)
_WORDS = _COMMON_WORDS.split()


@dataclass(frozen=True, slots=True)
class Workload:
    """Samples as JSON texts, in order, and what they are. `left_out`: lines of a file that are no samples, by code."""

    samples: Iterator[bytes]
    description: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def bodies(self, per_request: int, run: str = "") -> Iterator[bytes]:
        """Bodies of `POST /score` with up to `per_request` samples."""
        head = b'{"run":%s,"samples":[' % json.dumps(run).encode() if run else b'{"samples":['
        while part := list(islice(self.samples, per_request)):
            yield head + b",".join(part) + b"]}"


class NoSamples(Exception):
    """The file has no sample to send."""


def synthetic(n_samples: int | None, group: int, seed: int | None = None) -> Workload:
    """Samples of ragged length; `group` of them in a row have one prompt. All differ, so the score cache answers none."""
    texts = random.Random(0)  # the same lengths in every measurement
    prompts, responses = (_texts(texts, *length) for length in (PROMPT_WORDS, RESPONSE_WORDS))
    numbers = random.Random(seed)

    def samples() -> Iterator[bytes]:
        for prompt, replies in zip(cycle(prompts), _grouped(cycle(responses), group), strict=False):
            number = f"{numbers.getrandbits(40):010x}"
            for reply in replies:
                yield json.dumps({"prompt": f"{number} {prompt}", "response": reply}).encode()

    lengths = f"prompts of {_range(PROMPT_WORDS)} words, responses of {_range(RESPONSE_WORDS)}"
    shared = f", {group} responses to each prompt" if group > 1 else ""
    return Workload(islice(samples(), n_samples), f"synthetic: {lengths}{shared}; no two samples are equal")


def of_file(path: Path, n_samples: int | None, *, is_timed: bool) -> Workload:
    """The samples of a file in the format of `rewardserve score`, once, or again and again where `n_samples` or a time ends it.

    Raise `NoSamples`, `OSError`, or `NotContinuable` where the file is no text.
    """
    samples: list[bytes] = []
    left_out: Counter[str] = Counter()
    with path.open("rb") as lines:
        check_encoding(path, lines.peek(4))
        for number, text in enumerate(lines):
            line = read_line(number, text)
            if line.failure is None:
                samples.append(text.strip())
            else:
                left_out[line.failure.code] += 1
    if not samples:
        reasons = ", ".join(f"{code} {n}" for code, n in sorted(left_out.items()))
        raise NoSamples(f"{path} has no sample as in POST /score ({reasons or 'it is empty'}).")
    is_repeated = is_timed if n_samples is None else n_samples > len(samples)
    sent = cycle(samples) if is_repeated else iter(samples)
    times = ", from the start again after the last: the score cache answers repeats" if is_repeated else ""
    return Workload(islice(sent, n_samples), f"{len(samples):,} samples of {path}{times}", left_out)


def _texts(rng: random.Random, low: int, high: int) -> Sequence[str]:
    """Texts of low..high words, log-normal: the median is the geometric mean, the range two deviations."""
    middle, deviation = math.log(low * high) / 2, math.log(high / low) / 4
    lengths = (round(min(max(rng.lognormvariate(middle, deviation), low), high)) for _ in range(_N_TEXTS))
    return [" ".join(rng.choices(_WORDS, k=n)) for n in lengths]


def _grouped(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while True:
        yield list(islice(texts, size))


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]} to {ends[1]}"
