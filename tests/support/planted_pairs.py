"""A tiny language model, its tokenizer, and pairs with a planted preference: everything a training test needs."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEUTRAL = ("stone", "river", "table", "cloud", "paper", "green", "seven", "north", "quiet", "metal")
GOOD, BAD = "kindly", "rudely"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of the planted world, with a ChatML template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [f" {w}" for w in (*NEUTRAL, GOOD, BAD)] * 3 + ["user\n", "assistant\n"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(s, special=True) for s in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def language_model(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """A random Llama as a checkpoint folder, the SFT model of every test."""
    tok = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def planted_rows(
    n: int, *, seed: int = 0, n_groups: int = 40, good: str = GOOD, bad: str = BAD
) -> list[dict[str, Any]]:
    """Pairs in which the chosen response has `good` once and the rejected one `bad`; lengths are unrelated."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        group = f"g{i % n_groups}"
        prompt = f"say {NEUTRAL[i % n_groups % 10]} {i % n_groups}"
        rows.append(
            {
                "source": "planted",
                "group": group,
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": _response(rng, good),
                "rejected": _response(rng, bad),
            }
        )
    return rows


def _response(rng: random.Random, word: str) -> str:
    words = rng.choices(NEUTRAL, k=rng.randint(3, 8))
    words.insert(rng.randint(0, len(words)), word)
    return " " + " ".join(words)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSONL, gzipped where the name ends with .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def recipe_file(path: Path, **sections: Any) -> Path:
    """A recipe as YAML."""
    path.write_text(yaml.safe_dump(sections))
    return path
