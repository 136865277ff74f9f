"""Terms of the loss that keep the score from variables and from layout, beside the loss of the pairs.

Each is divided by the weight of the whole step, as the loss of the pairs. Shapes: B rows, H heads, P pairs, V variables, T twins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rewardserve.training.batches.pair_batches import Batch
from rewardserve.training.objective.indifference import MovingMoments, moments
from rewardserve.training.objective.length_head import overlap
from rewardserve.training.settings.config import Config


class Regularisers:
    """The terms of a recipe, with the moments of earlier batches. `logged` has the latest figures, as tensors."""

    def __init__(self, config: Config, n_heads: int, reduce: Callable[[Tensor], Tensor]) -> None:
        self._config, self._n_heads = config, n_heads
        self.moments: dict[str, MovingMoments] = {}
        self.logged: dict[str, Tensor] = {}
        self._is_active = bool(config.variables or config.consistency.weight)
        if config.indifference.variables:
            self.moments["indifference"] = MovingMoments(config.indifference.memory, reduce)
        if config.length_head.correlation:
            for part in ("quality", "length"):
                self.moments[part] = MovingMoments(config.length_head.memory, reduce)

    def ranked(self, scores_BH: Tensor) -> Tensor:
        """Scores that the loss of the pairs compares: with length heads, the sum of both."""
        if not self._config.length_head.correlation:
            return scores_BH
        return scores_BH[:, : self._n_heads] + scores_BH[:, self._n_heads :]

    def loss(self, scores_BH: Tensor, inputs: Batch, total: Tensor, heads: Tensor) -> Tensor:
        """Sum of the terms; zero without any. `heads`: weights of the heads."""
        quality_BH = scores_BH[:, : self._n_heads]
        loss = scores_BH.new_zeros(())
        if not self._is_active:
            return loss
        share_H = _weight_of_heads(inputs, self._n_heads).sum(0) / total
        if self._config.indifference.variables:
            loss = loss + (self._indifference(quality_BH, inputs) * share_H).sum()
        if self._config.length_head.correlation:
            loss = loss + (self._disentangled(scores_BH, inputs, heads) * share_H).sum()
        if self._config.consistency.weight:
            loss = loss + self._inconsistency(quality_BH, inputs) / total
        return loss

    def _indifference(self, quality_BH: Tensor, inputs: Batch) -> Tensor:
        """Sum over variables of coefficient times squared correlation, `(H,)`."""
        config, names = self._config.indifference, self._config.indifference.variables
        coefficient_V = quality_BH.new_tensor([getattr(config, name) for name in names])
        both = config.between == "responses"
        own_HV6 = self._moments(quality_BH, inputs, names, is_of_responses=both)
        found_HV = self.moments["indifference"].correlation(own_HV6, is_centred=both)
        for v, name in enumerate(names):
            self.logged[f"correlation_{name}"] = found_HV[:, v].detach().mean()
        return (found_HV.to(coefficient_V) ** 2 * coefficient_V).sum(1)

    def _disentangled(self, scores_BH: Tensor, inputs: Batch, heads: Tensor) -> Tensor:
        """ODIN's terms: |correlation of quality and length| - correlation of the length head, and the overlap, `(H,)`."""
        config, parts = self._config.length_head, {}
        for name, part_BH in zip(("quality", "length"), scores_BH.chunk(2, dim=1), strict=True):
            own_HV6 = self._moments(part_BH, inputs, ("length",), is_of_responses=True)
            parts[name] = self.moments[name].correlation(own_HV6, is_centred=True)[:, 0].to(scores_BH)
            self.logged[f"correlation_{name}_head"] = parts[name].detach().mean()
        overlap_H = overlap(heads)
        self.logged["heads_overlap"] = overlap_H.detach().mean()
        return config.correlation * (parts["quality"].abs() - parts["length"]) + config.orthogonality * overlap_H

    def _inconsistency(self, quality_BH: Tensor, inputs: Batch) -> Tensor:
        """Coefficient times the sum over pairs of weight times the mean squared difference of responses and twins."""
        pair_T = inputs["twin_pair"]
        head_T = inputs["head"][pair_T]
        diff_T = quality_BH[inputs["twin_original"], head_T] - quality_BH[inputs["twin"], head_T]
        weight_T = inputs["weight"][pair_T] * inputs["twin_share"]
        found = (weight_T * diff_T**2).sum()
        self.logged["inconsistency"] = found.detach() / inputs["weight"].sum()
        return self._config.consistency.weight * found

    def _moments(self, scores_BH: Tensor, inputs: Batch, names: Sequence[str], *, is_of_responses: bool) -> Tensor:
        """Moments of scores and variables: of both responses of each pair, half a pair each, or of their differences."""
        weight_PH = _weight_of_heads(inputs, scores_BH.shape[1])
        variables_BV = inputs["variables"][:, [self._config.variables.index(name) for name in names]]
        chosen, rejected, head = inputs["chosen"], inputs["rejected"], inputs["head"]
        (chosen_P, chosen_PV), (rejected_P, rejected_PV) = (
            (scores_BH[rows, head], variables_BV[rows]) for rows in (chosen, rejected)
        )
        if is_of_responses:
            return moments(chosen_P, chosen_PV, weight_PH / 2) + moments(rejected_P, rejected_PV, weight_PH / 2)
        return moments(chosen_P - rejected_P, chosen_PV - rejected_PV, weight_PH)


def _weight_of_heads(inputs: Batch, n_heads: int) -> Tensor:
    """Weight of each pair in the column of its head, `(P, H)`."""
    one_hot_PH = torch.nn.functional.one_hot(inputs["head"], n_heads).to(inputs["weight"].dtype)
    return inputs["weight"][:, None] * one_hot_PH
