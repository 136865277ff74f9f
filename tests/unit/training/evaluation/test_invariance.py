"""Shifts and flips under changes of responses, against scores that are written by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewardserve.model.conversation import InputTooLong, Sample
from rewardserve.model.encoding import Encoded
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.evaluation import invariance
from rewardserve.training.results import invariance_table
from rewardserve.training.transforms import TRANSFORMS, Transform

LONGER = {"longer": Transform("longer", "for the test", lambda text: text if "fixed" in text else text + "!")}


def encoder(sample):
    """One id a character; refuses a response of nine characters."""
    if len(sample.response) > 8:
        raise InputTooLong(n=9, limit=8)
    return Encoded(tuple(map(ord, sample.response)), 0)


def table_of(*rows, groups=None, heads=None):
    """Rows of (chosen, rejected) texts."""
    number: dict[str, int] = {}
    for row in rows:
        for text in row:
            number.setdefault(text, len(number))
    pairs = tuple(
        Pair(
            str(i), "s", str(groups[i]) if groups else str(i), heads[i] if heads else "score",
            Sample(prompt="q", response=c), Sample(prompt="q", response=r), c, r,
        )
        for i, (c, r) in enumerate(rows)
    )  # fmt: skip
    sequences = tuple(TokenSequence(tuple(map(ord, t)), len(t), Sample(prompt="q", response=t)) for t in number)
    return FeedbackTable.of_pairs(
        pairs, sequences, tuple(number[c] for c, _ in rows), tuple(number[r] for _, r in rows), {}
    )


def report_of(table, score, heads=("score",), n_pairs=100):
    """Figures of a judge `score(text) -> one number a head`."""
    changed = invariance.changed_responses(table, encoder, n_pairs, "salt", LONGER)
    scores = np.array([score("".join(map(chr, s.ids))) for s in table.sequences], float).reshape(-1, len(heads))
    rows = np.array([score("".join(map(chr, ids))) for ids in changed.rows], float).reshape(-1, len(heads))
    base, after = invariance.pair_scores(changed, table, scores, rows, heads)
    return invariance.figures(changed, table, base, after, 200)


SCORES = {"a": 2.0, "b": 1.0, "fixed": 0.0, "a!": 0.5, "b!": 2.5, "c": 5.0, "c!": 5.0}


def test_shifts_are_in_standard_deviations_of_the_distinct_responses():
    table = table_of(("a", "b"), ("fixed", "a"), ("c", "fixed"))
    report = report_of(table, lambda text: [SCORES[text]])
    sd = np.std([2.0, 1.0, 0.0, 5.0])
    (line,) = report.transforms
    assert (report.n_pairs, report.n_responses, line.n_responses) == (3, 4, 3)
    assert line.shift == pytest.approx(np.mean([-1.5, 1.5, 0.0]) / sd)
    assert line.abs_shift == report.mean_abs_shift == pytest.approx(np.mean([1.5, 1.5, 0.0]) / sd)


def test_flips_are_counted_for_the_winner_the_loser_and_both():
    """a wins against b; changed alone, a loses (0.5 < 1), b wins (2.5 > 2), and both are exchanged."""
    line = report_of(table_of(("a", "b")), lambda text: [SCORES[text]]).transforms[0]
    assert (line.winner_flips, line.loser_flips, line.both_flips) == (1.0, 1.0, 1.0)
    swapped = report_of(table_of(("b", "a")), lambda text: [SCORES[text]]).transforms[0]
    assert (swapped.winner_flips, swapped.loser_flips) == (1.0, 1.0), "the winner is the judge's, not the label's"
    line = report_of(table_of(("c", "fixed"), ("a", "fixed")), lambda text: [SCORES[text]]).transforms[0]
    assert (line.winner_flips, line.n_winner, line.loser_flips, line.n_loser, line.n_both) == (0.0, 2, None, 0, 2)
    tie = report_of(table_of(("a", "b"), ("c", "b")), lambda text: [{"a!": 1.0}.get(text, SCORES[text])]).transforms[0]
    assert tie.winner_flips == pytest.approx(0.25), "a tie counts half, of two pairs"


def test_a_judge_of_content_has_zeros_and_no_flip():
    table = table_of(("a", "b"), ("c", "a"), groups=(1, 2))
    report = report_of(table, lambda text: [float(ord(text[0]))])
    (line,) = report.transforms
    assert (line.shift, line.shift_low, line.shift_high, line.both_flips) == (0.0, 0.0, 0.0, 0.0)
    assert report.mean_abs_shift == 0.0


def test_a_pair_is_scored_by_the_head_that_it_trains():
    table = table_of(("a", "b"), ("a", "c"), heads=("x", "y"))
    report = report_of(table, lambda text: [len(text) * 3.0 + ord(text[0]), ord(text[0])], heads=("x", "y"))
    assert report.transforms[0].shift == pytest.approx(np.mean([3 / 0.5, 3 / 0.5, 0, 0]))


def test_the_interval_is_of_groups_and_missing_for_one_group():
    assert report_of(table_of(("a", "b"), groups=(1,)), lambda t: [SCORES[t]]).transforms[0].shift_low is None
    rows = [("a", "b"), ("c", "fixed")]
    line = report_of(table_of(*rows, groups=(1, 2)), lambda t: [SCORES[t]]).transforms[0]
    assert line.shift_low <= line.shift <= line.shift_high


def test_the_sample_is_bounded_and_does_not_depend_on_the_order_of_other_pairs():
    table = table_of(*[(f"r{i}", f"s{i}") for i in range(30)])
    changed = invariance.changed_responses(table, encoder, 7, "salt", TRANSFORMS)
    assert len(changed.pairs) == 7
    assert len(changed.rows) <= 7 * 24
    assert changed.pairs == invariance.changed_responses(table, encoder, 7, "salt", TRANSFORMS).pairs


def test_a_changed_response_that_is_too_long_is_counted_and_left_out():
    changed = invariance.changed_responses(table_of(("12345678", "b")), encoder, 9, "salt", LONGER)
    assert changed.n_refused == 1
    assert list(changed.row_of["longer"]) == [1]


def test_a_judge_that_gives_every_response_one_score_has_no_report():
    assert report_of(table_of(("a", "b")), lambda text: [1.0]) is None


def test_a_rendered_text_is_changed_where_its_response_begins():
    pair = table_of(("a", "b")).pairs[0]
    text = replace(pair, chosen=Sample(text="Human: q Assistant: a"), chosen_text=" a")
    assert invariance.with_known_response(text, 0).n_prompt_chars == len("Human: q Assistant:")
    assert invariance.with_known_response(pair, 0) == pair.chosen


def test_the_section_shows_every_transform_with_its_reason_and_escapes_it():
    table = table_of(("a", "b"), ("c", "a"))
    report = report_of(table, lambda text: [SCORES[text]])
    line = replace(report.transforms[0], name="opener")
    untouched = replace(line, name="plain", n_responses=0, shift=None, abs_shift=None, winner_flips=None)
    page = invariance_table.section(replace(report, transforms=(line, untouched)))
    assert f"{line.shift:+.3f}" in page
    assert "none changed" in page
    assert "Here is my answer.&#x27;" in page
    assert invariance_table.section(None) == ""


def test_the_line_names_the_transform_that_moves_the_score_most():
    report = report_of(table_of(("a", "b"), ("fixed", "a")), lambda text: [SCORES[text]])
    assert "most: longer by" in invariance.summary_line(report)
