"""Packed scoring: the rows of a batch form one packed row without padding, and common prefixes are computed once.

`tree` finds common prefixes, `layout` places the segments and plans their attention, `attention` and `kernels` compute it
inside transformers' models, `last_layer` limits the last layer to the scored tokens, `prefix_cache` keeps prefixes between
batches.
"""

from rewardserve.model.backends.packed.attention import UnsupportedArchitecture
from rewardserve.model.backends.packed.scorer import PackedScorer

__all__ = ["PackedScorer", "UnsupportedArchitecture"]
