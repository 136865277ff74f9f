"""Who is held out when: nobody twice, nobody never, and no group on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.conversation import Sample
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.evaluation import evaluate, folds
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.settings.validation import ConfigError

PLACES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=60)


def pairs_at(places, head="score"):
    """Pairs that lie in (source, group)."""
    one, two = Sample(text="x"), Sample(text="y")
    return [Pair(f"f:{i}", s, f"g{g}", head, one, two, "x" * (i + 1), "y") for i, (s, g) in enumerate(places)]


def table_at(places, n_sequences=7):
    pairs = pairs_at(places)
    numbers = range(len(pairs))
    return FeedbackTable.of_pairs(
        pairs=tuple(pairs),
        sequences=tuple(TokenSequence((1, i + 2), 1, Sample(text=str(i))) for i in range(n_sequences)),
        chosen=tuple(i % n_sequences for i in numbers),
        rejected=tuple((i + 1 + i // n_sequences % (n_sequences - 1)) % n_sequences for i in numbers),
        dropped={},
    )


@given(places=PLACES, k=st.integers(2, 12), salt=st.text(max_size=3))
def test_every_pair_is_held_out_once_and_no_group_is_on_both_sides(places, k, salt):
    table = table_at(places)
    fold_P = folds.assign_folds(table.pairs, k, salt)
    held: Counter[str] = Counter()
    for fold in set(fold_P):
        held_in, held_out = folds.split_fold(table, fold_P, fold)
        assert not {p.group for p in held_in.pairs} & {p.group for p in held_out.pairs}
        assert len(held_in) + len(held_out) == len(table)
        assert held_in.sequences is held_out.sequences is table.sequences
        held.update(p.id for p in held_out.pairs)
    assert held == Counter(p.id for p in table.pairs)
    assert set(fold_P) <= set(range(k))


@given(n_groups=st.integers(1, 20), k=st.integers(2, 25))
def test_groups_of_one_source_are_dealt_evenly_and_with_enough_folds_each_is_alone(n_groups, k):
    pairs = pairs_at([("a", g) for g in range(n_groups)] * 2)
    groups_in = Counter(dict.fromkeys(range(k), 0))
    for group, fold in {(p.group, f) for p, f in zip(pairs, folds.assign_folds(pairs, k, "s"), strict=True)}:
        assert group.startswith("g")
        groups_in[fold] += 1
    assert max(groups_in.values()) - min(groups_in.values()) <= 1
    assert k < n_groups or max(groups_in.values()) == 1


@given(places=PLACES, k=st.integers(2, 6), seed=st.integers(0, 99))
def test_a_deal_knows_neither_the_order_nor_the_number_of_pairs_in_a_group(places, k, seed):
    pairs = pairs_at([("a", g) for _, g in places])
    shuffled = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))] + pairs[:3]
    of_group = dict(zip((p.group for p in pairs), folds.assign_folds(pairs, k, "s"), strict=True))
    assert folds.assign_folds(shuffled, k, "s") == tuple(of_group[p.group] for p in shuffled)


def test_the_salt_deals_anew():
    pairs = pairs_at([("a", g) for g in range(40)])
    assert folds.assign_folds(pairs, 5, "one") != folds.assign_folds(pairs, 5, "two")


@given(places=PLACES, k=st.integers(2, 6))
def test_each_pair_keeps_the_scores_of_the_fold_that_held_it_out(places, k):
    table = table_at(places)
    fold_P = folds.assign_folds(table.pairs, k, "s")
    scores_of = {f: np.array([[100.0 * f + s] for s in range(len(table.sequences))]) for f in set(fold_P)}
    pooled, scores_NH = folds.pool(table, fold_P, scores_of)
    assert pooled.pairs == table.pairs
    for i, fold in enumerate(fold_P):
        for side, new in ((table.chosen, pooled.chosen), (table.rejected, pooled.rejected)):
            assert scores_NH[new[i], 0] == 100 * fold + side[i]
            assert pooled.sequences[new[i]] is table.sequences[side[i]]
    assert len(pooled.sequences) == len(scores_NH) == len({*pooled.chosen, *pooled.rejected})


def test_a_head_is_scaled_by_the_responses_it_was_trained_on():
    table = table_at([("a", 0), ("a", 1), ("a", 2), ("a", 3)])
    fold_P = [0, 0, 0, 1]
    held_in, _ = folds.split_fold(table, fold_P, 1)
    scores_NH = np.array([[1.0], [4.0], [2.0], [8.0], [1e6], [0.0], [0.0]])
    out_NH = folds.standardise(scores_NH, held_in, ("score",))
    seen = sorted({*held_in.chosen, *held_in.rejected})
    assert 4 not in seen
    assert out_NH[seen].std() == pytest.approx(1)
    assert out_NH[seen].mean() == pytest.approx(0)
    assert np.ptp(out_NH * scores_NH[seen].std() - scores_NH) < 1e-6
    with pytest.raises(NothingToFit, match="same score"):
        folds.standardise(np.ones((7, 1)), held_in, ("score",))


def test_a_head_whose_pairs_are_one_group_cannot_be_cross_validated():
    table = table_at([("a", 0), ("a", 0)])
    with pytest.raises(ConfigError, match="fall into 1 fold"):
        folds.refuse_heads_in_one_fold(table, folds.assign_folds(table.pairs, 4, "s"), ("score",))
    folds.refuse_heads_in_one_fold(table_at([("a", 0), ("a", 1)]), [0, 1], ("score",))


# -- figures of heads on each other's pairs ----------------------------------------------------------------


def test_cross_use_is_every_head_on_the_pairs_of_the_others_and_the_sum_on_each_source():
    table = table_at([("kind", 0), ("kind", 1), ("brief", 2)], n_sequences=4)
    pairs = tuple(replace(p, head=p.source) for p in table.pairs)
    table = replace(table, items=pairs, rows=((0, 1), (1, 2), (2, 3)))
    scores_NH = np.array([[4.0, 0.0], [3.0, 1.0], [2.0, 2.0], [3.0, 0.0]])
    found = {(j.head, j.source): j for j in evaluate.cross_slices(table, scores_NH, ("kind", "brief"), (1.0, 10.0))}
    assert set(found) == {
        ("kind", "brief"), ("brief", "kind"), (evaluate.COMBINED, "kind"), (evaluate.COMBINED, "brief")
    }  # fmt: skip
    assert found["kind", "brief"].diff_P.tolist() == [-1]
    assert found["brief", "kind"].diff_P.tolist() == [-1, -1]
    assert found[evaluate.COMBINED, "kind"].diff_P.tolist() == [-9, -9]
    assert evaluate.cross_slices(table, scores_NH[:, :1], ("kind",), (1.0,)) == []


def test_the_accuracy_of_a_group_is_of_its_own_pairs():
    table = table_at([("a", 0), ("a", 0), ("a", 1)], n_sequences=4)
    table = replace(table, rows=((0, 1), (1, 0), (2, 3)))
    (judged,) = evaluate.slices(table, np.array([[4.0], [3.0], [2.0], [1.0]]), ("score",), (1.0,))
    assert evaluate.accuracy_by_group(judged).tolist() == [0.5, 1.0]
