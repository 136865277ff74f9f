"""Read the feedback of a recipe, hold out, and encode both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.encoding import Encoder
from rewardserve.training.augmentation import augment, consistency
from rewardserve.training.console import say, show
from rewardserve.training.dataset import counterexamples, data, leakage, raw_text, row_counts, sequences
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.counterexamples import Labelled
from rewardserve.training.dataset.disk_list import concatenated
from rewardserve.training.dataset.feedback import Item, kinds_of, noun
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.finish import EncodedData, about_counterexamples
from rewardserve.training.objective import indifference, length_balance
from rewardserve.training.settings.config import Config
from rewardserve.training.workflow.data_checks import refuse_settings_of_pairs


def encode(config: Config, start: Checkpoint, *, is_bound: bool = False, in_folds: bool = False) -> EncodedData:
    """Read the pairs, split them by group and encode both sides.

    `is_bound`: the checkpoint is not trained any further. `in_folds`: every pair is held out later.
    """
    split = data.load(config.data, default_head=config.model.heads[0])
    labelled, extra = _counterexamples(config, split)
    items = concatenated(split.train, extra.train, split.held_out, extra.held_out)
    fitted = raw_text.fit_template(start, items, is_bound=is_bound)
    if fitted is not start:
        say(raw_text.JOINED)
    parts = split.train, split.held_out, extra.train, extra.held_out
    train, held, added, audited = (raw_text.as_served(part, fitted.policy) for part in parts)
    split, encoder = replace(split, train=train, held_out=held), fitted.encoder
    train_table = sequences.encode(concatenated(train, added), encoder, f"training {_nouns(train)}")
    held_out = sequences.encode(split.held_out, encoder, f"held-out {_nouns(held)}")
    audited_table = sequences.encode(audited, encoder, "held-out counterexamples") if audited else sequences.EMPTY
    kept, overlap = leakage.remove_overlap(train_table, held_out)
    kept, of_audited = leakage.remove_overlap(kept, audited_table)
    overlap = replace(overlap, n_dropped=overlap.n_dropped + of_audited.n_dropped)
    if len(kept) or not len(train_table):
        limit = config.data.max_dropped
        row_counts.refuse_losses(split, train_table, kept, held_out, limit, counts_held_out=not is_bound)
    if not len(train_table):
        raise data.DataError(f"none of {len(split.train)} training pairs is left: {train_table.dropped}")
    if not len(kept):
        raise data.DataError(
            f"none of {len(train_table)} training pairs is left: each has a response that is held out, under another group. "
            "Hold out other pairs."
        )
    refuse_settings_of_pairs(config, kept)
    if config.data.balance_length is not False:
        kept = length_balance.balanced(kept)
    unused = None if labelled is None else counterexamples.unused_rows(labelled, audited_table)
    counts = row_counts.count_rows(split, kept, held_out, overlap, unused)
    if config.augment.is_on and not is_bound:
        kept = _augmented(config, kept, (held_out, audited_table), fitted.encoder)
        counts = replace(counts, made=augment.counts(kept.pairs))
    if not is_bound:
        kept = indifference.with_variables(kept, fitted.encoder, config.variables)
        kept = consistency.with_twins(kept, fitted.encoder, config.consistency, config.data.salt)
    for line in row_counts.lines(counts, in_folds=in_folds):
        show(line)
    if kept.twins:
        show(f"  twins: {len(kept.twins):,}, which say the same as a training response")
    audited_pairs = comparisons(audited_table)
    tables = EncodedData(split, kept, comparisons(held_out), counts, fitted.policy, held_out, labelled, audited_pairs)
    if config.counterexamples is not None:
        show(f"counterexamples: {about_counterexamples(config.counterexamples, tables)}")
    return tables


def _counterexamples(config: Config, main: data.Split) -> tuple[Labelled | None, data.Split]:
    """Read the counterexamples of the recipe, and split off the held-out ones; an empty split if it has none."""
    if config.counterexamples is None:
        return None, data.Split((), (), ())
    labelled = counterexamples.read(config.counterexamples, config.data, config.model.heads[0])
    return labelled, counterexamples.split(labelled, config.counterexamples, config.data, main)


def _augmented(
    config: Config, train: FeedbackTable, held_out: Sequence[FeedbackTable], encoder: Encoder
) -> FeedbackTable:
    """Training pairs, and those that are made of them; one that has a held-out response is left out.

    None is made of a counterexample, whose preferred response may be a poor one too.
    """
    of_data = [pair for pair in train.pairs if pair.source != counterexamples.SOURCE and not pair.tie]
    made = sequences.encode(augment.augmented(of_data, config.augment, config.seed), encoder, "made pairs")
    for each in held_out:
        made, _ = leakage.remove_overlap(made, each)
    return sequences.joined(train, made)


def _nouns(items: Sequence[Item]) -> str:
    return f"{noun(kinds_of(items))}s"
