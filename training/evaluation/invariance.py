"""Measure how far a score moves, and how often it changes its order, under changes that keep the meaning of a response.

Choice of the responses and figures; independent of networks and files. Shapes: P sampled pairs, 2 sides (chosen, rejected), R rows
of changed responses, H heads, G groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoder
from rewardserve.training.dataset.feedback import Item
from rewardserve.training.dataset.sequences import FeedbackTable, Ids
from rewardserve.training.evaluation.evaluate import Floats, Ints, bootstrap_mean
from rewardserve.training.transforms import TRANSFORMS, Transform, with_response


@dataclass(frozen=True, slots=True)
class ChangedResponses:
    """The responses of some pairs of a table, changed by each transform.

    `row_of[name][sequence]` is the row of the changed sequence; a sequence that stays as it is has none. `n_refused`: changed
    responses that the encoder refuses, as they are too long.
    """

    pairs: tuple[int, ...]
    rows: tuple[Ids, ...]
    row_of: Mapping[str, Mapping[int, int]]
    n_refused: int


@dataclass(frozen=True, slots=True)
class TransformFigures:
    """Figures of one transform; None where no response or pair is changed.

    `shift`: mean change of the score in standard deviations of the head over the sampled responses, with a 95 % interval over
    groups (None for one group); `abs_shift`: mean size of the change. A flip: the response that had the lower score has the higher
    one; a tie counts half. `winner` is the response that had the higher score.
    """

    name: str
    n_responses: int
    shift: float | None
    shift_low: float | None
    shift_high: float | None
    abs_shift: float | None
    winner_flips: float | None
    n_winner: int
    loser_flips: float | None
    n_loser: int
    both_flips: float | None
    n_both: int


@dataclass(frozen=True, slots=True)
class InvarianceReport:
    """Figures of all transforms, on `n_responses` distinct responses of `n_pairs` held-out pairs."""

    n_pairs: int
    n_responses: int
    n_refused: int
    mean_abs_shift: float
    transforms: tuple[TransformFigures, ...]


def changed_responses(
    table: FeedbackTable, encoder: Encoder, n_pairs: int, salt: str, transforms: Mapping[str, Transform] = TRANSFORMS
) -> ChangedResponses:
    """Choose at most `n_pairs` pairs by digest, and encode their responses changed by each transform."""
    order = sorted(range(len(table)), key=lambda i: hashlib.sha256(f"{salt}:{table.items[i].id}:{i}".encode()).digest())
    chosen = tuple(sorted(order[:n_pairs]))
    rows: dict[Ids, int] = {}
    row_of: dict[str, dict[int, int]] = {name: {} for name in transforms}
    sample_of = {s: sample for i in chosen for s, sample in _sides(table, i)}
    n_refused = 0
    for name, transform in transforms.items():
        for sequence, sample in sample_of.items():
            changed = with_response(sample, transform.change)
            if changed is None:
                continue
            try:
                row_of[name][sequence] = rows.setdefault(encoder(changed).ids, len(rows))
            except SampleError:
                n_refused += 1
    return ChangedResponses(chosen, tuple(rows), row_of, n_refused)


def _sides(table: FeedbackTable, i: int) -> tuple[tuple[int, Sample], tuple[int, Sample]]:
    pair = table.items[i]
    chosen, rejected = table.rows[i]
    return (chosen, with_known_response(pair, 0)), (rejected, with_known_response(pair, 1))


def with_known_response(pair: Item, side: int) -> Sample:
    """A side of a pair; where the response begins in a rendered text is taken from the text of the response."""
    sample, text = pair.samples[side], pair.texts[side]
    if sample.text is None or sample.n_prompt_chars is not None or not sample.text.endswith(text):
        return sample
    return replace(sample, n_prompt_chars=len(sample.text) - len(text))


def pair_scores(
    changed: ChangedResponses, table: FeedbackTable, scores_NH: Floats, rows_RH: Floats, head_names: Sequence[str]
) -> tuple[Floats, dict[str, Floats]]:
    """Scores `(P, 2)` of the sampled pairs by the head of each, and after each transform; NaN where a response stays as it is."""
    heads = [head_names.index(table.items[i].head) for i in changed.pairs]
    sides = [table.rows[i] for i in changed.pairs]
    base_P2 = np.array([[scores_NH[s, h] for s in side] for side, h in zip(sides, heads, strict=True)])
    after = {}
    for name, row_of in changed.row_of.items():
        after[name] = np.array(
            [
                [rows_RH[row_of[s], h] if s in row_of else np.nan for s in side]
                for side, h in zip(sides, heads, strict=True)
            ]
        )
    return base_P2.reshape(-1, 2), {name: scores.reshape(-1, 2) for name, scores in after.items()}


def figures(
    changed: ChangedResponses, table: FeedbackTable, base_P2: Floats, after: Mapping[str, Floats], n_bootstrap: int
) -> InvarianceReport | None:
    """Figures of each transform. None if no pair was sampled, or a head gives every response the same score."""
    pairs = [table.items[i] for i in changed.pairs]
    head_P = np.array([pair.head for pair in pairs])
    number_of: dict[str, int] = {}
    group_P = np.array([number_of.setdefault(pair.group, len(number_of)) for pair in pairs])
    sequence_P2 = np.array([table.rows[i] for i in changed.pairs]).reshape(-1, 2)
    sd_P = np.zeros(len(pairs))
    for head in set(head_P.tolist()):
        own_P = head_P == head
        _, first = np.unique(sequence_P2[own_P], return_index=True)
        sd_P[own_P] = base_P2[own_P].reshape(-1)[first].std()
    if not len(pairs) or not (sd_P > 0).all():
        return None
    key = np.unique(head_P, return_inverse=True)[1][:, None] * (1 + sequence_P2.max()) + sequence_P2
    is_first_P2 = np.zeros(key.size, dtype=bool)
    is_first_P2[np.unique(key, return_index=True)[1]] = True  # a response in several pairs counts once
    is_first_P2 = is_first_P2.reshape(-1, 2)
    lines = tuple(
        _figures(name, base_P2, scores_P2, sd_P, group_P, is_first_P2, n_bootstrap) for name, scores_P2 in after.items()
    )
    sizes = [line.abs_shift for line in lines if line.abs_shift is not None]
    mean = float(np.mean(sizes)) if sizes else 0.0
    return InvarianceReport(len(pairs), int(is_first_P2.sum()), changed.n_refused, mean, lines)


def _figures(
    name: str, base_P2: Floats, after_P2: Floats, sd_P: Floats, group_P: Ints, is_first_P2: Ints, n_bootstrap: int
) -> TransformFigures:
    changed_P2 = np.isfinite(after_P2)
    used_P2 = changed_P2 & is_first_P2
    shift = ((after_P2 - base_P2) / sd_P[:, None])[used_P2]
    group = np.repeat(group_P[:, None], 2, axis=1)[used_P2]
    n = len(shift)
    low = high = None
    if len(np.unique(group)) > 1:
        sums, sizes = np.bincount(group, weights=shift).astype(np.float64), np.bincount(group)
        low, high = bootstrap_mean(sums[sizes > 0], sizes[sizes > 0], n_bootstrap)
    # The response with the higher score first; pairs of equal scores have no order to change.
    order_P2 = np.argsort(-base_P2, axis=1, kind="stable")
    base_P2, new_P2, changed_P2 = (np.take_along_axis(x, order_P2, axis=1) for x in (base_P2, after_P2, changed_P2))
    new_P2 = np.where(changed_P2, new_P2, base_P2)
    ordered_P = base_P2[:, 0] > base_P2[:, 1]
    winner_P, loser_P = changed_P2[:, 0] & ordered_P, changed_P2[:, 1] & ordered_P
    flips = [
        _flips(new_P2[winner_P, 0] - base_P2[winner_P, 1]),
        _flips(base_P2[loser_P, 0] - new_P2[loser_P, 1]),
        _flips((new_P2[:, 0] - new_P2[:, 1])[winner_P | loser_P]),
    ]
    return TransformFigures(
        name, n, float(shift.mean()) if n else None, low, high, float(np.abs(shift).mean()) if n else None,
        flips[0], int(winner_P.sum()), flips[1], int(loser_P.sum()), flips[2], int((winner_P | loser_P).sum()),
    )  # fmt: skip


def _flips(diff: Floats) -> float | None:
    """Share of differences below zero, where zero counts half; None without any."""
    return float((0.5 * (1 - np.sign(diff))).mean()) if len(diff) else None


def summary_line(report: InvarianceReport) -> str:
    """The line that ends `train` and `evaluate --invariance`."""
    moved = [line for line in report.transforms if line.shift is not None]
    text = (
        f"invariance: a change that keeps the meaning moves the score by {report.mean_abs_shift:.3f} sd on average ({len(moved)} "
        f"transforms of {report.n_responses:,} held-out responses)"
    )
    if moved:
        most = max(moved, key=lambda line: abs(line.shift or 0.0))
        text += f"; most: {most.name} by {most.shift:+.2f}"
    return text
