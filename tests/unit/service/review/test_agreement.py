"""Agreement of annotators, against published figures and a count of all pairs of values."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.review.agreement import agreement, krippendorff_alpha

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, missing values.
PUBLISHED = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]


def test_the_published_example():
    assert krippendorff_alpha([list(unit) for unit in PUBLISHED]) == pytest.approx(0.743, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=12))
def test_alpha_is_observed_against_expected_disagreement(units):
    """Pairs of values in a unit, each weighted by 1 / (values - 1), against all ordered pairs of pairable values."""
    pairable = [value for unit in units if len(unit) > 1 for value in unit]
    n = len(pairable)
    observed = sum((a != b) / (len(unit) - 1) for unit in units if len(unit) > 1 for a, b in permutations(unit, 2))
    expected = sum(a != b for a, b in permutations(pairable, 2)) / (n - 1) if n > 1 else 0.0
    alpha = krippendorff_alpha(units)
    if expected == 0.0:
        assert alpha is None
    else:
        assert alpha == pytest.approx(1.0 - observed / expected)


def test_raw_agreement_and_counts():
    found = agreement([{"a": "tie", "b": "tie"}, {"a": "earlier", "b": "later"}, {"a": "earlier"}, {}])
    assert (found.n_labelled, found.n_labelled_twice, found.raw) == (3, 2, 0.5)
    assert found.by_annotator == {"a": 3, "b": 2}
    assert agreement([{"a": "tie"}]).raw is None
