"""Tiny random models and a small byte-level tokenizer, so that every architecture is tested with real code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<pad>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_LIKE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
_CORPUS = [
    "the quick brown fox jumps over the lazy dog. What is two plus two? Four, of course.",
    "user assistant system hello world, a reward model scores a response to a prompt\n\n",
    "Ünïcödé 你好 мир 🙂 \t tabs and   spaces",
]

WIDTH, LAYERS, HEADS = 32, 2, 4
_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ROOMY: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""For engines whose attention knows no narrower heads."""
_MOE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _TEXT,
    "qwen2": {k: v for k, v in _TEXT.items() if k != "head_dim"},
    "qwen3": _TEXT,
    "mistral": {**_TEXT, "sliding_window": 8},
    "gemma2": {**_TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0},
    "gemma3_text": {**_TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {**{k: v for k, v in _TEXT.items() if k != "head_dim"}, "pad_token_id": 4},
    "gpt_neox": {k: v for k, v in _TEXT.items() if k not in ("head_dim", "num_key_value_heads")},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 256, "n_inner": 64},
    "olmo2": {k: v for k, v in _TEXT.items() if k != "head_dim"},
    "mixtral": {**_TEXT, **_MOE, "num_local_experts": 4},
    "qwen3_moe": {**_TEXT, **_MOE, "num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
}


def tiny_tokenizer(
    template: str | None = CHATML, *, bos: str | None = None, eos: str = "<|im_end|>", pad: str | None = "<pad>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 320 tokens with the special tokens of `SPECIALS` (ids 0 to 4)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos)
    fast.chat_template = template
    return fast


def tiny_config(architecture: str, vocab_size: int, **overrides: Any) -> Any:
    """A configuration of an architecture with two layers and a width of 32."""
    tokens = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 4}
    return AutoConfig.for_model(
        architecture, **{**tokens, **ARCHITECTURES[architecture], "vocab_size": vocab_size, **overrides}
    )


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that every position matters: the library's own start is close to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
        elif "norm" in name or "ln_" in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.05
