"""Encoding once, batching together, fanning out: what the network reads of a table of pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.batches.members import trained_outputs
from rewardserve.training.batches.pair_batches import Collator, PairBatches, cached_rows, pack_groups, token_rows
from rewardserve.training.dataset import pairs, sequences, source_columns, sources
from rewardserve.training.dataset.sequences import FeedbackTable, PairEncodingError, TokenSequence
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.model_config import ModelConfig
from rewardserve.training.settings.optim_config import OptimConfig
from tests.support.planted_pairs import planted_rows, tokenizer


def pairs_of(rows):
    read = [sources.SourceRow("f", i, row) for i, row in enumerate(rows, 1)]
    found = source_columns.find_columns(read, SourceConfig("f"))
    return [pairs.to_pair(row, found, "score") for row in read]


@pytest.fixture(scope="module")
def encoder():
    tok = tokenizer()
    return Encoder(tok, infer_policy(tok, max_tokens=40, vocab_size=len(tok), rule=LAYOUT_RULES["language_model"]))


def table_of(comparisons, groups=None, n=None):
    """A table over made-up sequences: `comparisons` are (chosen, rejected) numbers."""
    n = n or 1 + max(max(c) for c in comparisons)
    rows = planted_rows(len(comparisons))
    for row, group in zip(rows, groups or [0] * len(rows), strict=True):
        row["group"] = group
    return FeedbackTable.of_pairs(
        pairs=tuple(pairs_of(rows)),
        sequences=tuple(TokenSequence(tuple(range(1, 3 + i)), 1, Sample(text=str(i))) for i in range(n)),
        chosen=tuple(c for c, _ in comparisons),
        rejected=tuple(r for _, r in comparisons),
        dropped={},
    )


def outputs_of(table, heads=("score",)):
    return trained_outputs(table.items, ModelConfig("model", heads=heads, head_weights=(1.0,) * len(heads)), 0)


def test_every_pair_is_encoded_as_the_server_would_encode_it(encoder):
    planted = pairs_of(planted_rows(20))
    table = sequences.encode(planted, encoder)
    assert table.pairs == tuple(planted)
    for pair, c, r in zip(table.pairs, table.chosen, table.rejected, strict=True):
        assert table.sequences[c].ids == encoder(pair.chosen).ids
        assert table.sequences[r].ids == encoder(pair.rejected).ids
        assert table.sequences[c].n_response == len(encoder(pair.chosen).ids) - encoder(pair.chosen).n_prompt


def test_a_text_in_many_pairs_is_one_sequence(encoder):
    rows = [{"prompt": "q", "chosen": f"a{i}", "rejected": f"a{j}"} for i in range(6) for j in range(6) if i != j]
    table = sequences.encode(pairs_of(rows), encoder)
    assert (len(table), len(table.sequences)) == (30, 6)


def test_what_does_not_fit_is_dropped_and_counted_and_what_is_cut_is_flagged(encoder):
    long_prompt = " stone" * 50
    rows = [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": "q", "chosen": " stone" * 60, "rejected": "no"},
        {"prompt": long_prompt, "chosen": "yes", "rejected": "no"},
    ]
    table = sequences.encode(pairs_of(rows), encoder)
    assert table.dropped == {"too_long": 1}
    assert [p.id for p in table.pairs] == ["f:1", "f:3"]
    assert [s.truncated for s in table.sequences] == [False, False, True, True]
    assert max(len(s.ids) for s in table.sequences) == 40
    used = {*table.chosen, *table.rejected}
    assert used == set(range(len(table.sequences)))


def test_two_texts_of_the_same_tokens_are_no_pair(encoder):
    table = sequences.encode(pairs_of([{"prompt": "q", "chosen": "yes", "rejected": "yes<|im_end|>"}]), encoder)
    assert (len(table), table.dropped, table.sequences) == (0, {"same_tokens": 1}, ())


def test_a_pair_the_template_refuses_is_named(encoder):
    tok = tokenizer()
    tok.chat_template = "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + tok.chat_template
    strict = Encoder(tok, infer_policy(tok, max_tokens=40, vocab_size=len(tok), rule=LAYOUT_RULES["language_model"]))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(PairEncodingError, match=r"f:1: .*one turn"):
        sequences.encode(pairs_of([{"prompt": turns, "chosen": "yes", "rejected": "no"}]), strict)


def test_a_batch_has_each_distinct_sequence_once_and_fans_it_out():
    table = table_of([(0, 1), (0, 2), (2, 1)])
    batch = Collator(table, outputs_of(table), token_rows(table, 0))([0, 1, 2])
    assert batch["input_ids"].shape == (3, 4)
    assert batch["chosen"].tolist() == [0, 0, 1]
    assert batch["rejected"].tolist() == [2, 1, 2]
    for side, numbers in (("chosen", table.chosen), ("rejected", table.rejected)):
        for place, number in zip(batch[side].tolist(), numbers, strict=True):
            row, mask = batch["input_ids"][place], batch["attention_mask"][place]
            assert tuple(row[mask.bool()].tolist()) == table.sequences[number].ids
            assert mask.tolist() == sorted(mask.tolist()), "the padding is on the left"


def test_rows_of_a_cached_network_are_sequence_numbers():
    table = table_of([(3, 1), (1, 0)])
    batch = Collator(table, outputs_of(table), cached_rows)([0, 1])
    numbers = batch["input_ids"][:, 0]
    assert numbers[batch["chosen"]].tolist() == [3, 1]
    assert numbers[batch["rejected"]].tolist() == [1, 0]


COMPARISONS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda c: c[0] != c[1]), min_size=1, max_size=60
)


@given(comparisons=COMPARISONS, budget=st.integers(2, 9), seed=st.integers(0, 5), spread=st.integers(1, 4))
def test_grouped_batches_hold_every_pair_once_within_their_budget(comparisons, budget, seed, spread):
    table = table_of(comparisons, groups=[min(c) % spread for c in comparisons], n=13)
    batches = pack_groups(table, budget, seed)
    assert sorted(n for b in batches for n in b) == list(range(len(comparisons)))
    for batch in batches:
        assert len({s for n in batch for s in (table.chosen[n], table.rejected[n])}) <= max(budget, 2)


def test_a_group_that_fits_is_never_torn():
    groups = [g for g in range(10) for _ in range(6)]
    table = table_of([(3 * g + a, 3 * g + b) for g in range(10) for a in range(3) for b in range(3) if a != b], groups)
    for batch in pack_groups(table, 7, seed=0):
        for group in {groups[n] for n in batch}:
            assert sum(groups[n] == group for n in batch) == 6


@pytest.mark.parametrize("batching", ["shuffled", "grouped"])
@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_an_epoch_is_a_function_of_seed_and_epoch_and_every_rank_takes_as_many_steps(batching, n_ranks):
    table = table_of([(i, i + 1) for i in range(40)], groups=list(range(40)))
    config = OptimConfig(batching=batching, batch_pairs=7, batch_sequences=8)

    def epoch(number, seed=1):
        batches = PairBatches(table, config, seed=seed, n_ranks=n_ranks)
        batches.set_epoch(number)
        assert len(list(batches)) == len(batches)
        return list(batches)

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=2)
    assert len(epoch(0)) % n_ranks == 0
    assert {n for b in epoch(3) for n in b} == set(range(40))


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_items_of_one_prompt_share_a_batch_of_their_step_and_the_step_stays(n_ranks):
    """Six prompts of 16 pairs each: the micro-batches of a rank's step hold other items, the step the same ones."""
    table = table_of([(8 * g + a, 8 * g + a + 1) for g in range(24) for a in range(4)], list(range(24)) * 4, n=200)
    prompts = {n: (500 + n // 32,) * 6 for n in range(200)}
    table = replace(table, sequences=tuple(replace(s, ids=prompts[i] + s.ids) for i, s in enumerate(table.sequences)))

    def steps(accumulate, n_pairs):
        config = OptimConfig(batch_pairs=n_pairs, accumulate=accumulate)
        batches = list(PairBatches(table, config, seed=3, n_ranks=n_ranks))
        by_rank = [batches[rank::n_ranks] for rank in range(n_ranks)]
        return [own[i : i + accumulate] for own in by_rank for i in range(0, len(own), accumulate)]

    def n_prompts(batches):
        return sum(len({n // 16 for n in batch}) for batch in batches)

    shuffled = [batch for step in steps(1, 4) for batch in step]
    found = steps(4, 4)
    assert n_prompts([batch for step in found for batch in step]) < 0.8 * n_prompts(shuffled)
    for step in found:
        assert all(len(batch) == 4 for batch in step)
    by_rank = [shuffled[rank * len(shuffled) // n_ranks :][: len(shuffled) // n_ranks] for rank in range(n_ranks)]
    expected = [sorted(n for b in own[i : i + 4] for n in b) for own in by_rank for i in range(0, len(own), 4)]
    assert [sorted(n for batch in step for n in batch) for step in found] == expected


def test_heads_margins_and_weights_travel_with_their_pairs():
    rows = planted_rows(2)
    first, second = sources.SourceRow("f", 1, {**rows[0], "margin": 2}), sources.SourceRow("f", 2, rows[1])
    a = pairs.to_pair(first, source_columns.find_columns([first], SourceConfig("f", weight=3.0)), "harmless")
    b = pairs.to_pair(second, source_columns.find_columns([second], SourceConfig("f")), "convincing")
    plain = table_of([(0, 1), (1, 2)])
    table = FeedbackTable.of_pairs((a, b), plain.sequences, plain.chosen, plain.rejected, {})
    batch = Collator(table, outputs_of(table, ("convincing", "harmless")), token_rows(table, 0))([1, 0])
    assert batch["head"].tolist() == [0, 1]
    assert torch.equal(batch["margin"], torch.tensor([0.0, 2.0]))
    assert torch.equal(batch["weight"], torch.tensor([1.0, 3.0]))
    assert batch["pair"].tolist() == [1, 0]


def test_sources_are_drawn_as_often_as_they_repeat():
    """A quarter of one source, new ones each epoch, and another twice and a half."""
    table = table_of([(i, i + 1) for i in range(40)])
    changed = [replace(p, source="ab"[n % 2], repeat=(0.25, 2.5)[n % 2]) for n, p in enumerate(table.pairs)]
    batches = PairBatches(replace(table, items=tuple(changed)), OptimConfig(batch_pairs=7), seed=0)
    seen = []
    for epoch in range(30):
        batches.set_epoch(epoch)
        drawn = [n for batch in batches for n in batch]
        assert len(list(batches)) == len(batches) == 8
        assert len(drawn) == 5 + 50
        seen.append(Counter(drawn))
        assert sum(seen[-1][n] for n in range(0, 40, 2)) == 5
        assert {seen[-1][n] for n in range(1, 40, 2)} == {2, 3}
    assert sum(seen, Counter()).keys() == set(range(40))
    assert seen[0] != seen[1]
