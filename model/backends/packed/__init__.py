"""Packed scoring: rows one after the other in one row, without padding, what they have in common computed once.

`tree` finds common beginnings, `layout` says where everything lies and who attends to what, `attention` and `kernels`
do it inside the library's own models, `last_layer` leaves out what nobody reads, `prefixes` keeps what comes again.
"""

from rewardserve.model.backends.packed.attention import UnsupportedArchitecture
from rewardserve.model.backends.packed.scorer import PackedScorer

__all__ = ["PackedScorer", "UnsupportedArchitecture"]
