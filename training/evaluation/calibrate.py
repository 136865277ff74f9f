"""Fit the frozen statistics of a reward: level, scale, temperature, caps, length curve, reference quantiles.

All of them are fitted on held-out responses. Pure functions of arrays; independent of networks and files. Shapes: N
responses, P pairs, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewardserve.model.calibration import REFERENCE_QUANTILES, Calibration, HeadCalibration, TraitCalibration
from rewardserve.model.scorer import DISTANCE
from rewardserve.model.traits import TRAITS

Floats = NDArray[np.float64]
CAP_QUANTILES = (0.005, 0.995)
# Beyond these multiples of the typical difference a temperature makes no practical difference.
_RANGE = (1e-3, 1e3)


_KNOTS = 40
_SPAN = 0.3
"""Share of the responses that enter the fit of one point of the length curve."""
_ENDS = (0.01, 0.99)
"""Quantiles of the log length at the ends of the curve: beyond them there are too few responses."""
_USUAL_REPETITION = 0.99


class NothingToFit(Exception):
    """Too few held-out responses, or scores that do not differ."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """N held-out responses and P held-out pairs of them.

    `raw_N` is the combined score, `tokens_N` the number of tokens of each response. `diff_P` is chosen minus rejected.
    `heads_NH` are the scores of each head, `head_diffs` its differences on the pairs that train it: its differences on
    other pairs do not show its confidence. `traits_NT` are `rewardserve.model.traits.TRAITS`, with the phrases of
    `lexicon`.
    """

    raw_N: Floats
    tokens_N: Floats
    diff_P: Floats
    head_names: Sequence[str]
    heads_NH: Floats
    head_diffs: Sequence[Floats]
    traits_NT: Floats
    lexicon: str


def fit(held_out: HeldOut, *, data_digest: str) -> Calibration:
    """Fit the calibration of a reward on held-out responses. Raise `NothingToFit`."""
    raw_N, tokens_N = held_out.raw_N, held_out.tokens_N
    if len(raw_N) < 2 or not np.ptp(raw_N) > 0:
        raise NothingToFit(
            f"{len(raw_N)} held-out responses with {len(np.unique(raw_N))} different scores are too few for a calibration. "
            "Raise data.eval_fraction, or name data.eval_sources."
        )
    mean, std = float(raw_N.mean()), float(raw_N.std())
    normalised_N, log_N = (raw_N - mean) / std, np.log(tokens_N)
    low, high = (float(q) for q in np.quantile(normalised_N, CAP_QUANTILES))
    return Calibration(
        mean=mean,
        std=std,
        temperature=temperature(held_out.diff_P),
        cap_low=low if low < high else None,
        cap_high=high if low < high else None,
        length_slope=slope(log_N, normalised_N),
        length_curve=length_curve(log_N, normalised_N),
        log_length=float(np.median(log_N)),
        repetition_high=float(np.quantile(held_out.traits_NT[:, TRAITS.index("repetition")], _USUAL_REPETITION)),
        heads=tuple(_heads(held_out)) if len(held_out.head_names) > 1 else (),
        traits=tuple(
            TraitCalibration(name, float(column.mean()), float(column.std()))
            for name, column in zip(TRAITS, held_out.traits_NT.T, strict=True)
        ),
        lexicon=held_out.lexicon,
        quantiles=tuple(
            (p, float(q)) for p, q in zip(REFERENCE_QUANTILES, np.quantile(raw_N, REFERENCE_QUANTILES), strict=True)
        ),
        n=len(raw_N),
        data_digest=data_digest,
    )


def with_distance(calibration: Calibration, hidden_reference: str, distance_N: Floats) -> Calibration:
    """Add the distances of the same responses from the hidden reference with this digest."""
    distance = TraitCalibration(DISTANCE, float(distance_N.mean()), float(distance_N.std()))
    return replace(calibration, hidden_reference=hidden_reference, traits=(*calibration.traits, distance))


def _heads(held_out: HeldOut) -> list[HeadCalibration]:
    columns = zip(held_out.head_names, held_out.heads_NH.T, held_out.head_diffs, strict=True)
    return [
        HeadCalibration(name, float(score_N.mean()), float(score_N.std()), temperature(diff_P))
        for name, score_N, diff_P in columns
    ]


def head_weights(scores_NH: Floats, targets_H: Sequence[float]) -> tuple[float, ...]:
    """Weights `target_h / std_h`: with these, the raw score is the weighted sum of the *normalised* heads.

    The constant `-sum(target_h * mean_h / std_h)` is left to the calibration's mean. Raise `NothingToFit`.
    """
    std_H = scores_NH.std(axis=0)
    if not (std_H > 0).all():
        raise NothingToFit(f"a head gives every held-out response the same score: standard deviations {std_H.tolist()}")
    return tuple(float(t / s) for t, s in zip(targets_H, std_H, strict=True))


def temperature(diff_P: Floats) -> float:
    """The T > 0 that minimises the mean negative log-likelihood of the labels under `sigmoid(diff / T)`.

    The labels are Platt's (1999): `(n + 1) / (n + 2)` instead of 1 for n pairs; with labels of 1, pairs that are all won
    would give T = 0. Convex in a = 1/T: the derivative `mean(diff * (sigmoid(a diff) - label))` rises with a, so
    bisection finds its root. If most pairs are lost there is no root, and the end of the range is returned.
    """
    scale = float(np.abs(diff_P).mean()) if len(diff_P) else 0.0
    if scale == 0:
        return 1.0
    low, high = 1 / _RANGE[1], 1 / _RANGE[0]
    for _ in range(200):
        middle = math.sqrt(low * high)
        if _nll_slope(diff_P / scale, middle) < 0:
            low = middle
        else:
            high = middle
    return scale / math.sqrt(low * high)


def slope(x_N: Floats, y_N: Floats) -> float:
    """Least-squares slope of y on x; 0 where x does not vary."""
    centred_N = x_N - x_N.mean()
    spread = float((centred_N**2).sum())
    return float((centred_N * (y_N - y_N.mean())).sum() / spread) if spread > 0 else 0.0


def length_curve(log_N: Floats, normalised_N: Floats) -> tuple[tuple[float, float], ...]:
    """E[normalised score | log length] at knots, by locally weighted linear regression (Cleveland 1979).

    Tricube weights over the nearest 30 % of the responses. If lengths do not vary there is one knot.
    """
    low, high = np.quantile(log_N, _ENDS)
    n_near = max(2, math.ceil(_SPAN * len(log_N)))
    knots = np.linspace(low, high, _KNOTS) if low < high else np.array([low])
    return tuple((float(knot), _local_fit(float(knot), log_N, normalised_N, n_near)) for knot in knots)


def _local_fit(at: float, x_N: Floats, y_N: Floats, n_near: int) -> float:
    distance_N = np.abs(x_N - at)
    reach = float(np.partition(distance_N, n_near - 1)[n_near - 1])
    if reach <= 0.0:  # many responses have exactly this length
        return float(y_N[distance_N == 0.0].mean())
    weight_N = np.clip(1.0 - (distance_N / reach) ** 3, 0.0, None) ** 3
    if (
        not weight_N.any()
    ):  # all of the nearest are equally far, where the weights end: few lengths, and `at` between two
        weight_N = (distance_N <= reach).astype(float)
    total = weight_N.sum()
    x, y = float((weight_N * x_N).sum() / total), float((weight_N * y_N).sum() / total)
    spread = float((weight_N * (x_N - x) ** 2).sum())
    tilt = float((weight_N * (x_N - x) * (y_N - y)).sum() / spread) if spread > 0 else 0.0
    return y + tilt * (at - x)


def _nll_slope(diff_P: Floats, a: float) -> float:
    label = (len(diff_P) + 1) / (len(diff_P) + 2)
    return float((diff_P * (sigmoid(a * diff_P) - label)).mean())


def sigmoid(x: Floats) -> Floats:
    """`1 / (1 + exp(-x))`; through tanh, which never overflows."""
    squashed: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return squashed
