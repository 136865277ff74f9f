"""Made pairs: by seed and content alone, one kind beside another, from training pairs only, and without the canaries' words."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from rewardserve.model.conversation import Message, Sample
from rewardserve.service.tripwires.io.canaries import SHIPPED
from rewardserve.training.augmentation import augment, augment_phrases
from rewardserve.training.augmentation.augment import KINDS, augmented
from rewardserve.training.dataset import data, leakage, sequences
from rewardserve.training.dataset.data import DataError
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.evaluation import folds
from rewardserve.training.settings import recipe
from rewardserve.training.settings.data_config import AugmentConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.tiny import tiny_tokenizer
from tests.unit.training.dataset.test_leakage import encoder

HELD_OUT_INJECTIONS = Path(__file__).parents[4] / "training" / "recipes" / "injections.jsonl"
TEXT = "Tea number {i} is hot. It is made of leaves. Pour it slowly."


def pair(i, text=TEXT, **given):
    chosen, rejected = text.format(i=i), f"No tea {i}. Go away now."
    sides = [Sample(prompt=f"Make tea {i}", response=each) for each in (chosen, rejected)]
    return replace(Pair(f"f:{i}", "s", f"g{i}", "score", *sides, chosen, rejected), **given)


PAIRS = tuple(pair(i) for i in range(40))


def made(kind, pairs=PAIRS, seed=0, **given):
    return augmented(pairs, AugmentConfig(**{kind: 1.0}, **given), seed)


def response(sample):
    return sample.texts()[1]


# -- what a kind makes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_pair_answers_the_same_prompt_and_keeps_the_group_head_and_source_of_its_pair(kind):
    by_id = {p.id: p for p in PAIRS}
    for each in made(kind):
        own = by_id[each.id]
        assert (each.group, each.head, each.source, each.made) == (own.group, own.head, own.source, kind)
        assert each.chosen.prompt == each.rejected.prompt == own.chosen.prompt
        assert (response(each.chosen), response(each.rejected)) == (each.chosen_text, each.rejected_text)
        assert each.chosen_text != each.rejected_text


def test_an_answer_to_another_prompt_loses_and_is_a_chosen_one_of_another_group():
    texts = {p.chosen_text: p.group for p in PAIRS}
    for each in made("other_prompt"):
        assert each.chosen_text == TEXT.format(i=each.id[2:])
        assert texts[each.rejected_text] == each.donor_group != each.group


def test_responses_of_two_heads_are_not_mixed():
    pairs = [replace(p, head="ab"[i % 2]) for i, p in enumerate(PAIRS)]
    head_of = {p.group: p.head for p in pairs}
    assert all(head_of[each.donor_group] == each.head for each in made("other_prompt", pairs))


@pytest.mark.parametrize("kind", ["neutral", "markup"])
def test_a_tie_is_two_opposite_pairs_of_half_the_weight(kind):
    found = made(kind, weight=0.5)
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.weight == other.weight == 0.25
    assert augment.counts(found) == {kind: len(found) // 2}


def words(text):
    return Counter(re.findall(r"[a-z0-9]+", text.lower()))


def test_markup_keeps_the_words():
    for each in made("markup"):
        without_numbers = re.sub(r"^\d+\. ", "", each.rejected_text, flags=re.MULTILINE)
        other = re.sub(r"^\d+\. ", "", each.chosen_text, flags=re.MULTILINE)
        assert words(without_numbers) == words(other)


def test_a_truncated_response_is_a_beginning_without_its_end():
    for each in made("truncated"):
        assert each.chosen_text.startswith(each.rejected_text)
        assert 0 < len(each.rejected_text) < len(each.chosen_text) - 1
        assert each.rejected_text[-1] not in ".!?"


def test_a_repetition_has_no_word_that_the_response_has_not():
    lengths = []
    for each in made("repeated"):
        assert set(words(each.rejected_text)) <= set(words(each.chosen_text))
        lengths.append(each.rejected_text.count(each.chosen_text))
    assert {2, 3} <= set(lengths), "the whole answer twice and three times"


INJECTED = (*augment_phrases.INJECTIONS, *augment_phrases.ORDERS[3])


def test_a_phrase_is_put_before_after_and_in_place_of_the_response():
    places = Counter()
    for each in made("flattery"):
        assert any(phrase in each.rejected_text for phrase in augment_phrases.FLATTERY)
        places[each.rejected_text.find(each.chosen_text) > 0, each.chosen_text in each.rejected_text] += 1
    assert len(places) == 3


def test_an_injected_phrase_is_put_before_after_inside_quoted_behind_and_in_place_of_the_response():
    places = set()
    for each in made("injection"):
        assert any(phrase in each.rejected_text for phrase in INJECTED)
        before, found, after = each.rejected_text.partition(each.chosen_text)
        words = each.chosen_text.split(" ")
        half = " ".join(words[: len(words) // 2])
        if found:
            places.add("before" if before else "quote" if after.strip().startswith(("> ", "They wrote:")) else "after")
        else:
            places.add("middle" if each.rejected_text.startswith(f"{half} ") else "instead")
    assert places == {"before", "after", "middle", "quote", "instead"}


def test_most_responses_beside_an_injected_text_are_their_longest_sentence():
    texts = [each.chosen_text for each in made("injection")]
    assert 20 < sum(text.count(".") == 1 for text in texts) < 40
    assert "Pour it slowly." not in texts


def test_what_says_nothing_of_quality_is_added_to_either_response():
    ends = {each.chosen_text.endswith("Go away now.") for each in made("repeated")}
    assert ends == {True, False}


# -- which pairs ------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_pairs_whatever_the_file_the_order_and_the_other_kinds():
    elsewhere = [replace(p, id=f"other:{p.id}") for p in reversed(PAIRS)]
    for kind in ("repeated", "other_prompt"):
        alone = made(kind)
        both = augmented(elsewhere, AugmentConfig(**{kind: 1.0}, empty=0.5), 0)
        assert [(p.chosen, p.rejected) for p in both if p.made == kind] == [(p.chosen, p.rejected) for p in alone]
        assert made(kind, seed=1) != alone


def test_a_response_that_was_preferred_to_many_is_one_response():
    many = [
        replace(
            PAIRS[0], id=f"f:{i}", rejected=replace(PAIRS[0].rejected, response=f"No {i}."), rejected_text=f"No {i}."
        )
        for i in range(9)
    ]
    assert len(made("empty", many)) == 1


def test_the_rate_is_a_share_of_the_chosen_responses():
    pairs = [pair(i) for i in range(1000)]
    n = len(augmented(pairs, AugmentConfig(empty=0.2), 0))
    assert 150 < n < 250
    assert len(augmented(pairs, AugmentConfig(empty=1.0), 0)) == 1000


def test_the_weight_is_relative_to_that_of_the_pair():
    assert {p.weight for p in made("empty", [replace(p, weight=3.0) for p in PAIRS], weight=0.5)} == {1.5}


def test_a_made_pair_trains_the_named_heads_whatever_its_source():
    pairs = [replace(p, head="ab"[i % 2]) for i, p in enumerate(PAIRS)]
    assert Counter(p.head for p in made("repeated", pairs, heads=("a",))) == {"a": 40}
    assert {p.id for p in made("repeated", pairs, heads=("a",))} == {p.id for p in PAIRS}
    assert Counter(p.head for p in made("repeated", pairs, heads=("a", "b"))) == {"a": 40, "b": 40}


def test_what_is_made_of_a_tie_is_a_preference():
    assert {p.tie for p in made("empty", [replace(p, tie=True) for p in PAIRS])} == {False}


def test_nothing_is_made_by_default():
    assert augmented(PAIRS, AugmentConfig(), 0) == ()
    assert not AugmentConfig().is_on


def test_messages_and_joined_text_are_edited_at_their_end():
    turns = (Message("user", "Make tea"), Message("assistant", "Hot. Sweet."))
    other = (*turns[:1], Message("assistant", "No."))
    p = replace(
        pair(0),
        chosen=Sample(messages=turns),
        rejected=Sample(messages=other),
        chosen_text="Hot. Sweet.",
        rejected_text="No.",
    )
    (each,) = made("empty", [p])
    assert each.rejected.messages[0] == turns[0]
    assert each.rejected.messages[1].content == each.rejected_text
    joined = [Sample(text=f"Q:{a}", n_prompt_chars=2) for a in ("Hot. Sweet.", "No.")]
    (each,) = made("empty", [replace(p, chosen=joined[0], rejected=joined[1])])
    assert each.rejected == Sample(text=f"Q:{each.rejected_text}", n_prompt_chars=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_response_ends_as_the_one_that_it_is_made_of(kind):
    """Otherwise the end token would tell which one is better."""
    pairs = tuple(replace(p, rejected=replace(p.rejected, finish_reason="length")) for p in PAIRS)
    reasons = {response(s): s.finish_reason for p in pairs for s in p.samples}
    found = made(kind, pairs)
    for each in found:
        of_texts = [reasons.get(text) for text in each.texts]
        ends = [s.finish_reason for s in each.samples]
        assert all(known in (None, end) for known, end in zip(of_texts, ends, strict=True))
        assert kind == "neutral" or ends[0] == ends[1] or each.donor_group
    if kind in ("repeated", "flattery", "markup", "injection"):
        assert {s.finish_reason for each in found for s in each.samples} == {"stop", "length"}


def test_a_kind_that_makes_no_pair_is_refused_with_its_name():
    with pytest.raises(DataError, match=r"augment\.other_prompt is 1 and makes no pair of 1 chosen responses"):
        made("other_prompt", PAIRS[:1])
    rendered = replace(pair(0), chosen=Sample(text="Q:a"), rejected=Sample(text="Q:b"))
    with pytest.raises(DataError, match="of 0 chosen responses that are single texts"):
        made("empty", [rendered])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": 0.5}, "augment.weight is 0.5, which has no effect with no rate of a kind in augment"),
        ({"heads": ["score"]}, "augment.heads is ('score',), which has no effect with no rate of a kind in augment"),
        ({"heads": ["other"], "empty": 0.1}, "augment.heads is ['other']; model.heads are ['score']"),
        ({"empty": 1.5}, "augment.empty is 1.5; it must be at least 0 and at most 1"),
        ({"weight": 0, "empty": 0.1}, "augment.weight is 0.0; it must be above 0"),
        ({"flatery": 0.1}, "did you mean 'augment.flattery'"),
    ],
)
def test_an_idle_or_unknown_setting_is_refused(given, message):
    raw = {"model": {"path": "m"}, "data": {"sources": [{"path": "p"}]}, "output": {"folder": "o"}, "augment": given}
    with pytest.raises(ConfigError, match=re.escape(message)):
        recipe.parse(raw)


# -- held-out pairs ---------------------------------------------------------------------------------------


def table(pairs):
    return sequences.encode(pairs, encoder(tiny_tokenizer(), 400))


def test_a_made_pair_with_a_held_out_response_is_left_out():
    held = replace(pair(100), chosen=Sample(prompt="Make tea 3", response=TEXT.format(i=7)), group="held")
    all_made = [each for seed in range(40) for each in made("other_prompt", PAIRS[:10], seed)]
    leaks = [each for each in all_made if response(each.rejected) == TEXT.format(i=7) and each.id == "f:3"]
    _, overlap = leakage.remove_overlap(table(all_made), table([held]))
    assert leaks
    assert overlap.n_dropped == len(leaks)


def test_in_folds_a_made_pair_is_never_held_out_and_never_trains_on_a_held_out_group():
    joined = sequences.joined(table(PAIRS), table(made("other_prompt")))
    fold_P = folds.assign_folds(joined.pairs, 4, "s")
    for fold in set(fold_P):
        held_in, held_out = folds.split_fold(joined, fold_P, fold)
        held_groups = {p.group for p in held_out.pairs}
        assert not any(p.made for p in held_out.pairs)
        assert any(p.made for p in held_in.pairs)
        assert not held_groups & {g for p in held_in.pairs for g in (p.group, p.donor_group)}
        assert {p.group for p in PAIRS} == held_groups | {p.group for p in held_in.pairs if not p.made}


def test_joined_tables_share_their_sequences_and_the_digest_of_the_data_is_that_of_the_pairs_that_were_read():
    real, new = table(PAIRS), table(made("truncated"))
    both = sequences.joined(real, new)
    assert both.sequences[: len(real.sequences)] == real.sequences
    assert len({s.ids for s in both.sequences}) == len(both.sequences)
    for side, text in ((both.chosen, "chosen"), (both.rejected, "rejected")):
        for p, n in zip(both.pairs, side, strict=True):
            assert both.sequences[n].sample == getattr(p, text)
    assert data.digest(both.pairs) == data.digest(PAIRS)


# -- the canaries stay an independent test ----------------------------------------------------------------


def trigrams(text):
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}


def orders():
    """Every order's beginning and end: three words in a row are in two neighbouring parts, or in three if one is a single word."""
    return [" ".join(parts) for i in range(3) for parts in product(*augment_phrases.ORDERS[i : i + 3])]


def test_no_phrase_has_three_words_in_a_row_of_a_canary_or_is_one():
    exploits = [canary["exploit"] for canary in json.loads(SHIPPED.read_text())]
    listed = (
        augment_phrases.EMPTY,
        augment_phrases.OPENERS,
        augment_phrases.FLATTERY,
        augment_phrases.INJECTIONS,
        orders(),
    )
    phrases = [phrase for each in listed for phrase in each]
    in_canaries = set().union(*map(trigrams, exploits))
    assert [phrase for phrase in phrases if trigrams(phrase) & in_canaries] == []
    assert {e.strip().lower() for e in exploits}.isdisjoint(p.strip().lower() for p in phrases)


def test_no_injected_phrase_has_three_words_in_a_row_of_a_held_out_one():
    rows = [json.loads(line) for line in HELD_OUT_INJECTIONS.read_text("utf-8").splitlines()]
    held_out = set().union(*(trigrams(row["rejected"]) - trigrams(row["chosen"]) for row in rows))
    phrases = (*augment_phrases.INJECTIONS, *orders())
    assert [phrase for phrase in phrases if trigrams(phrase) & held_out] == []
