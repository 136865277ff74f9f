"""Configuration of all tests: threads, Hypothesis profiles, sweeps."""

import os

# Tests share the cores with one another and with their servers; threads of OpenMP spin while they wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections import defaultdict

import pytest
import structlog
from hypothesis import HealthCheck, settings

# The time of an example depends on the machine: time is measured in benchmarks, not in tests.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A run that others wait for fails by a change, not by an example that chance has found: `make test-fuzz` draws new ones.
settings.register_profile("same", settings.get_profile("new"), derandomize=True, database=None)
settings.register_profile("same 50", settings.get_profile("same"), max_examples=50)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

pytest.register_assert_rewrite("tests.support.scorer_suite")


@pytest.fixture(autouse=True)
def _log_configuration():
    """Keep the log as it was: a test may run a command that silences it."""
    known = structlog.get_config()
    yield
    structlog.configure(**known)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage while tests are imported: there is hardly any, and each look at all of it takes half a second.

    The imported modules and the tests stay out of later collections.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
