"""Fits the frozen statistics of a reward: level, scale, temperature, caps, length slope, reference quantiles.

Everything is fitted on held-out responses. Pure functions of arrays; knows no network and no file.
Shapes: N responses, P pairs, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.calibration import REFERENCE_QUANTILES, Calibration

Floats = NDArray[np.float64]
CAP_QUANTILES = (0.001, 0.999)
# A temperature beyond these multiples of the typical difference says "always sure" or "never sure" all the same.
_RANGE = (1e-3, 1e3)


class NothingToFit(Exception):
    """Too few held-out responses, or scores that do not differ."""


def fit(raw_N: Floats, tokens_N: Floats, diff_P: Floats, *, data_digest: str) -> Calibration:
    """The calibration of raw scores on held-out responses, `diff_P` being chosen minus rejected on held-out pairs.

    `tokens_N` counts each response's tokens. Raise `NothingToFit`.
    """
    if len(raw_N) < 2 or not np.ptp(raw_N) > 0:
        raise NothingToFit(
            f"{len(raw_N)} held-out responses with {len(np.unique(raw_N))} different scores: nothing to calibrate on. "
            "Raise data.eval_fraction, or name data.eval_sources."
        )
    mean, std = float(raw_N.mean()), float(raw_N.std())
    normalised_N = (raw_N - mean) / std
    low, high = (float(q) for q in np.quantile(normalised_N, CAP_QUANTILES))
    return Calibration(
        mean=mean,
        std=std,
        temperature=temperature(diff_P),
        cap_low=low if low < high else None,
        cap_high=high if low < high else None,
        length_slope=slope(np.log(tokens_N), normalised_N),
        quantiles=tuple(
            (p, float(q)) for p, q in zip(REFERENCE_QUANTILES, np.quantile(raw_N, REFERENCE_QUANTILES), strict=True)
        ),
        n=len(raw_N),
        data_digest=data_digest,
    )


def head_weights(scores_NH: Floats, targets_H: Sequence[float]) -> tuple[float, ...]:
    """`target_h / std_h`: with these, the raw score is the weighted sum of the *normalised* heads.

    The constant `-sum(target_h * mean_h / std_h)` is left to the calibration's mean. Raise `NothingToFit`.
    """
    std_H = scores_NH.std(axis=0)
    if not (std_H > 0).all():
        raise NothingToFit(f"a head gives every held-out response the same score: standard deviations {std_H.tolist()}")
    return tuple(float(t / s) for t, s in zip(targets_H, std_H, strict=True))


def temperature(diff_P: Floats) -> float:
    """The T > 0 that minimises the mean negative log-likelihood of the labels under `sigmoid(diff / T)`.

    The labels are Platt's (1999): `(n + 1) / (n + 2)` instead of 1 for n pairs, or pairs that are all won would ask
    for T = 0. Convex in a = 1/T: the derivative `mean(diff * (sigmoid(a diff) - label))` rises with a, so bisection
    finds its root. Where most are lost there is none, and the end of the range is returned.
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
    """The least-squares slope of y on x; 0 where x does not vary."""
    centred_N = x_N - x_N.mean()
    spread = float((centred_N**2).sum())
    return float((centred_N * (y_N - y_N.mean())).sum() / spread) if spread > 0 else 0.0


def _nll_slope(diff_P: Floats, a: float) -> float:
    label = (len(diff_P) + 1) / (len(diff_P) + 2)
    return float((diff_P * (sigmoid(a * diff_P) - label)).mean())


def sigmoid(x: Floats) -> Floats:
    """`1 / (1 + exp(-x))`; through tanh, which never overflows."""
    squashed: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return squashed
