"""The figures of `benchmarks.members`, against counting."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from benchmarks import members
from benchmarks.members import ARMS, FIGURES, best_of


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_best_of_n_is_the_mean_over_all_choices(n):
    rng = np.random.default_rng(0)
    score, gold = rng.normal(size=7), rng.normal(size=7)
    place = gold.argsort().argsort() / 6
    wanted = [place[max(chosen, key=score.__getitem__)] for chosen in combinations(range(7), n)]
    assert best_of(score, gold, n) == pytest.approx(np.mean(wanted))


def test_changes_are_against_the_first_arm_over_the_same_groups():
    groups = {f"g{i}": [0.1 * i] for i in range(9)}
    better = {group: [value + 0.2] for group, (value,) in groups.items()}
    found = {(name, figure): groups if i == 0 else better for i, name in enumerate(ARMS) for figure in FIGURES}
    first, second = members.table_of(found, 50).splitlines()[2:4]
    assert first.startswith("| one head | 0.400 (+0.000 [+0.000, +0.000])")
    assert "0.600 (+0.200 [+0.200, +0.200])" in second
