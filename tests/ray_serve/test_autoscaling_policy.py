"""How many replicas the policy wants. Needs no Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from examples.ray_serve.autoscaling_policy import QUEUE_TOKENS, QueueLengthPolicy


@pytest.mark.parametrize(
    ("waiting", "wanted"), [([], 0), ([0.0], 0), ([1.0], 1), ([1000.0], 1), ([1000.0, 1.0], 2), ([0.0, 2500.0], 3)]
)
def test_there_is_one_replica_for_every_threshold_of_tokens_that_wait_anywhere(waiting, wanted):
    context = SimpleNamespace(aggregated_metrics={QUEUE_TOKENS: dict(enumerate(waiting))})
    assert QueueLengthPolicy(tokens_per_replica=1000)(context) == (wanted, {})


def test_before_the_first_replica_has_spoken_nothing_is_wanted():
    assert QueueLengthPolicy(tokens_per_replica=1000)(SimpleNamespace(aggregated_metrics={})) == (0, {})
