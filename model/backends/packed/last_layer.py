"""The last decoder layer, computed only for the scored tokens.

A value head reads one token a row, so the last layer needs only keys and values of the other tokens. The layer's code runs
twice: on all tokens up to its keys and values, where the attention stops it with `LastKeysReached`, and then on the scored
tokens alone, with those keys and values. The model's code is not changed; the scores are compared at load.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rewardserve.model.backends.packed.attention import KEYWORD, LastKeysReached, PackedForward, UnsupportedArchitecture


def last_layer(backbone: nn.Module) -> nn.Module:
    """The last of the decoder layers. Raise `UnsupportedArchitecture` where they are not in exactly one list."""
    n_layers = backbone.config.get_text_config().num_hidden_layers
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if len({type(layer) for stack in stacks for layer in stack}) != 1 or len(stacks) != 1:
        raise UnsupportedArchitecture("its decoder layers are not one list of one kind")
    return stacks[0][-1]


class LastLayer:
    """Replacement of the last layer's forward, from `install` to `remove`."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._forward = layer.forward

    def install(self) -> None:
        """Replace the layer's forward for calls that carry a `PackedForward`."""
        self._layer.forward = self._cut_short

    def remove(self) -> None:
        """Restore the layer's forward."""
        self._layer.__dict__.pop("forward", None)

    def _cut_short(self, hidden_1ND: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output for the scored tokens, `(1, S, D)`."""
        forward = kwargs.get(KEYWORD)
        if not isinstance(forward, PackedForward):
            return self._forward(hidden_1ND, *args, **kwargs)
        forward.stops = True
        try:
            self._forward(hidden_1ND, *args, **kwargs)
        except LastKeysReached as stop:
            forward.last_kv = stop.kv
        else:
            raise UnsupportedArchitecture("its last layer has no attention")
        scored_S = forward.scored_S.to(hidden_1ND.device)  # the layers may be spread
        n_tokens = hidden_1ND.shape[1]
        few_args = _only(args, scored_S, n_tokens)
        few_kwargs = {
            name: value if name == KEYWORD else _only(value, scored_S, n_tokens) for name, value in kwargs.items()
        }
        return self._forward(hidden_1ND.index_select(1, scored_S), *few_args, **few_kwargs)


def _only(value: Any, index_S: Tensor, n_tokens: int) -> Any:
    """Select these tokens from an argument of a layer that has an entry for every token (rotary angles, positions)."""
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == n_tokens:
        return value.index_select(1, index_S.to(value.device))
    if isinstance(value, tuple | list):
        return type(value)(_only(each, index_S, n_tokens) for each in value)
    if isinstance(value, dict):
        return {name: _only(each, index_S, n_tokens) for name, each in value.items()}
    return value
