"""Configuration of all tests: threads, Hypothesis profiles, sweeps."""

import os

# Tests share the cores with one another and with their servers; threads of OpenMP spin while they wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

# The time of an example depends on the machine: time is measured in benchmarks, not in tests.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "repeatable", settings.get_profile("untimed"), derandomize=True, database=None, max_examples=50
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))

pytest.register_assert_rewrite("tests.support.scorer_suite")


def pytest_collection_modifyitems(config, items):
    """Keep `n` evenly spaced cases of each test that is marked `sweep(n)`; a test named on the command line keeps all.

    SWEEPS=all keeps all, SWEEPS=1 at most one of each.
    """
    choice = os.environ.get("SWEEPS", "")
    if choice == "all" or any("::" in argument for argument in config.args):
        return
    cases = defaultdict(list)
    for item in items:
        if (sweep := item.get_closest_marker("sweep")) is not None:
            n = min(sweep.args[0], 1) if choice == "1" else sweep.args[0]
            cases[item.parent.nodeid, item.originalname, n].append(item)
    dropped = set()
    for (*_, n), group in cases.items():
        n_kept = min(n, len(group))
        dropped.update(set(group) - {group[i * len(group) // n_kept] for i in range(n_kept)})
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]
