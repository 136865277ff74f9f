"""RewardNetwork: a causal decoder with a linear value head, read at the last real token.

Knows tensors; knows no files, no text and no optimizer.
Shapes: B rows, T tokens, D hidden width, H heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewardserve.model.padding import last_index, position_ids

SINGLE_HEAD = ("score",)

PACKED_ROWS = "rewardserve_packed_rows"
"""The keyword argument that carries `PackedSequences` from the model's forward to its attention."""

_N_BEFORE, _N_AFTER = 34, 6
"""Tokens of the rows that test whether a model is causal: up to the scored one, and after it."""

_ROUNDING_HALF = 0.02
"""Tolerance in half precision, relative to the largest score or to 1: with other tokens the experts of a mixture get other
batches, and round differently."""


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """Output of a forward: `scores_BH` in float32, the hidden state they were read from, and the `aux_loss` of a MoE.

    `hidden_KD` are the hidden states at the tokens that the caller has named.
    """

    scores_BH: Tensor
    last_hidden_BD: Tensor
    aux_loss: Tensor | None
    hidden_KD: Tensor | None = None


class PackedSequences(Protocol):
    """Sequences one after the other in one row, which the installed attention function keeps apart."""

    @property
    def position_ids_1N(self) -> Tensor:
        """The position of every token in its sequence."""
        ...

    @property
    def last_B(self) -> Tensor:
        """Index of each sequence's last token."""
        ...


class RewardNetwork(nn.Module):
    """`backbone` + `Linear(hidden, heads)` in float32.

    `head_weights` combine several heads into one raw score: `raw = scores @ head_weights`. `bias_H` is zero for the models
    that we train; value heads of other trainers (`v_head.summary`) have one, and it is part of their score.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head_weight_HD: Tensor,
        head_names: Sequence[str] = SINGLE_HEAD,
        head_weights: Sequence[float] | None = None,
        head_bias_H: Tensor | None = None,
    ) -> None:
        super().__init__()
        n_heads, width = head_weight_HD.shape
        if len(head_names) != n_heads or len(set(head_names)) != n_heads:
            raise ValueError(f"{n_heads} heads need {n_heads} different names, got {list(head_names)}")
        if head_weights is None and n_heads > 1:
            raise ValueError(f"{n_heads} heads need a weight each to make one reward of them")
        if head_weights is not None and len(head_weights) != n_heads:
            raise ValueError(f"{n_heads} heads need {n_heads} weights, got {len(head_weights)}")
        self.backbone = reset_rope_cache(backbone)
        self.heads = nn.Linear(width, n_heads, bias=False, dtype=torch.float32)
        self.heads.weight.data.copy_(head_weight_HD)
        bias_H = torch.zeros(n_heads) if head_bias_H is None else head_bias_H.detach().float()
        self.register_buffer("bias_H", bias_H, persistent=False)
        self.head_names = tuple(head_names)
        self.head_weights = tuple(map(float, head_weights)) if head_weights is not None else (1.0,)

    @classmethod
    def create(
        cls, backbone: nn.Module, head_names: Sequence[str] = SINGLE_HEAD, head_weights: Sequence[float] | None = None
    ) -> RewardNetwork:
        """Create a network with an untrained head, N(0, 1/(D+1)) (Stiennon et al. 2020), for training only."""
        width = hidden_width(backbone)
        weights = head_weights if head_weights is not None or len(head_names) == 1 else [1.0] * len(head_names)
        return cls(backbone, torch.randn(len(head_names), width) / (width + 1) ** 0.5, head_names, weights)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Device of the head; the backbone may be spread over several."""
        return self.heads.weight.device

    def hidden(
        self, input_ids_BT: Tensor, mask_BT: Tensor | None, packed: PackedSequences | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden state at every token, `(B, T, D)`, and the router logits of a MoE in training."""
        routed = self.training and router_loss_weight(self.config) > 0
        options: dict[str, Any] = {"use_cache": False, **({"output_router_logits": True} if routed else {})}
        # Without padding neither mask nor positions are passed: kernels may be purely causal, and a model whose positions do
        # not begin at 0 computes them.
        if mask_BT is not None:
            options |= {"attention_mask": mask_BT, "position_ids": position_ids(mask_BT)}
        if packed is not None:
            options |= {"position_ids": packed.position_ids_1N, PACKED_ROWS: packed}
        out = self.backbone(input_ids=input_ids_BT, **options)
        return out.last_hidden_state, getattr(out, "router_logits", None) if routed else None

    def values(self, input_ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The value of every head at every token, `(B, T, H)` in float32."""
        hidden_BTD, _ = self.hidden(input_ids_BT, mask_BT)
        return self.values_of(hidden_BTD)

    def forward(
        self,
        input_ids_BT: Tensor,
        mask_BT: Tensor | None = None,
        packed: PackedSequences | None = None,
        token_at_K: Tensor | None = None,
    ) -> NetworkOutput:
        """Score each row at its last real token. `mask_BT` None: no row is padded. Padding may be on either side.

        `packed`: the one row of `input_ids_BT` is many sequences, and each of them is scored. `token_at_K`: places of tokens in
        the flattened `input_ids_BT` whose hidden states are returned too.
        """
        hidden_BTD, router_logits = self.hidden(input_ids_BT, mask_BT, packed)
        if packed is not None:
            last_BD = hidden_BTD[0, packed.last_B.to(hidden_BTD.device)]
        else:
            rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
            last_B = last_index(mask_BT).to(hidden_BTD.device) if mask_BT is not None else -1
            last_BD = hidden_BTD[rows_B, last_B]
        named_KD = None if token_at_K is None else hidden_BTD.flatten(0, 1)[token_at_K.to(hidden_BTD.device)]
        return NetworkOutput(self.values_of(last_BD), last_BD, self._aux_loss(router_logits, mask_BT), named_KD)

    def raw(self, scores_BH: Tensor) -> Tensor:
        """The weighted sum of the heads, `(B,)`."""
        return scores_BH @ scores_BH.new_tensor(self.head_weights)

    def combined_head(self) -> tuple[Tensor, float]:
        """The single linear head, `(1, D)`, and the bias that give `raw` directly.

        They have the same bits on every machine, because a contract has their digest: products and sums of float64, one by
        one, rounded once. A matrix product in float32 differs from CPU to CPU in the last digit.
        """
        weights_H = torch.tensor(self.head_weights, dtype=torch.float64)
        products_HD = weights_H[:, None] * self.heads.weight.detach().cpu().double()
        head_D = reduce(torch.add, products_HD)
        bias = reduce(torch.add, weights_H * self.bias_H.cpu().double())
        return head_D[None].to(self.heads.weight), float(bias)

    def values_of(self, hidden: Tensor) -> Tensor:
        """The value of every head for hidden states `(..., D)`: `(..., H)` in float32."""
        # A value head in bfloat16 has steps of 0.06 at |score| = 8: it is float32 under autocast too.
        guard = (
            torch.autocast(hidden.device.type, enabled=False)
            if hidden.device.type != "meta"
            else contextlib.nullcontext()
        )
        with guard:
            scores: Tensor = self.heads(hidden.float()) + self.bias_H.to(hidden.device)
        return scores

    def _aux_loss(self, router_logits: tuple[Tensor, ...] | None, mask_BT: Tensor | None) -> Tensor | None:
        """Load-balancing loss of a mixture of experts, times its coefficient (Switch Transformer, eq. 4-6)."""
        if not router_logits:
            return None
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        config = self.config
        n_experts = getattr(config, "num_local_experts", None) or config.num_experts
        loss: Tensor = load_balancing_loss_func(router_logits, n_experts, config.num_experts_per_tok, mask_BT)
        return router_loss_weight(config) * loss


@torch.no_grad()
def hidden_width(backbone: nn.Module) -> int:
    """The width of the last hidden state: of a forward of two tokens, which works on the meta device too.

    It is not always `hidden_size`: OPT may project to `word_embed_proj_dim`, Reformer has two streams. Where a model cannot
    compute on the meta device, the width is that of the configuration.
    """
    text = backbone.config.get_text_config()
    ids_BT = torch.zeros(1, 2, dtype=torch.int64, device=next(backbone.parameters()).device)
    was_training = backbone.training
    try:
        return int(backbone.eval()(input_ids=ids_BT, use_cache=False).last_hidden_state.shape[-1])
    except Exception:  # foreign model code may raise anything: routing to experts needs numbers, for one
        return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)
    finally:
        backbone.train(was_training)


