"""Scaling law of over-optimisation: gold gained by the distance from the base policy.

Gao et al. 2210.10760 find R(d) = d (alpha - beta log d) for RL, where d = sqrt(KL(policy || base)), and another form, d
(alpha - beta d), for best-of-n. This is the first. Independent of the source of the points.

`N` points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gym.responses import FloatArray


@dataclass(frozen=True, slots=True)
class Scaling:
    """R(d) = d (alpha - beta log d), and the share of the variance of R that it explains on the points of the fit."""

    alpha: float
    beta: float
    explained: float

    def gain_N(self, kl_N: FloatArray) -> FloatArray:
        """Gold above the start at these KLs, all above zero."""
        d_N = np.sqrt(kl_N)
        return np.asarray(d_N * (self.alpha - self.beta * np.log(d_N)))

    @property
    def peak_d(self) -> float:
        """Maximum of R: dR/dd = alpha - beta - beta log d = 0. NaN where beta <= 0: there is no maximum."""
        return float(np.exp(self.alpha / self.beta - 1.0)) if self.beta > 0.0 else float("nan")


def fit_scaling(kl_N: FloatArray, gain_N: FloatArray) -> Scaling:
    """Fit by least squares over points of KL above zero; the form is linear in alpha and beta."""
    d_N = np.sqrt(kl_N)
    terms_N2 = np.stack([d_N, -d_N * np.log(d_N)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(terms_N2, gain_N, rcond=None)
    left_N = gain_N - terms_N2 @ np.array([alpha, beta])
    return Scaling(float(alpha), float(beta), float(1.0 - left_N.var() / gain_N.var()))
