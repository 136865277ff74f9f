"""Measure what the style of a response is worth: the matrix of RM-Bench, from its file or on held-out pairs in made styles.

Made styles change layout and frame of a response and add no content, so they understate what a detailed response is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rewardserve.model.conversation import SampleError
from rewardserve.model.encoding import Encoder
from rewardserve.training.dataset.sequences import FeedbackTable, Ids
from rewardserve.training.evaluation import invariance
from rewardserve.training.evaluation.benchmark_files import (
    RM_BENCH,
    STYLES,
    Benchmark,
    StyleMatrix,
    read_benchmark,
    style_matrix,
)
from rewardserve.training.evaluation.evaluate import Floats
from rewardserve.training.evaluation.invariance import ChangedResponses
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.transforms import TRANSFORMS, Transform

MADE = "held-out pairs, each response in three made styles"


def _plain(text: str) -> str:
    return TRANSFORMS["plain"].change(text)


def _longer(text: str) -> str:
    return TRANSFORMS["closer"].change(TRANSFORMS["opener"].change(_plain(text)))


def _markdown(text: str) -> str:
    """The longer form with a heading, and its first sentence in bold."""
    body = TRANSFORMS["bold_start"].change(_plain(text).lstrip())
    return TRANSFORMS["closer"].change(TRANSFORMS["opener"].change(f"## Answer\n\n{body}"))


_STYLES = {
    "plain": Transform("plain", "no marks of headings and bold", _plain),
    "framed": Transform("framed", "plain, between an opening and a closing sentence", _longer),
    "framed, markdown": Transform("framed, markdown", "framed, with a heading and bold", _markdown),
}


def read_styles(path: Path) -> Benchmark:
    """Read a file of RM-Bench. Raise `ConfigError` for another one."""
    found = read_benchmark(path)
    if found.format != RM_BENCH:
        raise ConfigError(f"eval.style_file: {path} is a file of {found.format}; the styles come from one of RM-Bench")
    return found


def file_matrix(
    benchmark: Benchmark, encoder: Encoder, raw_scores: Callable[[Sequence[Ids]], Floats]
) -> StyleMatrix | None:
    """The matrix of a file, from raw scores of its rows; prompts with a response that the encoder refuses are left out."""
    kept: list[list[Ids]] = []
    for row in benchmark.rows:
        try:
            kept.append([encoder(sample).ids for sample in row.samples()])
        except SampleError:
            continue
    if not kept:
        return None
    n = len(STYLES)
    raw_P = raw_scores([ids for row in kept for ids in row]).reshape(len(kept), 2 * n).tolist()
    left_out = len(benchmark.rows) - len(kept)
    origin = f"RM-Bench{f', {left_out:,} prompts with a response that is too long left out' if left_out else ''}"
    return style_matrix([(tuple(row[:n]), tuple(row[n:])) for row in raw_P], origin)


def made_styles(table: FeedbackTable, encoder: Encoder, n_pairs: int, salt: str) -> ChangedResponses:
    """The responses of at most `n_pairs` pairs in each made style."""
    return invariance.changed_responses(table, encoder, n_pairs, salt, _STYLES)


def made_matrix(
    changed: ChangedResponses, table: FeedbackTable, scores_NH: Floats, rows_RH: Floats, heads: Sequence[str]
) -> StyleMatrix | None:
    """The matrix of pairs in made styles, each judged by its head; None without a pair in all styles."""
    base_P2, after = invariance.pair_scores(changed, table, scores_NH, rows_RH, heads)
    # A response that a style leaves as it is has that style already; a refused one has no score in it.
    is_refused_P = np.zeros(len(base_P2), dtype=bool)
    if changed.n_refused:
        for name in ("framed", "framed, markdown"):
            is_refused_P |= ~np.isfinite(after[name]).all(1)
    by_style = [np.where(np.isfinite(after[name]), after[name], base_P2)[~is_refused_P] for name in _STYLES]
    if not len(by_style[0]):
        return None
    scores_P2S = np.stack(by_style, axis=2)
    return style_matrix([(tuple(pair[0]), tuple(pair[1])) for pair in scores_P2S.tolist()], MADE, tuple(_STYLES))
