"""Where hidden states lie, against the paper's formula and the textbook's distance, both written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardserve.model.scorer import DISTANCE
from rewardserve.training.evaluation import calibrate, hidden_statistics
from rewardserve.training.evaluation.calibrate import NothingToFit
from tests.support.checkpoints import CALIBRATION

SEEDS = st.integers(0, 2**32 - 1)


def sample(n, width, seed=0, decay=1.0):
    """Of a normal distribution around somewhere, its directions mixed, each narrower than the one before."""
    rng = np.random.default_rng(seed)
    mixed, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return rng.normal(size=width) + (rng.normal(size=(n, width)) * np.exp(-decay * np.arange(width))) @ mixed


def papers_estimator(x_NK):
    """Ledoit & Wolf (2004): m, d^2, b^2 and S* of section 3, sample by sample, with |A|^2 = tr(A A') / p."""

    def squared_norm(a_KK):
        return sum(a_KK[i, j] ** 2 for i in range(len(a_KK)) for j in range(len(a_KK))) / len(a_KK)

    n, p = x_NK.shape
    s_KK = sum(np.outer(x, x) for x in x_NK) / n
    m = sum(s_KK[i, i] for i in range(p)) / p
    d2 = squared_norm(s_KK - m * np.eye(p))
    b2 = min(sum(squared_norm(np.outer(x, x) - s_KK) for x in x_NK) / n**2, d2)
    return b2 / d2 * m * np.eye(p) + (d2 - b2) / d2 * s_KK


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), k=st.integers(2, 6), seed=SEEDS, decay=st.floats(0.0, 2.0))
def test_the_shrunk_covariance_is_the_papers(n, k, seed, decay):
    x_NK = sample(n, k, seed, decay)
    centred_NK = x_NK - x_NK.mean(axis=0)
    np.testing.assert_allclose(
        hidden_statistics.ledoit_wolf(centred_NK),
        papers_estimator(centred_NK),
        rtol=1e-9,
        atol=1e-12 * (centred_NK**2).max(),
    )


def test_few_samples_are_shrunk_much_and_many_hardly():
    few, many = (x - x.mean(axis=0) for x in (sample(10, 6), sample(20_000, 6)))
    sample_few, sample_many = (x.T @ x / len(x) for x in (few, many))
    condition = np.linalg.cond
    assert condition(hidden_statistics.ledoit_wolf(few)) < 0.1 * condition(sample_few)
    assert condition(hidden_statistics.ledoit_wolf(many)) > 0.5 * condition(sample_many)


def test_one_direction_is_as_wide_as_it_is():
    x = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    np.testing.assert_allclose(hidden_statistics.ledoit_wolf(x), [[2.5]])


@pytest.mark.parametrize(("n", "width", "k"), [(150, 40, 15), (100, 4, 4), (120, 300, 12), (1000, 90, 64)])
def test_the_distance_is_mahalanobis_in_the_leading_principal_components(n, width, k):
    x_ND, others = sample(n, width, decay=0.05), sample(7, width, seed=9, decay=0.0)
    reference = hidden_statistics.fit(x_ND)
    assert reference.whitening_KD.shape == (k, width)
    mean = x_ND.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x_ND.T))
    leading = vectors[:, np.argsort(-values)[:k]]
    precision = np.linalg.inv(papers_estimator((x_ND - mean) @ leading))
    expected = [math.log((h - mean) @ leading @ precision @ leading.T @ (h - mean)) for h in others]
    np.testing.assert_allclose(reference.log_distance(torch.tensor(others)).numpy(), expected, atol=1e-3)


def test_of_the_samples_themselves_the_squared_distance_is_about_the_number_of_directions():
    x_ND = sample(2000, 30, decay=0.0)
    squared = hidden_statistics.fit(x_ND).log_distance(torch.tensor(x_ND)).exp()
    assert float(squared.mean()) == pytest.approx(30, rel=0.05)
    further = hidden_statistics.fit(x_ND).log_distance(torch.tensor(x_ND + 3.0)).exp()
    assert float(further.mean()) > 5 * float(squared.mean())


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (sample(99, 8), "99 held-out responses are too few"),
        (np.zeros((0, 8)), "0 held-out responses are too few"),
        (np.ones((200, 8)), "do not vary"),
        (np.full((200, 8), np.nan), "are not finite"),
    ],
)
def test_there_must_be_something_to_fit(states, words):
    with pytest.raises(NothingToFit, match=words):
        hidden_statistics.fit(states)


def test_a_calibration_tells_mean_and_deviation_of_the_log_distance():
    told = calibrate.with_distance(CALIBRATION, "sha256:1", np.array([1.0, 2.0, 6.0]))
    *before, distance = told.traits
    assert tuple(before) == CALIBRATION.traits
    assert (distance.name, distance.mean, distance.std) == (DISTANCE, 3.0, pytest.approx((14 / 3) ** 0.5))
    assert told.hidden_reference == "sha256:1"
