"""Settings of the loss and of the terms that are added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.training.settings.validation import ConfigError, require_ranges
from rewardserve.training.transforms import TRANSFORMS


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Loss of each kind of feedback, and its coefficients. Rankings have Plackett-Luce's, labels the binary cross-entropy."""

    name: str = "logsigmoid"
    """Loss of a pair, by its name in `losses.LOSSES`: `logsigmoid` (Bradley-Terry with margins) or `logexp` (without)."""
    label_smoothing: float = 0.0
    """Probability that a pair or a good or bad label was reversed, as in cDPO; a flip rate of the row adds to it."""
    centring: float = 0.0
    """Weight of `(chosen + rejected)^2` of a pair; 0.01 keeps rewards near zero (TRL, Eisenstein)."""
    sft: float = 0.0
    """Coefficient of the language-model loss on the preferred response of a pair, a mean over its tokens, by the output layer of
    the language model (GRM, arXiv 2406.10216); 0: none."""
    tie: float | None = None
    """Parameter nu of Davidson's model of ties, if pairs have ties: two equal responses tie with probability `nu / (2 + nu)`; null:
    from the share of ties among the training pairs."""
    ratings: Literal["mse", "huber"] = "mse"
    """Loss of a standardised rating: squared error, or Huber's, which is linear beyond one standard deviation."""
    label_offset: float | None = None
    """Score at which a response is as likely good as bad, for labels; null: `-log(p / (1 - p))` with p the share of good ones."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("loss", self)


@dataclass(frozen=True, slots=True)
class IndifferenceConfig:
    """Variables that the score must not pay for: the loss has the squared correlation of each with the score, times a coefficient.

    The correlation is over the pairs of a batch and the latest pairs before it, `memory` in all; a pair counts by its weight.
    """

    length: float = 0.0
    """Coefficient of the logarithm of the number of tokens of the response."""
    markup: float = 0.0
    """Coefficient of list marks, heading marks, cells, code fences and bold a line."""
    script: float = 0.0
    """Coefficient of the share of letters in scripts other than those of the prompt and Latin."""
    between: Literal["differences", "responses"] = "differences"
    """`differences`: correlate the differences between the two responses of a pair, so that prompts do not count; `responses`:
    scores and variables of single responses."""
    memory: int = 512
    """Pairs over which the correlation is taken, the batch included; 0: the batch alone."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("indifference", self)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables with a coefficient."""
        return tuple(name for name in ("length", "markup", "script") if getattr(self, name))


@dataclass(frozen=True, slots=True)
class LengthHeadConfig:
    """A second head beside each head during training, which takes up length, as in ODIN (arXiv 2402.07319). It is not exported.

    The loss of a pair has the sum of both heads. To it are added the size of the correlation of the quality head with the logarithm
    of the number of tokens, minus the correlation of the length head, and the overlap of the two.
    """

    correlation: float = 0.0
    """Coefficient of the correlations; 0: no length head. ODIN has 1."""
    orthogonality: float = 0.0
    """Coefficient of the absolute cosine of the weights of both heads. ODIN has 1."""
    memory: int = 512
    """Pairs over which the correlations are taken, the batch included; 0: the batch alone."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("length_head", self)


@dataclass(frozen=True, slots=True)
class ConsistencyConfig:
    """The squared difference of the scores of a response and its twins, which say the same (reWordBench, arXiv 2503.11751).

    Twins are made by changes that keep the meaning, and of `data.sources.paraphrase_key`. Each costs a forward.
    """

    weight: float = 0.0
    """Coefficient of the mean squared difference over the twins of a pair; 0: no twins."""
    transforms: tuple[str, ...] = tuple(TRANSFORMS)
    """Names of the changes, as in the report of invariance; `[]`: paraphrases of the data alone."""
    twins: int = 1
    """Twins of each response by these changes, chosen by digest among those that alter it; rows on top of those of
    `optim.batch_sequences`."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("consistency", self)
        for name in self.transforms:
            if name not in TRANSFORMS:
                raise ConfigError(
                    f"consistency.transforms has {name!r}; known are {', '.join(TRANSFORMS)}{did_you_mean(name, TRANSFORMS)}"
                )
