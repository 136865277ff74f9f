"""Held-out pairs are held out by content: tokens and words, under whatever group, whichever side won; and every row is counted."""

from __future__ import annotations

import pytest

from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.dataset import data, leakage, row_counts, sequences, source_columns, sources
from rewardserve.training.dataset.data import DataError
from rewardserve.training.dataset.pairs import to_pair
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from tests.support import planted_pairs as world
from tests.support.tiny import tiny_tokenizer


def row(prompt, chosen, rejected, group="a"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": group}


def encoder(tok, max_tokens):
    return Encoder(
        tok, infer_policy(tok, max_tokens=max_tokens, vocab_size=len(tok), rule=LAYOUT_RULES["language_model"])
    )


def table(*rows, max_tokens=120):
    read = [sources.SourceRow("f", i, r) for i, r in enumerate(rows, 1)]
    found = source_columns.find_columns(read, SourceConfig("f"))
    return sequences.encode([to_pair(r, found, "score") for r in read], encoder(tiny_tokenizer(), max_tokens))


HELD = row("Which metal rusts?", "Iron does.", "Gold does.", "held")
SHARED = {
    "the same pair": row("Which metal rusts?", "Iron does.", "Gold does."),
    "swapped": row("Which metal rusts?", "Gold does.", "Iron does."),
    "another case": row("which METAL rusts?", "iron does.", "GOLD does."),
    "other blanks": row("Which  metal rusts?\n", "Iron does. ", " Gold does."),
    "one response alone": row("Which metal rusts?", "Iron does.", "Tin, perhaps."),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_training_pair_with_a_held_out_response_is_left_out_and_counted(name):
    other = row("Which metal floats?", "Lithium.", "Lead.")
    kept, overlap = leakage.remove_overlap(table(SHARED[name], other), table(HELD))
    assert [p.id for p in kept.pairs] == ["f:2"]
    assert overlap.n_dropped == 1
    assert len(kept.sequences) == 2, "its sequences went with it"


def test_a_prompt_alone_or_an_answer_alone_is_counted_and_kept():
    train = table(
        row("Which metal rusts?", "Steel, too.", "None."), row("And which one does so?", "Iron does.", "Gold does.")
    )
    kept, overlap = leakage.remove_overlap(train, table(HELD))
    assert (len(kept), overlap) == (2, leakage.Overlap(0, 1))


def test_prompts_that_differ_only_where_they_were_cut_are_the_same_tokens():
    first, second = (f"{'old ' * 30 if i else 'new ' * 30}{'tail ' * 60}" for i in (0, 1))
    kept, overlap = leakage.remove_overlap(
        table(row(first, "yes", "no"), max_tokens=60), table(row(second, "yes", "no"), max_tokens=60)
    )
    assert (len(kept), overlap.n_dropped) == (0, 1)


def test_folds_keep_their_numbers():
    whole = table(HELD, SHARED["swapped"], row("q", "x", "y"))
    held_out = sequences.subset(whole, [True, False, False], renumber=False)
    held_in = sequences.subset(whole, [False, True, True], renumber=False)
    kept, overlap = leakage.remove_overlap(held_in, held_out, renumber=False)
    assert overlap.n_dropped == 1
    assert kept.sequences == whole.sequences
    assert (kept.chosen, kept.rejected) == ((whole.chosen[2],), (whole.rejected[2],))


def test_every_row_is_counted_once(tmp_path):
    rows = world.planted_rows(60, n_groups=20)
    renamed = [{**r, "group": "elsewhere"} for r in rows[:6]]
    rows += [*renamed, rows[20], {**rows[21], "chosen": rows[21]["rejected"], "rejected": rows[21]["chosen"]}]
    rows += [{**rows[23], "chosen": " river" * 300}, {"prompt": "no pair"}]
    path = str(world.write_jsonl(tmp_path / "d.jsonl", rows))
    held = str(world.write_jsonl(tmp_path / "held.jsonl", [r for r in rows[:60] if r["group"] in ("g1", "g2")]))
    other = world.planted_rows(5, seed=7, good="kindly", bad="metal")
    more = str(world.write_jsonl(tmp_path / "more.jsonl", [{**r, "group": "more"} for r in other]))
    split = data.load(
        DataConfig(
            (
                SourceConfig(path),
                SourceConfig(more, max_pairs=3),
            ),
            (SourceConfig(held),),
            on_bad_row="skip",
        ),
        "score",
    )
    encode = encoder(world.tokenizer(), 128)
    train, held_out = (sequences.encode(side, encode) for side in (split.train, split.held_out))
    kept, overlap = leakage.remove_overlap(train, held_out)
    found = row_counts.count_rows(split, kept, held_out, overlap)
    gone = found.n_bad + found.n_spare + found.n_same_group + found.n_leaked + sum(found.dropped.values())
    assert found.n_rows == gone + found.n_train + found.n_held_out
    assert found.n_leaked == 2, "g1 and g2 are among the renamed rows"
    assert (found.n_bad, found.n_spare, found.dropped) == (1, 2, {"too_long": 1})
    text = "\n".join(row_counts.lines(found))
    assert f"rows read: {found.n_rows}" in text
    assert "2 with a response that is held out" in text


def test_contradicting_and_duplicate_pairs_are_counted():
    same, opposite = row("q", "x", "y"), row("q", "y", "x")
    whole = table(same, same, opposite, row("q", "x", "z"))
    split = data.Split(whole.pairs, (), (data.SourceItems("f", whole.pairs, 4),))
    found = row_counts.count_rows(split, whole, table(HELD), leakage.Overlap())
    assert (found.n_contradicting, found.n_duplicate) == (3, 1)


def test_a_source_whose_pairs_do_not_fit_is_refused_with_the_reason():
    whole = table(*(row(f"q{i}", "river " * (400 if i else 1), "no") for i in range(4)), row("q", "x", "y"))
    assert (len(whole), whole.dropped) == (2, {"too_long": 3})
    made = tuple(to_pair(r, source_columns.find_columns([r], SourceConfig("f")), "score") for r in [
        sources.SourceRow("f", i, row(f"q{i}", "a", "b")) for i in range(1, 6)])  # fmt: skip
    split = data.Split(made, (), (data.SourceItems("f", made, 5),))
    with pytest.raises(DataError, match=r"3 of the 5 rows of 'f' are lost: 3 longer than encoding\.max_tokens"):
        row_counts.refuse_losses(split, whole, whole, table(), 0.5)
    row_counts.refuse_losses(split, whole, whole, table(), 0.6)


HELD_OUT_TWICE = {
    "under other group names": (lambda i: f"other {i}", "55 with a response that is held out"),
    "in the same groups": (lambda i: f"g{i}", "55 in a group that eval_sources has"),
    "in both ways": (
        lambda i: f"{'g' if i < 30 else 'other '}{i}",
        "30 in a group that eval_sources has, 25 with a response that is held out",
    ),
}


@pytest.mark.parametrize("name", HELD_OUT_TWICE)
@pytest.mark.parametrize("max_pairs", [None, 60])
def test_a_source_of_which_most_is_held_out_is_refused_with_the_reasons(tmp_path, name, max_pairs):
    group, reason = HELD_OUT_TWICE[name]
    rows = [row(f"question {i}?", f"good {i}", f"bad {i}", f"g{i}") for i in range(60)]
    path = str(world.write_jsonl(tmp_path / "train.jsonl", rows))
    held = world.write_jsonl(tmp_path / "held.jsonl", [{**r, "group": group(i)} for i, r in enumerate(rows[:55])])
    source = SourceConfig(path, max_pairs=max_pairs)
    split = data.load(DataConfig((source,), (SourceConfig(str(held)),)), "score")
    encode = encoder(world.tokenizer(), 128)
    train, held_out = (sequences.encode(side, encode) for side in (split.train, split.held_out))
    kept, _ = leakage.remove_overlap(train, held_out)
    with pytest.raises(DataError) as refused:
        row_counts.refuse_losses(split, train, kept, held_out, 0.5)
    assert f"55 of the 60 rows of {path!r} are lost: {reason}. That is more than data.max_dropped" in str(refused.value)
    row_counts.refuse_losses(split, train, kept, held_out, 0.95)
    row_counts.refuse_losses(split, train, train, held_out, 0.5, counts_held_out=False)


def test_a_loss_is_not_thinned_out_by_rows_that_were_never_wanted():
    """Of 100 rows ten are wanted, and nine of these are lost."""
    made = table(*(row(f"q{i}", f"a{i}", f"b{i}") for i in range(10)))
    kept = sequences.subset(made, [True] + [False] * 9)
    split = data.Split(made.pairs, (), (data.SourceItems("f", made.pairs, 100, n_spare=90),))
    with pytest.raises(DataError, match="9 of the 10 pairs of 'f' are lost: 9 with a response that is held out"):
        row_counts.refuse_losses(split, made, kept, table(), 0.5)


def test_a_fold_that_loses_most_of_its_training_pairs_is_refused():
    row_counts.refuse_fold(10, leakage.Overlap(5), 0.5)
    with pytest.raises(
        DataError, match="6 of the 10 training pairs of a fold are lost: 6 with a response that is held"
    ):
        row_counts.refuse_fold(10, leakage.Overlap(6), 0.5)
