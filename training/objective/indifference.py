"""Correlation of scores with variables that a score must not pay for, as a part of the loss.

Moments of a batch are pooled with those of other ranks and of the latest pairs, so that the correlation of a small batch is that of
`memory` pairs. Independent of networks and text, except `with_variables`. Shapes: P pairs, H heads, V variables, 6 moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log

import torch
from torch import Tensor

from rewardserve.model.encoding import Encoder
from rewardserve.model.traits.traits import foreign_script_share, markup
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.settings.validation import ConfigError

VARIABLES: dict[str, Callable[[int, str, str], float]] = {
    "length": lambda n_tokens, prompt, response: log(max(n_tokens, 1)),
    "markup": lambda n_tokens, prompt, response: markup(response),
    "script": lambda n_tokens, prompt, response: foreign_script_share(prompt, response),
}
"""Name of a variable -> its value from the tokens of the response, the prompt and the response."""

_LEAST_VARIANCE = 1e-12


def with_variables(table: FeedbackTable, encoder: Encoder, names: Sequence[str]) -> FeedbackTable:
    """The table with the values of these variables in each sequence. Raise `ConfigError` for one in which no pair differs."""
    if not names:
        return table
    sequences = tuple(replace(s, variables=_values(s, encoder, names)) for s in table.sequences)
    for v, name in enumerate(names):
        differs = any(
            sequences[c].variables[v] != sequences[r].variables[v]
            for c, r in zip(table.chosen, table.rejected, strict=True)
        )
        if not differs:
            raise ConfigError(
                f"indifference.{name} would do nothing: in no training pair do the responses differ in {name}. Leave it out"
                f"{' (and length_head.correlation)' if name == 'length' else ''}."
            )
    return replace(table, sequences=sequences)


def _values(sequence: TokenSequence, encoder: Encoder, names: Sequence[str]) -> tuple[float, ...]:
    prompt, response = encoder.texts(sequence.sample)
    return tuple(VARIABLES[name](sequence.n_response, prompt, response) for name in names)


def moments(x_P: Tensor, y_PV: Tensor, weight_PH: Tensor) -> Tensor:
    """Weighted sums of 1, x, y, x^2, y^2, xy for each head and variable, `(H, V, 6)` in float64. `weight_PH` selects the pairs."""
    x_PV, y_PV = x_P.double()[:, None].expand_as(y_PV), y_PV.double()
    parts_PV6 = torch.stack([torch.ones_like(x_PV), x_PV, y_PV, x_PV**2, y_PV**2, x_PV * y_PV], dim=-1)
    return torch.einsum("ph,pvm->hvm", weight_PH.double(), parts_PV6)


def comoments(moments_HV6: Tensor, *, is_centred: bool) -> Tensor:
    """Sums of 1, x^2, y^2, xy about the means, `(H, V, 4)`.

    Without `is_centred` both means count as zero: differences between two responses, each taken in both directions.
    """
    n, x, y, xx, yy, xy = moments_HV6.unbind(-1)
    if is_centred:
        k = n.clamp_min(_LEAST_VARIANCE)
        xx, yy, xy = xx - x * x / k, yy - y * y / k, xy - x * y / k
    return torch.stack([n, xx, yy, xy], dim=-1)


def correlation(comoments_HV4: Tensor) -> Tensor:
    """Pearson correlation for each head and variable, `(H, V)`; 0 where one of them does not vary."""
    n, xx, yy, xy = comoments_HV4.unbind(-1)
    n = n.clamp_min(_LEAST_VARIANCE)
    return xy / n / (xx / n * yy / n).clamp_min(_LEAST_VARIANCE).sqrt()


class MovingMoments:
    """Moments of the latest `memory` pairs, over all ranks.

    The gradient of the pooled correlation reaches the pairs of this batch alone; divided by their share of the pool, it estimates
    the gradient over all of them. `reduce` sums over ranks. Moments of earlier steps are of earlier weights, and about the means of
    their own batch: no loss of pairs fixes the level of the scores, and with a common mean a drift of the level would pass for
    variance and lower the correlation.
    """

    def __init__(self, memory: int, reduce: Callable[[Tensor], Tensor]) -> None:
        self.kept_HV4: Tensor | None = None
        self._memory, self._reduce = memory, reduce

    def correlation(self, own_HV6: Tensor, *, is_centred: bool) -> Tensor:
        """Correlation `(H, V)` over the pool, which then includes this batch."""
        others_HV6 = self._reduce(own_HV6.detach().clone()) - own_HV6.detach()
        pool_HV4 = comoments(own_HV6 + others_HV6, is_centred=is_centred)
        if self.kept_HV4 is not None:
            kept_HV4 = self.kept_HV4.to(pool_HV4.device)
            room_HV1 = (self._memory - pool_HV4[..., :1]).clamp_min(0)
            pool_HV4 = pool_HV4 + kept_HV4 * (room_HV1 / kept_HV4[..., :1].clamp_min(_LEAST_VARIANCE)).clamp_max(1)
        self.kept_HV4 = pool_HV4.detach()
        found_HV = correlation(pool_HV4)
        share_HV = (own_HV6[..., 0] / pool_HV4[..., 0].clamp_min(_LEAST_VARIANCE)).detach()
        # The value is that of the pool, the gradient that of the own part, scaled up.
        scale_HV = torch.where(share_HV > 0, 1 / share_HV.clamp_min(_LEAST_VARIANCE), torch.zeros_like(share_HV))
        return found_HV.detach() + (found_HV - found_HV.detach()) * scale_HV
