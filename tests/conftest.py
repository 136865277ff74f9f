"""What holds for all tests."""

import os

# Tests share the cores with each other and with the servers that they start; threads of OpenMP spin while they wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's business: time is measured in benchmarks, not in tests.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "repeatable", settings.get_profile("untimed"), derandomize=True, database=None, max_examples=50
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))

pytest.register_assert_rewrite("tests.support.scorer_suite")
