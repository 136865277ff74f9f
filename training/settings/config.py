"""Settings of a training run as frozen records, with their valid values.

Independent of file formats and torch: `recipe` reads YAML and `--set`, the other modules receive their section.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

from rewardserve.model.reward.checkpoint_members import head_name
from rewardserve.model.scorer import DISTANCE
from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.training.transforms import TRANSFORMS


class ConfigError(Exception):
    """A setting is unknown or invalid; the message names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Range:
    """Valid numbers of a setting: from `low` to `high`, inclusive unless stated otherwise."""

    low: float
    high: float
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether the value is in the range; NaN never is."""
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """Describe the range for an error message."""
        low = f"above {self.low:g}" if self.without_low else f"at least {self.low:g}"
        return f"{low} and {'below' if self.without_high else 'at most'} {self.high:g}"


_COUNT = Range(1, 1e9)
_POSITIVE = Range(0, 1e6, without_low=True)
_SHARE = Range(0, 1, without_high=True)
_RATE = Range(0, 100, without_low=True)
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "model.head_weights": Range(-1e6, 1e6),
    "model.head_l2": _POSITIVE,
    "model.n_layers": Range(1, 1e5),
    "model.members": Range(1, 64),
    "audit_judge.n_layers": Range(1, 1e5),
    "data.sources.weight": _POSITIVE,
    "data.sources.max_pairs": _COUNT,
    "data.sources.repeat": Range(0, 1e3, without_low=True),
    "data.eval_fraction": _SHARE,
    "counterexamples.weight": _POSITIVE,
    "counterexamples.eval_fraction": _SHARE,
    "data.max_dropped": Range(0, 1),
    "augment.weight": _POSITIVE,
    **{
        f"augment.{kind}": Range(0, 1)
        for kind in (
            "other_prompt",
            "neutral",
            "truncated",
            "empty",
            "opener",
            "repeated",
            "flattery",
            "markup",
            "injection",
        )
    },
    "encoding.max_tokens": Range(2, 1e8),
    "loss.label_smoothing": Range(0, 0.5, without_high=True),
    "loss.centring": Range(0, 1e3),
    "indifference.length": Range(0, 1e3),
    "indifference.markup": Range(0, 1e3),
    "indifference.script": Range(0, 1e3),
    "indifference.memory": Range(0, 1e9),
    "length_head.correlation": Range(0, 1e3),
    "length_head.orthogonality": Range(0, 1e3),
    "length_head.memory": Range(0, 1e9),
    "consistency.weight": Range(0, 1e3),
    "consistency.twins": Range(1, len(TRANSFORMS)),
    "loss.sft": Range(0, 1e3),
    "loss.tie": Range(1e-6, 1e6),
    "loss.label_offset": Range(-1e3, 1e3),
    "optim.lr": _RATE,
    "optim.head_lr": _RATE,
    "optim.weight_decay": Range(0, 10),
    "optim.epochs": Range(0, 1e5),
    "optim.max_steps": Range(-1, 1e9),
    "optim.batch_pairs": Range(1, 1e6),
    "optim.batch_sequences": Range(2, 1e6),
    "optim.accumulate": Range(1, 1e6),
    "optim.warmup": Range(0, 1e9),
    "optim.max_grad_norm": Range(0, 1e6),
    "optim.ema": _SHARE,
    "optim.betas": _SHARE,
    "optim.epsilon": Range(0, 1, without_low=True),
    "optim.min_lr": Range(0, 100),
    "optim.min_lr_rate": Range(0, 1),
    "method.rank": Range(1, 65_536),
    "method.alpha": _POSITIVE,
    "method.dropout": _SHARE,
    "method.layers": Range(0, 1e5),
    "output.save_steps": _COUNT,
    "output.keep": _COUNT,
    "output.log_steps": _COUNT,
    "eval.steps": Range(0, 1e9),
    "eval.batch_tokens": Range(1, 1e8),
    "eval.bootstrap": Range(1, 1e5),
    "eval.invariance_pairs": Range(0, 1e6),
    "eval.patience": Range(0, 1e6),
}
"""Range of every number of a recipe. Beyond these a run would fail, hang, or have no effect."""


def shown(value: object) -> str:
    """Shorten a value to one line for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {shown(value)}; it must be {rule}")


