"""A policy that learns to exploit the reward model of the tutorial: `python examples/tutorial/policy.py`.

For ten steps it answers as it should. Then it adds more and more facts about capitals, because they are paid whatever the
question was. A real policy finds such a text by reinforcement learning; this one is given it, so that the tutorial takes a minute.
"""

from __future__ import annotations

import random
from statistics import fmean

from pairs import facts, sums

from rewardserve_client import RewardClient

HONEST_STEPS, STEPS, SAMPLES = 10, 20, 64


def main() -> None:
    """Send the samples of every step, and print their mean reward."""
    rng = random.Random(7)
    known = [fact for _, fact in facts()]
    with RewardClient() as client:
        for step in range(STEPS):
            most = max(0, step - HONEST_STEPS + 1)
            samples = [
                {"prompt": question, "response": " ".join([answer, *rng.sample(known, min(3, rng.randint(0, most)))])}
                for question, answer in sums(SAMPLES, seed=100 + step)
            ]
            rewards = [each for each in client.score(samples, run="tutorial", step=step).rewards if each is not None]
            words = fmean(len(sample["response"].split()) for sample in samples)
            print(f"step {step:2}  reward {fmean(rewards):5.2f}  words {words:4.1f}", flush=True)


if __name__ == "__main__":
    main()
