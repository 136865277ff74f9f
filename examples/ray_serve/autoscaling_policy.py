"""How many replicas there should be, from the tokens that wait at each. Knows nothing of Ray but the names that it uses.

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
        """What Ray asks every policy for: a number of replicas, and what to remember (nothing)."""
        waiting = sum(context.aggregated_metrics.get(QUEUE_TOKENS, {}).values())
        return math.ceil(waiting / self._tokens_per_replica), {}
