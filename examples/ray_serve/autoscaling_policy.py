"""Choose the number of replicas from the tokens that wait at each. Knows only those names of Ray that it uses.

Ray bounds the answer by `min_replicas` and `max_replicas`, and holds it back for `upscale_delay_s` and `downscale_delay_s`.
"""

from __future__ import annotations

import math
from typing import Any

QUEUE_TOKENS = "queue_tokens"


class QueueLengthPolicy:
    """One replica for every `tokens_per_replica` that wait."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas and the state of the policy (none), as Ray requires."""
        waiting = sum(context.aggregated_metrics.get(QUEUE_TOKENS, {}).values())
        return math.ceil(waiting / self._tokens_per_replica), {}
