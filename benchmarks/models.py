"""Reward models for measurements: random weights, real shapes, created once per machine and the same on every machine.

`Qwen2ForSequenceClassification` in the layout that transformers writes, so that every server reads the same folder
unchanged. Training does not change speed, but it changes the scores: the head is scaled so that they spread like those
of a trained model, else a score error of 1e-4 would mean nothing. Independent of engines and workloads.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from rewardserve.model.checkpoint.transformers_logging import quiet_transformers

SEED = 20_240_901
MAX_TOKENS = 8192
VOCABULARY = 8192
PAD, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Part of the folder's name, so that a model cached by an older version is not reused.
_EDITION = 1
# The pre-tokenizer that transformers 5 uses for any qwen2 checkpoint, whatever its tokenizer.json says; other libraries
# follow the file. Both must give the same ids.
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Size of a decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    def products(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every weight matrix applied to a token in one layer."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = ((self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden))
        return (*attention, *((self.hidden, self.intermediate),) * 2, (self.intermediate, self.hidden))

    def flops(self, n_tokens: int) -> float:
        """Useful FLOPs of one row in one forward: matrices, and causal attention over the tokens before each token."""
        matrices = 2.0 * sum(a * b for a, b in self.products())
        # Scores and values: 2 products of `hidden` with each of (n + 1) / 2 tokens on average, 2 FLOPs each.
        attention = 4.0 * self.hidden * (n_tokens + 1) / 2
        return self.layers * n_tokens * (matrices + attention)


MODELS: dict[str, DecoderShape] = {
    "m30": DecoderShape(hidden=512, layers=6, heads=8, kv_heads=4, intermediate=2048),
    "m150": DecoderShape(hidden=768, layers=14, heads=12, kv_heads=4, intermediate=3072),
}


def folder(name: str, shape: DecoderShape | None = None, cache: Path | None = None) -> Path:
    """Checkpoint called `name`, created if absent. Safe when two processes create it at once."""
    shape = shape or MODELS[name]
    place = (cache or cache_folder()) / f"{name}-{_EDITION}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{name}-"))
        try:
            _write(draft, shape)
            draft.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place


def cache_folder() -> Path:
    """Folder that keeps models between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewardserve" / "bench"


def corpus() -> str:
    """Text of the language reference that is part of every Python: 65,000 words of English and code."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def train_tokenizer(vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE on `corpus` with Qwen2's pre-tokenizer. Deterministic."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    return tokenizer


def _write(place: Path, shape: DecoderShape) -> None:
    tokenizer = train_tokenizer()
    _write_tokenizer(place, tokenizer)
    model = _network(tokenizer, shape)
    _spread_scores(model, tokenizer)
    with quiet_transformers():
        model.save_pretrained(place)


def _write_tokenizer(place: Path, tokenizer: Tokenizer) -> None:
    """Write the files without transformers: some servers need older versions, which cannot read those of transformers 5."""
    tokenizer.save(str(place / "tokenizer.json"))
    tokens = {"eos_token": END, "pad_token": PAD, "bos_token": None, "unk_token": None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, "padding_side": "left"}
    text = json.dumps({**settings, **tokens, "chat_template": CHATML}, indent=1)
    (place / "tokenizer_config.json").write_text(text + "\n")


def _network(tokenizer: Tokenizer, shape: DecoderShape) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        tie_word_embeddings=False,
        num_labels=1,
        problem_type="regression",
        dtype="float32",
    )
    torch.manual_seed(SEED)
    return Qwen2ForSequenceClassification(config).eval()


def _spread_scores(model: Any, tokenizer: Tokenizer) -> None:
    """Set the head to a direction in which hidden states of different texts differ: scores of mean 0 and deviation 1.

    A random direction would mostly measure the common part of all texts: every row ends with the same token.
    """
    import torch

    with torch.inference_mode():
        hidden_ND = torch.stack(
            [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in _probes(tokenizer)]
        )
        centred_ND = (hidden_ND - hidden_ND.mean(0)).double()
        mixed_D = torch.randn(len(centred_ND), dtype=torch.float64) @ centred_ND
        mean_D = torch.nn.functional.normalize(hidden_ND.mean(0).double(), dim=0)
        direction_D = mixed_D - (mixed_D @ mean_D) * mean_D
        direction_D /= (centred_ND @ direction_D).std()
        model.score.weight.copy_(direction_D[None].float())


def _probes(tokenizer: Tokenizer, n: int = 64, longest: int = 96) -> Iterator[Sequence[int]]:
    """Paragraphs of the corpus as conversations with the same ending as every row of a workload."""
    paragraphs = [p for p in corpus().split("\n\n") if len(p) > 200]
    for paragraph in paragraphs[:: len(paragraphs) // n][:n]:
        text = f"{START}user\n{paragraph[:80]}{END}\n{START}assistant\n{paragraph[80 : 4 * longest]}{END}\n"
        yield tokenizer.encode(text, add_special_tokens=False).ids
