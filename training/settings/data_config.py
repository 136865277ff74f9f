"""Settings of the data: sources and their columns, held-out groups, made pairs, counterexamples."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from rewardserve.training.settings.validation import ConfigError, require, require_ranges


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
        require_ranges("data.sources", self)
        require(bool(self.path), "data.sources.path", self.path, "a file, a folder or a hub name")
        both = self.confidence_key is not None and self.flip_key is not None
        require(
            not (self.head and self.attributes),
            "data.sources.head",
            self.head,
            "left out with attributes, which name heads",
        )
        require(not both, "data.sources.flip_key", self.flip_key, "left out with confidence_key, which says the same")
        if self.context == "prepend":
            require(self.context_key is not None, "data.sources.context_key", None, "a column, with context: prepend")
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
    on_disk: bool = False
    """Keep training items and their tokens in temporary files (folder TMPDIR) instead of memory, for data that do not fit into it.
    Held-out items stay in memory."""
    cache: str | None = None
    """Folder in which `datasets` keeps data sets of the hub; null: its default."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("data", self)
        require(len(self.sources) > 0, "data.sources", self.sources, "at least one source")
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
        require_ranges("augment", self)

    @property
    def is_on(self) -> bool:
        """Whether a kind has a rate."""
        return any(getattr(self, f.name) for f in fields(self) if f.name not in ("weight", "heads"))


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
    both_bad: Literal["leave_out", "labels"] = "leave_out"
    """Rows whose verdict is `both_bad`: left out, or two bad labels each, which push both scores below 0 (`loss.label_offset`)."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("counterexamples", self)
        require(bool(self.path), "counterexamples.path", self.path, "a file")
