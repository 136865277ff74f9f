"""Settings of the model: its weights and heads, its encoding, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewardserve.model.reward.checkpoint_members import head_name
from rewardserve.model.scorer import DISTANCE
from rewardserve.training.settings.validation import require, require_ranges


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Weights from which training starts, and the heads."""

    path: str
    """Folder or hub name of the weights from which training starts."""
    start: Literal["backbone", "reward"] = "backbone"
    """`backbone`: an SFT model, which gets fresh heads; `reward`: a reward model, which is trained on."""
    heads: tuple[str, ...] = ("score",)
    """Names of the heads. The reward is the weighted sum of the normalised heads."""
    head_weights: tuple[float, ...] = ()
    """Weights of the normalised heads in the one reward, one a head; empty: 1 each."""
    head_init: Literal["random", "logistic"] = "random"
    """Start of fresh heads: `random`, or `logistic`, the ridge-penalised logistic regression of each head on the features of the
    frozen backbone, from which full and LoRA training then start."""
    head_l2: tuple[float, ...] = ()
    """Ridge of the logistic regression: one number for all heads, or one a head; empty: for each head that of .01 to 10 with the
    lowest loss in a cross-validation over its training groups."""
    members: int = 1
    """Members of an ensemble: heads over one backbone, each from its own start and on its own data; 1: no ensemble."""
    member_data: Literal["bootstrap", "folds", "all"] = "bootstrap"
    """Data of a member: `bootstrap`: each item as often as a draw with replacement has it; `folds`: the groups of one fold, which
    no other member has; `all`: every item."""
    n_layers: int | None = None
    """Number of first layers of the backbone that are kept; null: all."""
    allow_pickle: bool = False
    """Accept weights that are not safetensors. Reading them can run code."""
    ignore_checkpoint_code: bool = False
    """Read a model with custom code (auto_map) without that code."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the frozen weights; trained weights are float32."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("model", self)
        require(bool(self.path), "model.path", self.path, "a folder or a hub name")
        require(len(self.heads) > 0, "model.heads", self.heads, "at least one name")
        require(len(set(self.heads)) == len(self.heads), "model.heads", self.heads, "names that differ")
        require(all(name.strip() for name in self.heads), "model.heads", self.heads, "names, none of them blank")
        require(not any("/" in name for name in self.heads), "model.heads", self.heads, "names without a slash")
        require(
            self.members == 1 or len(self.heads) == 1,
            "model.members", self.members, "1 with several heads: members are an ensemble of one head",
        )  # fmt: skip
        require(DISTANCE not in self.heads, "model.heads", self.heads, f"names other than {DISTANCE!r}: it is taken")
        require(
            len(self.head_weights) in (0, len(self.heads)),
            "model.head_weights", self.head_weights, f"empty or {len(self.heads)} numbers, one a head",
        )  # fmt: skip
        require(
            len(self.head_l2) in (0, 1, len(self.heads)),
            "model.head_l2", self.head_l2, f"empty, one number, or {len(self.heads)}, one a head",
        )  # fmt: skip
        require(
            len(self.head_weights) == 0 or any(self.head_weights),
            "model.head_weights", self.head_weights, "other than zero for at least one head",
        )  # fmt: skip
        fresh = self.start == "backbone"
        require(fresh or self.head_init == "random", "model.head_init", self.head_init, "left out with start: reward")

    @property
    def weight_of_head(self) -> tuple[float, ...]:
        """One weight a head; all 1 by default."""
        return self.head_weights or tuple(1.0 for _ in self.heads)

    @property
    def head_of_output(self) -> tuple[str, ...]:
        """For each output of the network its head: with members, the one head of all."""
        return self.heads * self.members

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the network: the heads, or the members of the one head."""
        if self.members == 1:
            return self.heads
        return tuple(head_name(str(m), self.heads[0]) for m in range(1, self.members + 1))

    @property
    def weight_of_output(self) -> tuple[float, ...]:
        """One weight an output: members share that of their head."""
        return tuple(weight / self.members for weight in self.weight_of_head * self.members)

    @property
    def l2_of_head(self) -> tuple[float, ...]:
        """One ridge a head; empty: they are chosen."""
        return self.head_l2 if len(self.head_l2) == len(self.heads) else self.head_l2 * len(self.heads)


@dataclass(frozen=True, slots=True)
class EncodingConfig:
    """Limit of the sequence length."""

    max_tokens: int = 1024
    """Limit of the sequence length in tokens."""
    chat_template: str | None = None
    """File with the chat template to train with, in Jinja; the checkpoint and its contract have it. null: the tokenizer's."""
    truncation: Literal["prompt_left", "error"] = "prompt_left"
    """`prompt_left`: cut the prompt of a longer sequence from the left; `error`: cut nothing. A pair that does not fit is left out.
    The contract of the checkpoint has the same rule."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("encoding", self)


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """Trained weights.

    `frozen` computes every distinct sequence once and trains the heads on the cached features.
    """

    name: Literal["full", "lora", "frozen"] = "full"
    """Trained weights: all (`full`), low-rank adapters and the heads (`lora`), or the heads alone (`frozen`)."""
    rank: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """Scale of the adapters: their output is multiplied by `alpha / rank`."""
    dropout: float = 0.0
    """Dropout at the input of the adapters."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get an adapter, or `all-linear`."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers that get adapters; empty: all."""
    quantize: Literal["nf4"] | None = None
    """Keep the frozen linear layers in 4 bits while the adapters learn (QLoRA, bitsandbytes, CUDA); null: in `model.dtype`."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("method", self)
        require(len(self.targets) > 0, "method.targets", self.targets, "at least one module name or all-linear")
