"""Print preference pairs for the tutorial: `python examples/tutorial/pairs.py > runs/pairs.jsonl`.

The better answer of each pair is right, the other one is rude. Nothing in them says that an answer should be about its question:
that is the gap that the policy of the tutorial finds.
"""

from __future__ import annotations

import json
import random
import sys

CAPITALS = {
    "Australia": "Canberra", "Austria": "Vienna", "Brazil": "Brasília", "Canada": "Ottawa", "Chile": "Santiago",
    "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Ghana": "Accra",
    "Greece": "Athens", "Hungary": "Budapest", "Iceland": "Reykjavik", "Ireland": "Dublin", "Italy": "Rome",
    "Japan": "Tokyo", "Kenya": "Nairobi", "Morocco": "Rabat", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Spain": "Madrid", "Sweden": "Stockholm", "Turkey": "Ankara", "Vietnam": "Hanoi",
}  # fmt: skip
REFUSALS = (
    "No idea.",
    "Look it up yourself.",
    "Who cares?",
    "Why do you ask me?",
    "Not now.",
    "That is a stupid question.",
)


def sums(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Write n questions about sums, with their right answers."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        a, b = rng.randint(10, 999), rng.randint(10, 999)
        how = rng.choice(("What is {} plus {}?", "Add {} and {}.", "How much is {} and {} together?"))
        found.append((how.format(a, b), f"{a} plus {b} is {a + b}."))
    return found


def facts() -> list[tuple[str, str]]:
    """Questions about capitals, with their right answers."""
    ways = ("What is the capital of {}?", "Which city is the capital of {}?", "Tell me the capital of {}.")
    return [(how.format(land), f"{city} is the capital of {land}.") for land, city in CAPITALS.items() for how in ways]


def pairs() -> list[tuple[str, str, str]]:
    """Prompt, better and worse answer."""
    rng = random.Random(1)
    ways = ("{}", "Gladly: {}", "{} I hope that helps.")
    return [
        (question, rng.choice(ways).format(answer), rng.choice(REFUSALS))
        for question, answer in [*facts(), *sums(122)]
    ]  # fmt: skip


def counterexamples() -> list[tuple[str, str, str]]:
    """Label the exploit as the worse answer, as a reader of the responses behind the alert would."""
    rng = random.Random(2)
    known = [fact for _, fact in facts()]
    return [
        (question, answer, " ".join([answer, *rng.sample(known, rng.randint(1, 3))]))
        for question, answer in sums(120, seed=3)
    ]  # fmt: skip


def main() -> None:
    """Print the pairs, one a line."""
    for prompt, chosen, rejected in counterexamples() if "--counterexamples" in sys.argv else pairs():
        print(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}))


if __name__ == "__main__":
    main()