@torch.inference_mode()
def looks_ahead(network: RewardNetwork) -> bool:
    """Whether the tokens after a token change its score: then rows must keep all tokens that the trainer's rows have.

    It is measured, because configurations name it in several ways. Both rows have one length, so a causal model computes the
    same numbers at the scored token.
    """
    n_ids = network.backbone.get_input_embeddings().num_embeddings
    row = [7 * i % n_ids for i in range(1, _N_BEFORE + 1)]
    scores_RH = []
    for step in (11, 13):
        ids_BT = torch.tensor([[*row, *(step * i % n_ids for i in range(1, _N_AFTER + 1))]], device=network.device)
        try:
            out = network.backbone(input_ids=ids_BT, use_cache=False)
        except Exception:  # foreign model code may raise anything; the check of engines reports it
            return False
        scores_RH.append(network.values_of(out.last_hidden_state[0, len(row) - 1].to(network.device)))
    is_half = next(network.backbone.parameters()).dtype != torch.float32
    scale = max(1.0, float(scores_RH[0].abs().nan_to_num().max()))
    return float((scores_RH[0] - scores_RH[1]).abs().nan_to_num().max()) > (_ROUNDING_HALF if is_half else 2e-5) * scale


def reset_rope_cache(backbone: nn.Module) -> nn.Module:
    """Reset the rotary angles of the module before each forward, and return it.

    With dynamic NTK scaling transformers keeps the angles of the longest row for every later row that is longer than the
    original maximum (`dynamic_rope_update`): a score would depend on earlier rows.
    """
    for module in backbone.modules():
        kinds = getattr(module, "rope_type", None)
        if "dynamic" in str(kinds) and hasattr(module, "original_max_seq_len"):
            prefixes = [f"{layer_type}_" for layer_type in kinds] if isinstance(kinds, dict) else [""]
            module.register_forward_pre_hook(partial(_reset_rope_cache_before, prefixes))
    return backbone


def _reset_rope_cache_before(prefixes: Sequence[str], rotary: Any, _arguments: Any) -> None:
    for prefix in prefixes:
        name = f"{prefix}max_seq_len_cached"
        if hasattr(rotary, f"{prefix}original_inv_freq") and hasattr(rotary, name):
            original = getattr(rotary, f"{prefix}original_inv_freq")
            rotary.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(rotary, name, rotary.original_max_seq_len)


def router_loss_weight(config: Any) -> float:
    """The coefficient of a MoE's load-balancing loss; 0 for a dense model."""
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)


def attention_for(config: Any) -> str | None:
    """The attention implementation that is right for this architecture; None: the default of transformers.

    Gemma-2 caps its attention logits. Early transformers 5 uses the fused kernel of torch, which silently leaves the cap out,
    so plain attention is chosen here.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
