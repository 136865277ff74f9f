"""What holds for all tests."""

import pytest
from hypothesis import settings

# How long an example takes is the machine's business: time is measured in benchmarks, not in tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest.register_assert_rewrite("tests.support.scorer_suite")
