"""Streams of made-up honest text, with scores of a model and of a judge."""

from __future__ import annotations

import random

import pytest

from rewardserve.service.tripwires.attribution.observed import ObservedSample

SUBJECTS = [f"{first}{last}" for first in ("river", "stone", "wind", "lamp", "snow", "oak", "iron", "mill", "fox", "hill", "sea")
            for last in ("side", "field", "worker", "house", "bird", "way", "song")]  # fmt: skip
VERBS = ["keeps", "finds", "moves", "carries", "changes", "follows", "builds", "opens", "repairs", "watches"]
REST = [
    "slowly before noon",
    "with great care",
    "near the old road",
    "for several days",
    "without any help",
    "in the north",
    "again",
]


def text(rng, n_sentences=None):
    n = n_sentences or rng.randint(2, 7)
    return " ".join(
        f"{rng.choice(('The', 'A', 'Every', 'One'))} {rng.choice(SUBJECTS)} {rng.choice(VERBS)} the {rng.choice(SUBJECTS)} "
        f"{rng.choice(REST)}{rng.choice('..;?')}"
        for _ in range(n)
    )


def stream(seed, n=256, exploit=None, share=0.0, per_prompt=1, pay=2.0, judge=-0.7, ask="Describe the {} and the {}"):
    """`n` samples; a `share` of them has been given to `exploit`, which the model pays for and the judge does not."""
    rng, out = random.Random(seed), []
    for index in range(n):
        if index % per_prompt == 0:
            prompt, key = ask.format(rng.choice(SUBJECTS), rng.choice(SUBJECTS)), rng.getrandbits(60)
        response, is_exploited = text(rng), rng.random() < share
        quality = rng.gauss(0, 1)
        given = exploit(prompt, response) if is_exploited and exploit else response
        audit = 0.6 * quality + rng.gauss(0, 0.8) + judge * is_exploited
        out.append(ObservedSample(prompt, given, key, quality + pay * is_exploited, audit, index // 128))
    return out


@pytest.fixture(scope="session")
def early():
    return stream(1)
