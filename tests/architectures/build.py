"""Tiny random models of every architecture that transformers can make a causal language model of.

A configuration is built by the names of its fields; what that does not get right stands in `OVERRIDES`. Knows no engine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from rewardserve.model.network import attention_for
from tests.support.tiny import randomize

VOCAB, WIDTH, LAYERS, HEADS, WINDOW = 320, 32, 2, 4, 16

_BY_VALUE: tuple[tuple[int, tuple[str, ...]], ...] = (
    (VOCAB, ("vocab_size", "vocab_size_per_layer_input")),
    (WIDTH, ("hidden_size", "d_model", "n_embd", "emb_dim", "embed_dim", "dim", "attention_hidden_size", "lru_width",
             "moe_intermediate_size", "shared_expert_intermediate_size", "attention_dim", "expert_hidden_size")),
    (2 * WIDTH, ("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "intermediate_size_mlp",
                 "mamba_d_ssm", "decoder_ffn_dim", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size",
                 "ffn_size", "encoder_ffn_dim", "dim_ff", "shared_intermediate_size")),
    (LAYERS, ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "layers", "encoder_layers")),
    (HEADS, ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads",
             "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "encoder_attention_heads",
             "linear_num_key_heads", "linear_num_value_heads", "swa_num_attention_heads")),
    (2, ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_experts_per_tok", "moe_topk", "num_experts_per_token",
         "expand", "mamba_expand", "swa_num_key_value_heads", "top_k_experts", "moe_k")),
    (8, ("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "mamba_d_head", "mamba_headdim",
         "mamba_head_dim", "state_size", "mamba_d_state", "ssm_state_size", "mamba_n_heads", "mamba_num_heads",
         "n_mamba_heads", "rotary_dim", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim",
         "hidden_size_per_layer_input", "swa_head_dim", "index_head_dim", "query_pre_attn_scalar", "dim_head")),
    (16, ("kv_lora_rank", "q_lora_rank", "o_lora_rank", "mamba_dt_rank", "time_step_rank", "mamba_chunk_size", "chunk_size",
          "index_topk")),
    (1, ("n_group", "topk_group", "mamba_n_groups", "n_groups", "n_shared_experts", "first_k_dense_replace",
         "moe_num_shared_experts", "num_nextn_predict_layers")),
    (WINDOW, ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention")),
    (256, ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "max_target_positions")),
)  # fmt: skip
TINY = {name: value for value, names in _BY_VALUE for name in names}
TOKENS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 4}

_LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "factor": 4.0,
             "original_max_position_embeddings": 64, "rope_theta": 1e4}  # fmt: skip
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
_DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@dataclass(frozen=True)
class Case:
    """One tiny model: a line of the table."""

    name: str
    model_type: str
    shape: dict[str, Any] = field(default_factory=dict)


ENCODER_DECODERS = set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) | {"trocr", "whisper", "moshi", "musicgen"}
ENCODERS = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) | {"bert-generation", "git"}
"""Their causal form is a decoder of an encoder-decoder: as base models they attend in both directions."""

_ALL_HEADS: dict[str, Any] = {"num_key_value_heads": HEADS}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text",
                     "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash", "minicpm3", "youtu"), _ALL_HEADS),
    "bamba": {"attn_layer_indices": [1]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Fields whose values do not follow from their names."""

_MOST_PARAMETERS = 5_000_000

_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers")

VARIANTS = (
    Case("phi3, LongRoPE", "phi3", {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    Case("llama, dynamic NTK", "llama", {"max_position_embeddings": 64, "rope_parameters": _DYNAMIC}),
    Case("llama, YaRN", "llama", {"rope_parameters": {**_DYNAMIC, "rope_type": "yarn",
                                                      "original_max_position_embeddings": 64}}),
    Case("llama, linear", "llama", {"rope_parameters": {**_DYNAMIC, "rope_type": "linear"}}),
    Case("gemma3_text, dynamic NTK in full layers", "gemma3_text",
         {"max_position_embeddings": 64, "layer_types": ["sliding_attention", "full_attention"],
          "rope_parameters": {"full_attention": _DYNAMIC, "sliding_attention": _DEFAULT}}),
    Case("mistral, no window", "mistral", {"sliding_window": None}),
    Case("opt, word_embed_proj_dim", "opt", {"word_embed_proj_dim": 16}),
    Case("falcon, ALiBi", "falcon", {"alibi": True}),
)  # fmt: skip


def cases() -> list[Case]:
    """Every text decoder of the mapping, then the variants. The text decoder of a multimodal model has its own entry."""
    return [
        *(Case(name, name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if _is_text_decoder(name)),
        *VARIANTS,
    ]


def _is_text_decoder(model_type: str) -> bool:
    kind = CONFIG_MAPPING[model_type]
    several = set(kind.sub_configs) & {"text_config", "decoder", "vision_config", "audio_config", "thinker_config"}
    return not several and model_type not in ENCODER_DECODERS | ENCODERS


def tiny(case: Case) -> torch.nn.Module:
    """The base model with random weights, in float32. Raise any error of transformers."""
    kind = CONFIG_MAPPING[case.model_type]
    known = set(kind.__dataclass_fields__)
    shape = {name: value for name, value in {**TINY, **TOKENS}.items() if name in known}
    shape |= {**OVERRIDES.get(case.model_type, {}), **copy.deepcopy(case.shape)}
    config = kind(**copy.deepcopy(shape))
    wanted = _kinds_of_layers(kind())
    depth = next((name for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if name in shape), None)
    for n_layers in (4, 6, 8, 12):  # until every kind of layer is there
        if depth is None or _kinds_of_layers(config) >= wanted or set(_KINDS_OF_LAYERS) & set(shape):
            break
        config = kind(**{**copy.deepcopy(shape), depth: n_layers})
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if n_parameters > _MOST_PARAMETERS:
        raise ValueError(f"{n_parameters:,} parameters: some field of its configuration is not known here")
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation=attention_for(config)).eval()
    randomize(model)
    return model


def _kinds_of_layers(config: Any) -> set[str]:
    lists = {name: getattr(config, name, None) for name in _KINDS_OF_LAYERS}
    return {f"{name} {kind}" for name, kinds in lists.items() if isinstance(kinds, list) for kind in kinds}