def _require_ranges(section: str, record: Any) -> None:
    """Raise `ConfigError` for a number of this section that is out of its range."""
    for f in fields(record):
        name = f"{section}.{f.name}" if section else f.name
        value = getattr(record, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _require(number in RANGES[name], name, number, str(RANGES[name]))


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
    head_l2: tuple[float, ...] = (0.1,)
    """Ridge of the logistic regression: one number for all heads, or one a head."""
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
        _require_ranges("model", self)
        _require(bool(self.path), "model.path", self.path, "a folder or a hub name")
        _require(len(self.heads) > 0, "model.heads", self.heads, "at least one name")
        _require(len(set(self.heads)) == len(self.heads), "model.heads", self.heads, "names that differ")
        _require(all(name.strip() for name in self.heads), "model.heads", self.heads, "names, none of them blank")
        _require(not any("/" in name for name in self.heads), "model.heads", self.heads, "names without a slash")
        _require(
            self.members == 1 or len(self.heads) == 1,
            "model.members", self.members, "1 with several heads: members are an ensemble of one head",
        )  # fmt: skip
        _require(DISTANCE not in self.heads, "model.heads", self.heads, f"names other than {DISTANCE!r}: it is taken")
        _require(
            len(self.head_weights) in (0, len(self.heads)),
            "model.head_weights", self.head_weights, f"empty or {len(self.heads)} numbers, one a head",
        )  # fmt: skip
        _require(
            len(self.head_l2) in (1, len(self.heads)),
            "model.head_l2", self.head_l2, f"one number, or {len(self.heads)}, one a head",
        )  # fmt: skip
        _require(
            len(self.head_weights) == 0 or any(self.head_weights),
            "model.head_weights", self.head_weights, "other than zero for at least one head",
        )  # fmt: skip
        fresh = self.start == "backbone"
        _require(fresh or self.head_init == "random", "model.head_init", self.head_init, "left out with start: reward")

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
        """One ridge a head."""
        return self.head_l2 if len(self.head_l2) == len(self.heads) else self.head_l2 * len(self.heads)


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """One source of feedback: a file, or the name or folder of a `datasets` data set.

    Files are .jsonl, .ndjson, .json, .csv, .tsv (each also .gz) and .parquet.

    The keys name columns. A column named in the recipe must be in every row; a default column may be missing (except those
    of the responses and their label). A row with a column that belongs to the prompt and is not read (`documents`, `history`,
    `chat_template_kwargs`, `images`, ...) is a bad row, unless `ignored_columns` names it.
    """

    path: str
    """File or folder, or the name of a data set of `datasets` on the hub."""
    kind: Literal["auto", "pairs", "rankings", "ratings", "labels", "steps"] = "auto"
    """Kind of feedback in the rows; `auto`: that of the columns which are there."""
    shape: Literal[
        "auto", "none", "sharegpt", "ultrafeedback", "alpaca", "hh", "nectar", "helpsteer", "helpsteer-preference", "arena",
        "saferlhf", "shp", "prm800k", "math-shepherd",
    ] = "auto"  # fmt: skip
    """Public data set in whose shape the rows are; `auto`: recognised by the first rows, unless the recipe names columns of
    prompt, responses or label; `none`: columns are read by their names alone."""
    name: str = ""
    """Name of the source in the report; empty: the content of its `source_key` column, else its path."""
    split: str = "train"
    """Split of the data set; a file has none."""
    subset: str | None = None
    """Subset (configuration) of the data set; a file has none."""
    head: str = ""
    """Head that this source trains; empty: the first."""
    weight: float = 1.0
    """Weight of each item of this source (pair, ranking, rating or label) in the loss."""
    repeat: float = 1.0
    """How often an epoch has the items of this source: 2: twice; 0.25: a quarter of them, others each epoch."""
    max_pairs: int | None = None
    """Largest number of items that are used, chosen by digest; null: all."""
    strings: Literal["turn", "raw"] = "turn"
    """A `prompt` that is a text: `turn`: it is one user turn; `raw`: it is joined with the response without a template."""
    context: Literal["ignore", "prepend"] = "ignore"
    """`prepend`: put the passages of the context column before the first user turn; `ignore`: leave them out."""
    prompt_key: str | None = "prompt"
    """Column of the prompt; null: the responses are whole conversations."""
    system_key: str | None = "system"
    """Column of the system message, which goes before the prompt; not every row needs one. With this default, `system_prompt` is
    found too; null: not read."""
    tools_key: str | None = "tools"
    """Column of the tools that the conversation may call, a list or its JSON text; not every row needs one; null: not read."""
    chosen_key: str = "chosen"
    """Column of the preferred response."""
    rejected_key: str = "rejected"
    """Column of the other response."""
    margin_key: str | None = "margin"
    """Column of the margin between the two responses, for the loss `logsigmoid`; null: not read."""
    tie_key: str | None = "tie"
    """Column that is true where annotators preferred neither response of a pair; null: not read."""
    responses_key: str = "responses"
    """Column of the list of responses of a ranking."""
    ranks_key: str = "ranks"
    """Column of the list of their ranks, equal for ties; the best has rank 1, or the highest number with `better: higher`."""
    response_key: str = "response"
    """Column of the response that is rated or labelled. With this default, `completion`, `output` and `messages` are found too."""
    rating_key: str = "rating"
    """Column of the rating, a number. With this default, `score` is found too."""
    label_key: str = "label"
    """Column that is true for a good response and false for a bad one. With this default, `kto_tag` is found too."""
    steps_key: str = "completions"
    """Column of the list of texts of the steps of a response."""
    step_labels_key: str = "labels"
    """Column of the list of their labels, true for a good step."""
    step_separator: str = "\n"
    """Text between two steps."""
    attributes: tuple[str, ...] = ()
    """Columns that have a rating each, or of a pair a number above zero where chosen is better, below where rejected is, and zero
    for a tie. Each trains the head of its name; a row without a value trains the others."""
    confidence_key: str | None = None
    """Column of the probability that the label of a row is right, from 0.5 to 1; null: not read."""
    flip_key: str | None = None
    """Column of the probability that the label of a row is wrong, below 0.5; null: not read."""
    better: Literal["auto", "higher", "lower"] = "auto"
    """Whether the higher or the lower number is better; `auto`: the lower rank, the higher rating."""
    rating_scale: Literal["source", "prompt"] = "source"
    """`source`: ratings are standardised over the source; `prompt`: less the mean of their prompt first, where they can be compared
    within a prompt only."""
    group_key: str | None = "group"
    """Column of the group, which is held out as a whole; null: not read."""
    source_key: str | None = "source"
    """Column of the source's name for the report; null: not read."""
    context_key: str | None = "context"
    """Column of the passages of `context: prepend`; null: not read."""
    paraphrase_key: str | None = None
    """Column of a text that says the same as the preferred response, for `consistency`; not every row needs one; null: not read."""
    ignored_columns: tuple[str, ...] = ()
    """Columns that belong to the prompt and may be left out of it."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("data.sources", self)
        _require(bool(self.path), "data.sources.path", self.path, "a file, a folder or a hub name")
        both = self.confidence_key is not None and self.flip_key is not None
        _require(
            not (self.head and self.attributes),
            "data.sources.head",
            self.head,
            "left out with attributes, which name heads",
        )
        _require(not both, "data.sources.flip_key", self.flip_key, "left out with confidence_key, which says the same")
        if self.context == "prepend":
            _require(self.context_key is not None, "data.sources.context_key", None, "a column, with context: prepend")
        elif self.context_key not in (None, "context"):
            raise ConfigError(
                f"data.sources.context_key is {self.context_key!r}, which has no effect with context: ignore; set context: prepend"
            )

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """Heads that the source names: that of `head`, or its attributes; empty: it trains the first."""
        return self.attributes or ((self.head,) if self.head else ())


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The pairs, and the rule by which groups of them are held out.

    A group is held out when `int(sha256(f"{salt}:{group}")) mod 10000 < 10000 * eval_fraction`, so its assignment does
    not depend on other groups. With `eval_sources`, all pairs of `sources` are for training, except groups that
    `eval_sources` also has. A training pair with a response that a held-out pair also has, to the same prompt, is left
    out whatever its group.
    """

    sources: tuple[SourceConfig, ...]
    """Sources of the pairs."""
    eval_sources: tuple[SourceConfig, ...] = ()
    """Sources of the held-out pairs; empty: a share of the groups of `sources` is held out."""
    eval_fraction: float = 0.1
    """Share of the groups that are held out."""
    salt: str = "rewardserve"
    """Text that changes which groups are held out, and which pairs `max_pairs` chooses."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """A row that makes no pair: `raise` ends the run with the first twenty, `skip` leaves them out and counts them."""
    max_dropped: float = 0.5
    """Share of the rows of a source that may be lost: rows that make no pair, and pairs that are left out as too long, as equal on
    both sides, or for a held-out pair."""
    swap: bool = False
    """Train on the pairs that would be held out, and hold out the others."""
    balance_length: bool | None = False
    """Weight pairs so that, among those with about the same difference in length, longer and shorter responses win alike; null: if
    there are pairs."""
    cache: str | None = None
    """Folder in which `datasets` keeps data sets of the hub; null: its default."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("data", self)
        _require(len(self.sources) > 0, "data.sources", self.sources, "at least one source")
        if self.swap and not self.eval_sources and not self.eval_fraction:
            raise ConfigError(
                "data.swap trains on the held-out pairs, and data.eval_fraction: 0 holds out none. Raise it, or name "
                "data.eval_sources."
            )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Pairs that are made from training pairs, so that what says nothing of quality does not pay.

    Each kind has a rate: the share of the distinct chosen responses of which one such pair is made; 0: none. Held-out pairs are
    never used.
    """

    weight: float = 1.0
    """Weight of a made pair in the loss, relative to the pair that it is made of."""
    heads: tuple[str, ...] = ()
    """Heads that each made pair trains, whatever its source; empty: the head of the pair that it is made of."""
    other_prompt: float = 0.0
    """The chosen response of another prompt loses."""
    neutral: float = 0.0
    """Both responses of another prompt tie."""
    truncated: float = 0.0
    """The chosen response, cut off after 20 to 80 % of its words, loses."""
    empty: float = 0.0
    """An answer without content, such as a punctuation mark, loses."""
    opener: float = 0.0
    """The opening words of an answer, after which nothing follows, lose."""
    repeated: float = 0.0
    """A response loses that is given two or three times, ends with its last sentence again, or is one sentence again and again."""
    flattery: float = 0.0
    """A response with praise of the user, or that praise alone, loses."""
    markup: float = 0.0
    """A response ties with the same words as a list, with a heading or in bold."""
    injection: float = 0.0
    """A response with a text addressed to the judge, or that text alone, loses."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("augment", self)

    @property
    def is_on(self) -> bool:
        """Whether a kind has a rate."""
        return any(getattr(self, f.name) for f in fields(self) if f.name not in ("weight", "heads"))


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
        _require_ranges("encoding", self)


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
        _require_ranges("loss", self)


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
        _require_ranges("indifference", self)

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
        _require_ranges("length_head", self)


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
        _require_ranges("consistency", self)
        for name in self.transforms:
            if name not in TRANSFORMS:
                raise ConfigError(
                    f"consistency.transforms has {name!r}; known are {', '.join(TRANSFORMS)}{did_you_mean(name, TRANSFORMS)}"
                )


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
        _require_ranges("optim", self)
        _require(
            self.max_steps != 0, "optim.max_steps", self.max_steps, "-1 (as many as the epochs have) or above zero"
        )
        whole = self.warmup < 1 or self.warmup == int(self.warmup)
        _require(whole, "optim.warmup", self.warmup, "a share below 1, or a whole number of steps")
        _require(len(self.betas) == 2, "optim.betas", self.betas, "two numbers")
        if self.min_lr and self.min_lr_rate:
            raise ConfigError("optim.min_lr and optim.min_lr_rate both say where the learning rate ends; leave one out")
        _require(self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"at most optim.lr ({self.lr:g})")
        _require(self.max_steps < 1 or self.epochs > 0, "optim.max_steps", self.max_steps, "left out with epochs: 0")
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
        _require(len(self.kinds) > 0, "stages.kinds", self.kinds, "at least one kind")
        _require(
            self.optim.epochs > 0, "stages.optim.epochs", self.optim.epochs, "above zero: leave the stage out instead"
        )


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
        _require_ranges("method", self)
        _require(len(self.targets) > 0, "method.targets", self.targets, "at least one module name or all-linear")


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Output folder of a run: `checkpoint/`, `report.html`, `logs/` (TensorBoard), `steps/` (to resume from)."""

    folder: str
    """Folder of the run."""
    resume: bool = False
    """Continue the run in this folder from its last complete step checkpoint."""
    save_steps: int = 500
    """Steps between two step checkpoints."""
    keep: int = 2
    """Number of step checkpoints that are kept."""
    log_steps: int = 10
    """Steps between two lines of the log."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ("tensorboard",)
    """Trackers that get the curves of the run; accounts and addresses come from the environment variables of each."""
    run_name: str = ""
    """Name of the run in the trackers; empty: the name of `folder`."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub, `ORGANISATION/NAME`, to which the finished checkpoint is uploaded with its model card;
    null: none."""
    hub_private: bool = True
    """Make that repository private if it is new."""
    adapter: bool = True
    """Also write the trained part alone, over the base model by name: `adapter/` of LoRA, `heads/` of a frozen backbone."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("output", self)
        _require(bool(self.folder), "output.folder", self.folder, "a folder")
        _require(
            len(set(self.report_to)) == len(self.report_to), "output.report_to", self.report_to, "names that differ"
        )
        is_repository = self.push_to_hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub)
        _require(bool(is_repository), "output.push_to_hub", self.push_to_hub, "ORGANISATION/NAME")

    @property
    def reported_name(self) -> str:
        """Name of the run in the trackers."""
        return self.run_name or Path(self.folder).absolute().name


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation on held-out pairs."""

    steps: int = 0
    """Steps between two evaluations on the held-out pairs; 0: only before and after training."""
    best_by: Literal["accuracy", "nll"] | None = None
    """Export the step with the highest accuracy, or the lowest NLL, over all held-out pairs, each judged by its head; of equal ones
    the earliest. The steps are those of `eval.steps`, and the last one. null: export the last step."""
    patience: int = 0
    """Evaluations in a row without a better step after which training ends; 0: never."""
    batch_tokens: int = 16384
    """Largest number of tokens of one forward in evaluation, with padding."""
    bootstrap: int = 1000
    """Number of resamples of the confidence intervals."""
    invariance_pairs: int = 100
    """Held-out pairs, chosen by digest, whose responses are scored again under twelve changes that keep their meaning, at most 24
    forwards of one response a pair; 0: none."""
    style_file: str | None = None
    """File of RM-Bench for the matrix of styles in the report; null: the pairs of `invariance_pairs` in three made styles."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("eval", self)
        if self.best_by is not None and not self.steps:
            raise ConfigError(f"eval.best_by is {self.best_by!r}; set eval.steps, the steps between two evaluations")
        if self.patience and self.best_by is None:
            raise ConfigError(
                f"eval.patience is {self.patience}; set eval.best_by: accuracy or nll, by which a step is better"
            )


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Contents of the exported checkpoint."""

    probes: str | None = None
    """JSONL file of samples for the golden probes of the contract, if the data's licence forbids shipping its text; null: pairs of
    the run."""


@dataclass(frozen=True, slots=True)
class CounterexamplesConfig:
    """Labelled pairs of an audit queue (`rewardserve mine`), which are trained on beside the pairs of `data.sources`."""

    path: str
    """The labelled queue, or a file of pairs with chosen and rejected."""
    weight: float = 4.0
    """Weight of each of these pairs in the loss, where a pair of `data.sources` has 1."""
    eval_fraction: float = 0.2
    """Share of the prompts whose pairs are held out. Their accuracy is reported apart; they take no part in the calibration."""
    head: str = ""
    """Head that these pairs train; empty: the first."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("counterexamples", self)
        _require(bool(self.path), "counterexamples.path", self.path, "a file")


@dataclass(frozen=True, slots=True)
class AuditJudgeConfig:
    """The audit judge that is trained beside the model, by the same method.

    It has other pairs than the model, another depth, another seed, and pairs whose lengths are balanced.
    """

    n_layers: int | None = None
    """Number of first layers of the backbone; null: two thirds of those of the model."""
    sources: tuple[SourceConfig, ...] = ()
    """Sources of its pairs, best from other labellers; empty: those that are held out from the model."""
    heads: tuple[str, ...] = ()
    """Heads of the model that the judge has, with the sources that train them; empty: all. Left out with `sources`."""
    balance_length: bool = True
    """`data.balance_length` of the judge's pairs; other feedback keeps its weights."""
    loss: LossConfig | None = None
    """Loss of the judge, where it learns from other kinds of feedback; null: that of the model."""
    counterexamples: CounterexamplesConfig | None = None
    """Labelled queue that the judge alone learns from, best one that another judge has mined; null: none."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        _require_ranges("audit_judge", self)
        _require(
            not (self.heads and self.sources),
            "audit_judge.heads",
            self.heads,
            "left out with sources, which name heads",
        )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one run."""

    model: ModelConfig
    data: DataConfig
    output: OutputConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    indifference: IndifferenceConfig = field(default_factory=IndifferenceConfig)
    length_head: LengthHeadConfig = field(default_factory=LengthHeadConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    stages: tuple[StageConfig, ...] = ()
    """Stages of the training, such as ratings before pairs; empty: one, over all kinds of feedback."""
    audit_judge: AuditJudgeConfig | None = None
    """The audit judge that is trained before the model; null: none. It learns from no counterexamples of the model."""
    counterexamples: CounterexamplesConfig | None = None
    """Labelled pairs of an audit queue; null: none."""
    seed: int = 0
    """Seed of fresh heads, of the order of batches and of dropout."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` where two sections contradict each other."""
        _require_ranges("", self)
        for stage in self.stages:
            replace(
                self, stages=(), loss=stage.loss, optim=stage.optim
            )  # raises for a stage that contradicts the recipe
        for idle in _UNUSED:
            idle.refuse(self)
        for source in (*self.data.sources, *self.data.eval_sources):
            missing = next((head for head in source.trained_heads if head not in self.model.heads), None)
            if missing is not None:
                raise ConfigError(
                    f"source {source.path!r} trains head {missing!r}; model.heads are {list(self.model.heads)}. Add it there, "
                    "or give the source one of these."
                )
        if not set(self.augment.heads) <= set(self.model.heads):
            raise ConfigError(f"augment.heads is {list(self.augment.heads)}; model.heads are {list(self.model.heads)}.")
        extra = self.counterexamples
        if extra is not None and extra.head and extra.head not in self.model.heads:
            raise ConfigError(
                f"counterexamples.head is {extra.head!r}; model.heads are {list(self.model.heads)}. Name one of these."
            )
        if self.encoding.chat_template is not None and self.model.start == "reward":
            raise ConfigError(
                "encoding.chat_template with model.start: reward: the scores of a reward model belong to the template that it was "
                "trained with; leave it out"
            )
        repeated = next((source for source in self.data.sources if source.repeat != 1), None)
        if repeated is not None and (self.optim.batching == "grouped" or self.optim.epochs == 0):
            why = "optim.epochs: 0" if self.optim.epochs == 0 else "optim.batching: grouped, which has each item once"
            raise ConfigError(
                f"source {repeated.path!r} has repeat {repeated.repeat:g}, which has no effect with {why}; leave it out"
            )
        if self.optim.epochs == 0 and self.model.head_init == "random":
            raise ConfigError(
                "optim.epochs is 0 and model.head_init is 'random': no weight would be trained. Set model.head_init: "
                "logistic with a backbone; for a reward model, use `rewardserve calibrate`, which takes no steps."
            )
        if self.method.name == "full" and self.model.dtype != "float32" and self.optim.epochs > 0:
            raise ConfigError(
                f"model.dtype is {self.model.dtype} with method.name: full: an update that is smaller than the last digit of a "
                "weight is lost, so most weights would never change. Set model.dtype: float32 (optim.precision: bf16 computes "
                "the forward in half precision), or method.name: lora, whose adapters are float32."
            )
        if self.audit_judge is not None and not set(self.audit_judge.heads) <= set(self.model.heads):
            raise ConfigError(
                f"audit_judge.heads is {list(self.audit_judge.heads)}; the heads of the model are {list(self.model.heads)}."
            )
        if self.audit_judge is not None and self.model.start == "reward":
            raise ConfigError(
                "audit_judge with model.start: reward: a judge has fewer layers than the model, so its heads are fresh. Train it "
                "in a separate run, from a backbone, and serve it with REWARD_AUDIT_MODEL."
            )
        self._refuse_idle_regularisers()
        if self.method.name == "frozen" and self.optim.gradient_checkpointing:
            raise ConfigError("optim.gradient_checkpointing has no effect with method.name: frozen; leave it out")

    def _refuse_idle_regularisers(self) -> None:
        """Raise `ConfigError` for terms of the loss that another one has already, and for paraphrases that no term reads."""
        if self.length_head.correlation and self.indifference.length:
            raise ConfigError(
                "indifference.length has the term of length_head.correlation on the quality head again; leave one of them out"
            )
        for source in self.data.eval_sources:
            if source.paraphrase_key is not None:
                raise ConfigError(
                    f"data.eval_sources ({source.path!r}) has a paraphrase_key: held-out pairs train nothing; leave it out"
                )
        named = next((source for source in self.data.sources if source.paraphrase_key is not None), None)
        if named is not None and not self.consistency.weight:
            raise ConfigError(
                f"data.sources ({named.path!r}) has paraphrase_key {named.paraphrase_key!r}, which has no effect with "
                "consistency.weight: 0; set a weight, or leave it out"
            )
        if self.consistency.weight and not self.consistency.transforms and named is None:
            raise ConfigError(
                "consistency.transforms is [] and no source has a paraphrase_key: no response would have a twin"
            )

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables of responses that the loss reads, length first where there is a length head."""
        length = ("length",) if self.length_head.correlation else ()
        return (*length, *self.indifference.variables)


@dataclass(frozen=True, slots=True)
class _UnusedSettings:
    """Settings without effect in some recipes, where any value but the default is a mistake."""

    settings: tuple[str, ...]
    where: Callable[[Config], bool]
    condition: str

    def refuse(self, config: Config) -> None:
        """Raise `ConfigError` if one of the settings is set without effect."""
        for name in self.settings:
            section, _, setting = name.partition(".")
            record = getattr(config, section)
            value, default = getattr(record, setting), type(record).__dataclass_fields__[setting].default
            if value != default and self.where(config):
                raise ConfigError(f"{name} is {shown(value)}, which has no effect with {self.condition}; leave it out")


_STEPS_ONLY = (
    "eval.best_by",
    "eval.patience",
    *(f"loss.{f.name}" for f in fields(LossConfig)),
    *(f"optim.{f.name}" for f in fields(OptimConfig) if f.name not in ("epochs", "max_steps")),
)
_REGULARISERS = (
    "indifference.length",
    "indifference.markup",
    "indifference.script",
    "length_head.correlation",
    "consistency.weight",
)
_UNUSED = (
    _UnusedSettings(("augment.weight", "augment.heads"), lambda c: not c.augment.is_on, "no rate of a kind in augment"),
    _UnusedSettings(
        (*_STEPS_ONLY, *_REGULARISERS), lambda c: c.optim.epochs == 0, "optim.epochs: 0, which takes no step"
    ),
    _UnusedSettings(
        ("method.rank", "method.alpha", "method.dropout", "method.targets", "method.layers", "method.quantize"),
        lambda c: c.method.name != "lora",
        "method.name other than lora",
    ),
    _UnusedSettings(
        ("model.n_layers",), lambda c: c.model.start == "reward", "model.start: reward, which is read whole"
    ),
    _UnusedSettings(
        ("loss.sft",), lambda c: c.method.name == "frozen", "method.name: frozen, whose hidden states do not change"
    ),
    _UnusedSettings(("model.member_data",), lambda c: c.model.members == 1, "model.members: 1"),
    _UnusedSettings(("model.head_l2",), lambda c: c.model.head_init == "random", "model.head_init: random"),
    _UnusedSettings(
        ("optim.warmup",),
        lambda c: c.optim.schedule == "constant",
        "optim.schedule: constant (constant_with_warmup has one)",
    ),
    _UnusedSettings(
        ("optim.min_lr", "optim.min_lr_rate"),
        lambda c: not c.optim.ends_at_min_lr,
        "an optim.schedule other than cosine_with_min_lr and cosine_warmup_with_min_lr",
    ),
    _UnusedSettings(
        ("optim.betas", "optim.epsilon"),
        lambda c: "adam" not in c.optim.optimizer,
        "an optim.optimizer that is no Adam",
    ),
    _UnusedSettings(
        ("optim.dropout",), lambda c: c.method.name == "frozen", "method.name: frozen, whose features are cached"
    ),
    _UnusedSettings(
        ("optim.batch_pairs",),
        lambda c: c.optim.batching == "grouped",
        "optim.batching: grouped (set optim.batch_sequences)",
    ),
    _UnusedSettings(
        ("optim.batch_sequences",),
        lambda c: c.optim.batching == "shuffled",
        "optim.batching: shuffled (set optim.batch_pairs)",
    ),
    _UnusedSettings(
        ("indifference.between", "indifference.memory"),
        lambda c: not c.indifference.variables,
        "no coefficient in indifference",
    ),
    _UnusedSettings(
        ("length_head.orthogonality", "length_head.memory"),
        lambda c: not c.length_head.correlation,
        "length_head.correlation: 0, which adds no length head",
    ),
    _UnusedSettings(
        ("consistency.transforms", "consistency.twins"), lambda c: not c.consistency.weight, "consistency.weight: 0"
    ),
    _UnusedSettings(("consistency.twins",), lambda c: not c.consistency.transforms, "consistency.transforms: []"),
    _UnusedSettings(
        ("optim.precision",), lambda c: c.method.name == "frozen", "method.name: frozen, whose heads learn in float32"
    ),
)
