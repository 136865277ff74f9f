"""Settings of optimizer, batches and stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.validation import ConfigError, require, require_ranges


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """Optimizer and batches."""

    lr: float = 1e-5
    """Largest learning rate."""
    head_lr: float | None = None
    """Learning rate of the heads; null: that of `lr`."""
    weight_decay: float = 0.0
    """Weight decay of weights and heads; norms and biases have none."""
    epochs: float = 1.0
    """Passes over the training pairs; 0: no step is taken, and the heads keep their initial weights."""
    max_steps: int = -1
    """Number of optimizer steps, which overrides `epochs`; -1: as many as the epochs have."""
    batching: Literal["shuffled", "grouped"] = "shuffled"
    """`shuffled`: batches of `batch_pairs`; `grouped`: the pairs of one prompt stay together, so a text in forty pairs costs one
    forward an epoch."""
    batch_pairs: int = 16
    """Pairs of a shuffled batch, a rank."""
    batch_sequences: int = 64
    """Largest number of distinct sequences in a grouped batch, a rank."""
    accumulate: int = 1
    """Batches whose gradients make one optimizer step. Among them, items of one prompt share a batch: the step is the same."""
    schedule: str = "linear"
    """Learning-rate schedule, by its name in transformers."""
    warmup: float = 0.0
    """Steps during which the learning rate rises; below 1: a share of all steps."""
    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped; 0: not clipped."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: less memory, more time."""
    ema: float = 0.0
    """Decay of the weight average that is exported; 0: no average."""
    optimizer: str = "adamw_torch_fused"
    """Optimizer, by its name in transformers."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decays of the first and second moment of Adam."""
    epsilon: float = 1e-8
    """Term in the denominator of Adam."""
    min_lr: float = 0.0
    """Learning rate at which the schedules `cosine_with_min_lr` and `cosine_warmup_with_min_lr` end. That of the heads ends at the
    same share of `head_lr`."""
    min_lr_rate: float = 0.0
    """The same as a share of `lr`, in place of `min_lr`."""
    dropout: bool = False
    """Keep the dropout of the base model in training; false: it is off, as in TRL. LoRA has `method.dropout`."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("optim", self)
        require(self.max_steps != 0, "optim.max_steps", self.max_steps, "-1 (as many as the epochs have) or above zero")
        whole = self.warmup < 1 or self.warmup == int(self.warmup)
        require(whole, "optim.warmup", self.warmup, "a share below 1, or a whole number of steps")
        require(len(self.betas) == 2, "optim.betas", self.betas, "two numbers")
        if self.min_lr and self.min_lr_rate:
            raise ConfigError("optim.min_lr and optim.min_lr_rate both say where the learning rate ends; leave one out")
        require(self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"at most optim.lr ({self.lr:g})")
        require(self.max_steps < 1 or self.epochs > 0, "optim.max_steps", self.max_steps, "left out with epochs: 0")
        if self.max_steps > 0:
            self.refuse_long_warmup(self.max_steps)

    @property
    def ends_at_min_lr(self) -> bool:
        """Whether the schedule takes a last learning rate; transformers' names of such schedules say it."""
        return self.schedule.endswith("with_min_lr")

    def warmup_steps(self, n_steps: int) -> int:
        """Number of steps during which the learning rate rises; a share is rounded up, as the Trainer does."""
        return int(self.warmup) if self.warmup >= 1 else ceil(n_steps * self.warmup)

    def refuse_long_warmup(self, n_steps: int) -> None:
        """Raise `ConfigError` if the run ends before the learning rate has risen."""
        if self.warmup >= n_steps > 0 and self.warmup >= 1:
            raise ConfigError(
                f"optim.warmup is {self.warmup:g} steps, and the run has {n_steps}: the learning rate would never reach optim.lr. "
                "Lower it, or set a share of the run, such as 0.03."
            )


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage of a run: the kinds of feedback it trains on, and what it changes of the sections `loss` and `optim`."""

    kinds: tuple[Literal["pairs", "rankings", "ratings", "labels"], ...]
    """Kinds of feedback that this stage trains on."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Settings of `loss`; those that are left out are those of the run."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Settings of `optim`; those that are left out are those of the run."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require(len(self.kinds) > 0, "stages.kinds", self.kinds, "at least one kind")
        require(
            self.optim.epochs > 0, "stages.optim.epochs", self.optim.epochs, "above zero: leave the stage out instead"
        )
