"""Reward models of the gym: a frozen random network and a linear head, the shape of the models that the service serves.

The network pools word vectors that reflect the classes, as those of a pretrained network reflect meaning; each seed
gives another network. A head is fitted to labelled pairs by maximum likelihood under Bradley & Terry 1952. The reward
models have no access to the gold reward or to the labeller's biases.

`B` responses, `N` pairs, `V` symbols, `E` word vector, `D` hidden, `H` heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from gym.labeller import PLANTED, Biases, LabelledPairs, pairs
from gym.policy import BASE_LENGTH, CAP, Policy
from gym.responses import FloatArray, Responses, from_rows
from gym.vocabulary import CLASSES, SIZE
from rewardserve.model.scorer import BatchScores, ScorerError, TokenBatch

WIDTH: Final = 64
VECTOR: Final = 32
WORD_NOISE: Final = 0.2  # sd of a word's vector around that of its class, which has sd 1
MIX_SCALE: Final = 0.8
LENGTH_SCALE: Final = 2.0  # stands in for position embeddings
SHARE_SCALE: Final = 6.0  # brings mean-pooled vectors to the order of 1
RIDGE: Final = 1.0


@dataclass(frozen=True)
class Backbone:
    """Frozen random network from a bag of words to a hidden state. It ignores EOS."""

    vectors_VE: FloatArray
    mix_ED: FloatArray
    length_D: FloatArray
    bias_D: FloatArray

    def hidden_BD(self, responses: Responses) -> FloatArray:
        """tanh of the mean word vector and the log length, mixed."""
        counts_BV = responses.counts_BV[:, :-1]
        tokens_B1 = counts_BV.sum(axis=1, keepdims=True) + 1.0
        mean_BE = SHARE_SCALE * (counts_BV @ self.vectors_VE) / tokens_B1
        length_BD = np.log(tokens_B1 / BASE_LENGTH) * self.length_D
        return np.asarray(np.tanh(mean_BE @ self.mix_ED + length_BD + self.bias_D))


def backbone(seed: int | Sequence[int]) -> Backbone:
    """Create the network of this seed."""
    rng = np.random.default_rng(seed)
    of_class = [rng.normal(size=(1, VECTOR)).repeat(len(words), axis=0) for words in CLASSES.values()]
    vectors_VE = np.concatenate(of_class) + WORD_NOISE * rng.normal(size=(SIZE - 1, VECTOR))
    mix_ED = rng.normal(size=(VECTOR, WIDTH)) * MIX_SCALE / VECTOR**0.5
    return Backbone(vectors_VE, mix_ED, LENGTH_SCALE * rng.normal(size=WIDTH), rng.normal(size=WIDTH))


def fit_head_D(network: Backbone, labelled: LabelledPairs, ridge: float = RIDGE, max_steps: int = 50) -> FloatArray:
    """Head that maximises the weighted Bradley-Terry log likelihood less ridge/2 times its squared norm, by Newton's method.

    Raise RuntimeError if Newton does not converge within `max_steps`.
    """
    won_N1 = np.where(labelled.left_won_N, 1.0, -1.0)[:, None]
    margin_ND = won_N1 * (network.hidden_BD(labelled.left) - network.hidden_BD(labelled.right))
    weight_N = labelled.weight_N
    head_D = np.zeros(margin_ND.shape[1])
    for _ in range(max_steps):
        p_lost_N = 1.0 / (1.0 + np.exp(margin_ND @ head_D))
        gradient_D = margin_ND.T @ (weight_N * p_lost_N) - ridge * head_D
        curvature_DD = (margin_ND.T * (weight_N * p_lost_N * (1.0 - p_lost_N))) @ margin_ND + ridge * np.eye(
            len(head_D)
        )
        change_D = np.linalg.solve(curvature_DD, gradient_D)
        head_D = head_D + change_D
        if np.abs(change_D).max() < 1e-9:
            return head_D
    raise RuntimeError(
        f"Newton has not converged after {max_steps} steps: the last change was {np.abs(change_D).max()}"
    )


@dataclass(frozen=True)
class RewardModel:
    """One backbone with one head."""

    network: Backbone
    head_D: FloatArray

    def scores_B(self, responses: Responses) -> FloatArray:
        """Raw score of every response."""
        return np.asarray(self.network.hidden_BD(responses) @ self.head_D)


def reward_model(network: Backbone, labelled: LabelledPairs, ridge: float = RIDGE) -> RewardModel:
    """Fit a head on the network to these pairs."""
    return RewardModel(network, fit_head_D(network, labelled, ridge))


class ScoresResponses(Protocol):
    """One reward model."""

    def scores_B(self, responses: Responses) -> FloatArray:
        """Raw score of every response."""
        ...


@dataclass(frozen=True)
class MultiModelScorer:
    """Scorer over several reward models by name, with a faster path for arrays that returns the same numbers."""

    models: Mapping[str, ScoresResponses]
    max_tokens: int = CAP
    pads_rows: bool = False
    shares_prefixes: bool = False
    concurrency: int = 1
    streams: bool = False
    is_alive: bool = True

    @property
    def heads(self) -> tuple[str, ...]:
        """Names in the order of the columns of `scores_BH`."""
        return tuple(self.models)

    def scores_BH(self, responses: Responses) -> FloatArray:
        """Raw scores of all heads for a batch that is already an array."""
        return np.stack([model.scores_B(responses) for model in self.models.values()], axis=1)

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `ScorerError` for a row that is too long or an id outside the vocabulary."""
        if max(map(len, batch.rows)) > self.max_tokens or not all(0 <= t < SIZE for row in batch.rows for t in row):
            raise ScorerError(f"a row has at most {self.max_tokens} tokens, each from 0 to {SIZE - 1}")
        scores_BH = self.scores_BH(from_rows(batch.rows, self.max_tokens))
        rows = tuple(dict(zip(self.heads, row, strict=True)) for row in scores_BH.tolist())
        return BatchScores(rows, tokens_computed=batch.n_tokens)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def seed_models(
    base: Policy,
    seed: int,
    biases: Biases = PLANTED["human"],
    n_members: int = 4,
    n_pairs: int = 6_000,
    n_audit: int = 400,
) -> MultiModelScorer:
    """Reward models of one gym run, each on a separate backbone.

    `reward` is the one that RL optimises. `member_1` and so on complete an ensemble of `n_members`, and `held_out` judges
    from outside it: all three kinds are fitted to the same biased labels. `audit` is fitted to `n_audit` pairs whose
    labels have the noise but no bias.
    """
    rng = np.random.default_rng([seed, 0])
    labelled = pairs(base, n_pairs, biases, rng)
    audited = pairs(base, n_audit, PLANTED["none"], rng)
    names = ["reward", *(f"member_{i}" for i in range(1, n_members)), "held_out"]
    models = {name: reward_model(backbone([seed, i]), labelled) for i, name in enumerate(names, start=1)}
    return MultiModelScorer({**models, "audit": reward_model(backbone([seed, len(names) + 1]), audited)})
