"""Fit the distribution of the hidden states of the held-out responses: their mean and leading directions.

Pure functions of arrays; independent of networks and files. Shapes: N responses, D hidden width, K directions.
"""

from __future__ import annotations

import numpy as np
import torch

from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.training.evaluation.calibrate import Floats, NothingToFit

LEAST_RESPONSES = 100
MOST_DIRECTIONS = 64
RESPONSES_A_DIRECTION = 10


def fit(hidden_ND: Floats) -> HiddenReference:
    """Fit the mean, and a whitening of as many principal components as the responses allow. Raise `NothingToFit`."""
    n, width = hidden_ND.shape
    if n < LEAST_RESPONSES:
        raise NothingToFit(
            f"{n} held-out responses are too few to fit the hidden states; at least {LEAST_RESPONSES} are needed"
        )
    mean_D = hidden_ND.mean(axis=0)
    centred_ND = hidden_ND - mean_D
    if not (centred_ND**2).sum() > 0:  # also true for NaN
        raise NothingToFit("the hidden states of the held-out responses do not vary, or are not finite")
    n_directions = min(MOST_DIRECTIONS, n // RESPONSES_A_DIRECTION, width)
    basis_KD = np.linalg.svd(centred_ND, full_matrices=False)[2][:n_directions]
    root_KK = np.linalg.cholesky(ledoit_wolf(centred_ND @ basis_KD.T))
    return HiddenReference(_float32(mean_D), _float32(np.linalg.solve(root_KK, basis_KD)))


def ledoit_wolf(centred_NK: Floats) -> Floats:
    """Shrunk covariance `rho m I + (1 - rho) S` of Ledoit & Wolf (2004).

    A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate Analysis 88, section 3. S is
    the sample covariance over N and m the mean of its diagonal. With `|A|^2 = tr(A A') / K`, rho is `min(b^2, d^2) /
    d^2`, where `d^2 = |S - m I|^2` and `b^2 = 1/N^2 sum_i |x_i x_i' - S|^2`.
    """
    n, k = centred_NK.shape
    sample_KK = centred_NK.T @ centred_NK / n
    target_KK = np.trace(sample_KK) / k * np.eye(k)
    d2 = ((sample_KK - target_KK) ** 2).sum() / k
    # sum_i |x_i x_i' - S|^2 = sum_i |x_i|^4 / K - N |S|^2: the cross terms sum to S again.
    b2 = (((centred_NK**2).sum(axis=1) ** 2).sum() / n - (sample_KK**2).sum()) / (n * k)
    rho = min(b2, d2) / d2 if d2 > 0 else 1.0
    shrunk_KK: Floats = rho * target_KK + (1.0 - rho) * sample_KK
    return shrunk_KK


def _float32(array: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
