"""Policy: one softmax over the words and EOS, its exact KL to the base, and its optimiser.

Tokens are drawn independently until EOS or the cap. That makes the KL exact, and a run takes seconds. The policy does
not read the prompt. Independent of the source of rewards.

`B` responses, `T` token positions, `V` symbols of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gym.responses import FloatArray, IntArray, Responses
from gym.vocabulary import CLASSES, EOS, SIZE

CAP: Final = 128  # tokens of a response, EOS included
BASE_LENGTH: Final = 40.0  # words, the mean over responses of the base policy
BASE_SHARE: Final[dict[str, float]] = {
    "relevant": 0.35,
    "off_topic": 0.12,
    "filler": 0.17,
    "flattery": 0.009,
    "refusal": 0.005,
    "list": 0.009,
    "cjk": 0.005,
    "concrete": 0.08,
    "glue": 0.102,
    "punctuation": 0.10,
    "odd": 0.05,
}


@dataclass(frozen=True)
class Policy:
    """Distribution over the symbols, drawn from until EOS or the cap."""

    logits_V: FloatArray
    cap: int = CAP

    @property
    def log_probs_V(self) -> FloatArray:
        """Log probability of each symbol at every position."""
        shifted_V = self.logits_V - self.logits_V.max()
        return np.asarray(shifted_V - np.log(np.exp(shifted_V).sum()))

    @property
    def mean_draws(self) -> float:
        """Expected tokens of a response, EOS included: sum over t < cap of P(no EOS yet)."""
        return float(((1.0 - np.exp(self.log_probs_V[-1])) ** np.arange(self.cap)).sum())

    def sample(self, rng: np.random.Generator, prompt_ids_B: IntArray) -> Responses:
        """Sample one response for each prompt."""
        cumulative_V = np.cumsum(np.exp(self.log_probs_V))
        draws_BT = rng.random((len(prompt_ids_B), self.cap)) * cumulative_V[-1]
        tokens_BT = np.searchsorted(cumulative_V, draws_BT, side="right")
        after_end_BT = np.cumsum(tokens_BT == len(self.logits_V) - 1, axis=1) > 0
        return Responses(np.where(after_end_BT, EOS, tokens_BT).astype(np.int64), prompt_ids_B)

    def log_prob_B(self, responses: Responses) -> FloatArray:
        """Log probability of each response under this policy."""
        return np.asarray(responses.counts_BV @ self.log_probs_V)

    def kl(self, base: Policy) -> float:
        """KL(self || base) in nats a response, exact: the draws are independent, so KL a draw times expected draws."""
        log_probs_V = self.log_probs_V
        return float(np.exp(log_probs_V) @ (log_probs_V - base.log_probs_V)) * self.mean_draws


def base_policy() -> Policy:
    """Policy before RL: classes by `BASE_SHARE`, words of a class by Zipf's law (rank to the -1/2)."""
    words = []
    for kind, members in CLASSES.items():
        weights = np.arange(1, len(members) + 1) ** -0.5
        words.append(BASE_SHARE[kind] * weights / weights.sum())
    p_end = _p_end(BASE_LENGTH, CAP)
    words_V = np.concatenate(words)
    return Policy(np.log(np.append(words_V / words_V.sum() * (1.0 - p_end), p_end)))


def _p_end(mean_length: float, cap: int) -> float:
    """EOS probability that gives responses of this mean length, by bisection."""
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        words = float(((1.0 - middle) ** np.arange(1, cap + 1)).sum())
        low, high = (middle, high) if words > mean_length else (low, middle)
    return low


def normalised(rewards_B: FloatArray, group: int) -> FloatArray:
    """Advantages: mean 0 and standard deviation 1 within each run of `group` rewards (all 0 where all are equal)."""
    rewards_GN = rewards_B.reshape(-1, group)
    centred_GN = rewards_GN - rewards_GN.mean(axis=1, keepdims=True)
    return np.asarray(centred_GN / (rewards_GN.std(axis=1, keepdims=True) + 1e-8)).ravel()


def reinforce_gradient_V(policy: Policy, responses: Responses, advantages_B: FloatArray) -> FloatArray:
    """Gradient in the logits of mean(advantage * log probability): REINFORCE, Williams 1992."""
    counts_BV = responses.counts_BV
    draws_B1 = counts_BV.sum(axis=1, keepdims=True)
    score_BV = counts_BV - draws_B1 * np.exp(policy.log_probs_V)
    return np.asarray(advantages_B @ score_BV) / len(responses)


@dataclass(frozen=True)
class Adam:
    """State of Adam (Kingma & Ba 1412.6980), ascending. Each step returns the change and the next state."""

    learning_rate: float
    mean_V: FloatArray
    square_V: FloatArray
    n_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def step(self, gradient_V: FloatArray) -> tuple[FloatArray, Adam]:
        """Change to add to the logits, and the next state of the optimiser."""
        n = self.n_steps + 1
        mean_V = self.beta1 * self.mean_V + (1 - self.beta1) * gradient_V
        square_V = self.beta2 * self.square_V + (1 - self.beta2) * gradient_V**2
        unbiased_mean_V = mean_V / (1 - self.beta1**n)
        unbiased_square_V = square_V / (1 - self.beta2**n)
        change_V = self.learning_rate * unbiased_mean_V / (np.sqrt(unbiased_square_V) + self.epsilon)
        return change_V, replace(self, mean_V=mean_V, square_V=square_V, n_steps=n)


def new_adam(learning_rate: float, size: int = SIZE) -> Adam:
    """State of Adam before its first step."""
    return Adam(learning_rate, np.zeros(size), np.zeros(size))
