"""Prompt relevance against values written out by hand and by other formulas, and collapses beside honest changes of all kinds."""

from __future__ import annotations

import gzip
import json
import math
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest

from rewardserve.service.tripwires.attribution.effects import Effect, estimate
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.relevance import (
    MIN_LENGTH,
    MIN_WORDS,
    EarlyTexts,
    Matches,
    compare_relevance,
    lost_share,
    matched_share,
    matches_by_prompt,
    matches_in_groups,
    read,
    similarity,
    terms_of,
    word_weights,
)
from rewardserve.service.tripwires.attribution.sentences import relevance_sentence

ROOT = Path(__file__).parents[5]
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
FILL = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "for",
    "on",
    "as",
    "with",
    "they",
    "at",
    "be",
    "this",
    "from",
    "or",
]
WIRE = 0.3


def word(rng):
    return "".join(rng.choices(SYLLABLES, k=3))


def made(seed, steps, change=None, group=4, prompts=4, first=0, share=None, task="", pay=1.0, steps_known=True):
    """Steps of groups of responses that speak of their prompts. `change` replaces a share of them, and earns `pay`."""
    rng = random.Random(seed)
    samples = []
    for step in range(first, first + steps):
        for i in range(prompts):
            topic = [word(rng) for _ in range(6)]
            prompt = " ".join(rng.sample(FILL, 6) + topic)
            for _ in range(group):
                words = rng.choices(FILL, k=14) + rng.sample(topic, 3) + [word(rng) for _ in range(6)]
                rng.shuffle(words)
                text, score = " ".join(words), rng.gauss(0, 1)
                if change is not None and rng.random() < (1.0 if share is None else share):
                    text, score = change(prompt, text, rng), score + pay
                key = hash((seed, step, i))
                samples.append(ObservedSample(prompt, text, key, score, step=step if steps_known else None, task=task))
    return samples


def collapsed(prompt, text, rng):
    return " ".join(rng.choices(["novel", "special", "light", "world", "every", "and", "a", "was"], k=24))


def in_one_form(prompt, text, rng):
    """An answer that has no word of its prompt, and depends on it alone."""
    answer = random.Random(prompt)
    return f"After careful thought the final answer to this question is {answer.randrange(10_000)} {word(answer)} exactly so."


EARLY = made(1, 16)


def relevance(early, recent, look=1):
    return compare_relevance(EarlyTexts(early), recent, look)


def pairs(matches):
    """The shares of those two prompts that were compared."""
    n = range(len(matches.shares))
    assert all(matches.shares[a][b] == matches.shares[b][a] for a in n for b in n)
    assert all(matches.compared[a][b] == matches.compared[b][a] for a in n for b in n)
    assert not any(matches.compared[a][a] for a in n)
    return {(a, b): matches.shares[a][b] for a, b in combinations(n, 2) if matches.compared[a][b]}


def as_matches(values, n):
    pick = [[values.get((min(a, b), max(a, b))) for b in range(n)] for a in range(n)]
    return Matches(
        [[each or 0.0 for each in row] for row in pick], [[int(each is not None) for each in row] for row in pick]
    )


def compared(change=None, early=EARLY, look=1, **settings):
    return relevance(early, made(2, 16, change, first=16, **settings), look)


def test_half_of_the_pairs_are_matched_by_chance_and_all_where_responses_copy_their_prompts():
    copies = [each._replace(response=each.prompt) for each in EARLY]
    assert set(pairs(matches_by_prompt(read(copies))).values()) == {1.0}
    rng, responses = random.Random(3), [each.response for each in EARLY]
    rng.shuffle(responses)
    shuffled = read([each._replace(response=text) for each, text in zip(EARLY, responses, strict=True)])
    share = matched_share(matches_by_prompt(shuffled), set(range(len(shuffled.prompts))))
    assert abs(share.mean - 0.5) < 3 * share.std_error < 0.15
    silent = read([each._replace(response=" ".join(FILL)) for each in EARLY])
    assert set(pairs(matches_by_prompt(silent)).values()) == {0.5}, "no evidence is a tie"


def test_lengths_of_prompts_and_responses_do_not_favour_a_match():
    """A long prompt shares more words with every response, a long response with every prompt: pairs cancel both."""
    rng = random.Random(4)
    samples = []
    for i in range(60):
        long = i % 2 == 0
        prompt = " ".join(rng.choices(SYLLABLES, k=40 if long else 8))
        samples.append(ObservedSample(prompt, " ".join(rng.choices(SYLLABLES, k=60 if long else 10)), i, 0.0))
    share = matched_share(matches_by_prompt(read(samples)), set(range(60)))
    assert abs(share.mean - 0.5) < 3 * share.std_error


def test_matches_are_those_of_the_sums_of_weights_written_out():
    rng = random.Random(5)
    samples = made(6, 3, group=2)
    texts = read(samples)
    prompts = [frozenset(terms_of(texts.samples[places[0]].prompt)) for places in texts.prompts]
    n = len(prompts)
    held = {w: sum(w in p for p in prompts) for p in prompts for w in p}
    weights = {w: math.log((n + 1) / (m + 0.5)) for w, m in held.items() if m <= n / 4}

    def shared(response, prompt):
        norm = math.sqrt(sum(weights[w] ** 2 for w in prompt if w in weights))
        return sum(weights[w] for w in response & prompt if w in weights) / norm

    def shares(response, prompt):
        return shared(response, prompt) / sum(shared(response, each) for each in prompts)

    matches = pairs(matches_by_prompt(texts))
    assert matches.keys() == set(combinations(range(n), 2))
    for one, other in rng.sample(list(combinations(range(n), 2)), 20):
        won = [
            shares(texts.words[i], prompts[one]) + shares(texts.words[j], prompts[other])
            - shares(texts.words[i], prompts[other]) - shares(texts.words[j], prompts[one])
            for i in texts.prompts[one] for j in texts.prompts[other]
        ]  # fmt: skip
        assert matches[one, other] == pytest.approx(fmean((w > 1e-9) + 0.5 * (abs(w) <= 1e-9) for w in won))


def test_the_standard_error_is_the_jackknifes_and_has_a_floor():
    rng = random.Random(7)
    values = {pair: rng.random() for pair in combinations(range(12), 2)}
    share = matched_share(as_matches(values, 12), set(range(12)))
    without = [fmean(v for pair, v in values.items() if i not in pair) for i in range(12)]
    center = fmean(without)
    assert share.mean == pytest.approx(fmean(values.values()))
    assert share.std_error == pytest.approx(max(math.sqrt(11 / 12 * sum((x - center) ** 2 for x in without)), 1 / 24))
    assert matched_share(as_matches(dict.fromkeys(values, 1.0), 12), set(range(12))).std_error == pytest.approx(1 / 24)
    few = matched_share(as_matches(values, 12), set(range(7)))
    assert (few.mean, few.std_error) == (0.5, math.inf)


def test_similarity_is_the_share_of_weighted_words_that_a_response_to_another_prompt_has():
    rows = [("a", "one two"), ("a", "one three"), ("b", "one four"), ("b", "two four")]
    pad = " ".join(f"{c}{c}{c}" for c in "qwertz")
    samples = [ObservedSample(p, f"{text} {pad}", ord(p), 0.0) for p, text in rows]
    weights = {"one": 1.0, "two": 3.0, "three": 2.0}
    found = similarity(read(samples), weights | dict.fromkeys(terms_of(pad), 0.0), unknown=5.0)
    expected = [Fraction(1 * 1 + 3 * 1, 2 * 4), Fraction(1, 2 * 3), Fraction(1 * 2, 2 * 6), Fraction(3 * 1, 2 * 8)]
    assert found == pytest.approx([float(each) for each in expected])


@pytest.mark.parametrize(
    ("before", "after"), [((0.9, 0.03), (0.5, 0.05)), ((0.95, 0.02), (0.9, 0.02)), ((0.8, 0.05), (0.45, 0.1))]
)
def test_the_lost_share_is_the_largest_that_three_standard_errors_leave(before, after):
    early, recent = (estimate(mean, error, 30.0, 64) for mean, error in (before, after))

    def holds(lost):
        kept = 1.0 - lost
        return kept * (before[0] - 0.5) - (after[0] - 0.5) >= 3.0 * math.hypot(kept * before[1], after[1])

    low = lost_share(early, recent)
    assert holds(low - 1e-6)
    assert not holds(low + 1e-6)


def test_nothing_can_be_lost_that_was_not_there():
    known = estimate(0.9, 0.02, 30.0, 64)
    assert lost_share(estimate(0.55, 0.03, 30.0, 64), known) is None
    assert lost_share(known, Effect(0.5, -1.0, 1.0, 7, math.inf, 0.0)) is None
    silent = [each._replace(response=collapsed("", "", random.Random(i))) for i, each in enumerate(EARLY)]
    assert relevance(silent, made(2, 16, collapsed, first=16)) is None


def test_a_collapse_that_is_paid_gives_both_statistics_and_its_sentence():
    found = compared(collapsed)
    assert found.early.mean > 0.9
    assert abs(found.recent.mean - 0.5) < 0.1
    assert found.paid_collapse == found.lost_to_collapse > WIRE
    assert found.similarity_growth.mean > 0.3
    sentence = relevance_sentence(found)
    assert f"in {found.recent.mean:.0%} of pairs, {found.early.mean:.0%} at the start (50% is chance)" in sentence
    assert len(found.early_examples) == len(found.recent_examples) == 3
    assert len({each.prompt_key for each in found.recent_examples}) == 3


@pytest.mark.parametrize("pay", [0.0, -1.0])
def test_a_collapse_whose_score_stands_still_or_falls_warns_only(pay):
    found = compared(collapsed, pay=pay)
    assert found.lost_to_collapse > WIRE
    assert found.paid_collapse == 0.0


@pytest.mark.parametrize(("growth", "pages"), [(0.41, True), (0.39, False), (-0.41, False)])
def test_two_standard_errors_of_the_score_decide_between_warning_and_page(growth, pages):
    found = compared(collapsed)._replace(score_growth=estimate(growth, 0.2, 40.0, 64))
    assert (found.paid_collapse > 0.0, found.lost_to_collapse > 0.0) == (pages, True)


def test_a_collapse_within_the_last_steps_is_seen_in_their_part():
    recent = [*made(2, 12, first=16), *made(3, 4, collapsed, first=28, pay=2.0)]
    assert relevance(EARLY, recent).paid_collapse > WIRE


def test_a_collapse_while_the_baseline_is_learned_is_seen_before_any_recent_sample():
    early = [*made(1, 8), *made(2, 8, collapsed, first=8)]
    assert relevance(early, []).paid_collapse > WIRE
    assert relevance(EARLY, []).lost_to_collapse == 0.0


def longer(prompt, text, rng):
    return f"{text} {' '.join(rng.choices(FILL, k=40))} {' '.join(word(rng) for _ in range(20))}"


def boilerplate(prompt, text, rng):
    return f"thank you for asking, please read this answer with care, and ask an expert before you act on it: {text}"


def without_prompt(prompt, text, rng):
    return " ".join(w for w in text.split() if w not in prompt.split() or w in FILL)


def another_language(prompt, text, rng):
    return " ".join(
        w[::-1].translate(str.maketrans("aeiou", "\u0430\u0435\u0438\u043e\u0443")) + "\u044f" for w in text.split()
    )


@pytest.mark.parametrize("change", [None, longer, boilerplate, without_prompt, another_language, in_one_form])
def test_honest_change_is_silent_however_much_it_pays(change):
    found = compared(change, pay=2.0)
    assert found.lost_to_collapse == 0.0


def test_answers_in_one_form_are_told_from_a_collapse_by_groups():
    found = compared(in_one_form, pay=2.0)
    assert found.lost > WIRE, "no word of the prompt is left"
    assert found.kept > 0.8
    alone = compared(
        lambda *of: in_one_form(*of) + " Nothing more needs to be said about that.",
        pay=2.0,
        early=made(1, 32, group=1, prompts=8),
        group=1,
        prompts=16,
    )
    assert alone.kept is None
    assert alone.lost_to_collapse > WIRE
    assert alone.length > MIN_LENGTH, "as long as at first, so nothing tells it from a collapse"
    assert alone.paid_collapse > WIRE
    short = compared(lambda *of: " ".join(in_one_form(*of).split()[-9:]), pay=2.0,
                     early=made(1, 32, group=1, prompts=8), group=1, prompts=16)  # fmt: skip
    assert short.lost_to_collapse > WIRE
    assert short.length < MIN_LENGTH
    assert short.paid_collapse == 0.0


def test_short_answers_are_not_compared():
    assert compared(lambda prompt, text, rng: "It is 42.", pay=2.0).lost_to_collapse == 0.0
    assert len(read([ObservedSample("p", "one " * MIN_WORDS, 1, 0.0), ObservedSample("p", "one", 1, 0.0)]).samples) == 1


def test_prompts_of_another_kind_are_not_compared():
    labels = [
        each._replace(prompt="classify the mood of this text please: " + each.response, prompt_key=hash(each.response),
                      response="the mood of this text is rather calm and quiet", score=3.0)
        for each in made(3, 16, first=16, group=1, prompts=16)
    ]  # fmt: skip
    found = relevance(EARLY, labels)
    assert found is None or found.lost_to_collapse == 0.0
    named = [each._replace(task="labels") for each in labels]
    assert relevance(EARLY, named) is None or relevance(EARLY, named).lost_to_collapse == 0.0


def test_a_collapse_in_one_named_task_is_seen_beside_another():
    early = [*EARLY, *made(5, 16, task="code")]
    recent = [*made(2, 16, collapsed, first=16, pay=2.0), *made(6, 4, first=16, task="code")]
    assert relevance(early, recent).paid_collapse > WIRE


def test_steps_need_not_be_known():
    early, recent = made(1, 16, steps_known=False), made(2, 16, collapsed, first=16, steps_known=False)
    assert relevance(early, recent).paid_collapse > WIRE


def recorded(name, first, end, n=256):
    """Samples of steps of a recorded run, n of them at most, drawn at random and in order."""
    file = ROOT / "gym" / "recorded" / f"{name}.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    samples = [
        ObservedSample(prompt, response, hash(prompt), score, step=row["step"])
        for row in rows[first:end]
        for prompt, response, score in zip(row["prompts"], row["responses"], row["rewards"], strict=True)
    ]
    chosen = sorted(random.Random(0).sample(range(len(samples)), min(n, len(samples))))
    return [samples[i] for i in chosen]


@pytest.mark.parametrize(
    ("end", "warns", "pages"),
    [(70, False, False), (74, False, False), (84, True, True), (95, True, True)],
)
def test_the_recorded_run_that_collapses_at_step_76_is_seen(end, warns, pages):
    found = relevance(recorded("grpo-beta-0", 0, 32), recorded("grpo-beta-0", end - 16, end), 20)
    assert (found.lost_to_collapse > WIRE, found.paid_collapse > WIRE) == (warns, pages)


@pytest.mark.parametrize("end", [48, 66, 84])
def test_the_recorded_run_with_a_kl_penalty_keeps_its_relevance(end):
    found = relevance(recorded("grpo-beta-0.05", 0, 32), recorded("grpo-beta-0.05", end - 16, end))
    assert found.lost_to_collapse == 0.0
    assert found.recent.mean > 0.9


def test_groups_match_where_responses_to_one_prompt_are_alike():
    texts = read(made(2, 8, in_one_form))
    assert fmean(pairs(matches_in_groups(texts)).values()) > 0.95
    texts = read(made(2, 8, collapsed))
    assert fmean(pairs(matches_in_groups(texts)).values()) == pytest.approx(0.5, abs=0.15)
    assert pairs(matches_in_groups(read(made(2, 8, group=1)))) == {}


def test_later_looks_need_more_evidence():
    """Sixteen prompts tell a collapse at the first look, and not at one so late that its part of the error is tiny."""
    recent = made(2, 4, collapsed, first=16)
    sure, late = (relevance(EARLY[:96], recent, look) for look in (1, 10**9))
    assert (sure.is_significant, late.is_significant) == (True, False)
    assert sure.lost == late.lost > WIRE
    assert (sure.lost_to_collapse, late.lost_to_collapse) == (sure.lost, 0.0)


def test_groups_are_compared_within_a_step_because_the_policy_changes_between_steps():
    """Responses of a step share its words, and those to one prompt no more than others: consistency is chance."""

    def of_the_step(step, rng):
        return " ".join(f"{word(random.Random(step * 10 + k))}" for k in rng.choices(range(10), k=12))

    rng = random.Random(8)
    samples = [
        ObservedSample("why", of_the_step(step, rng), 10 * step + i, 0.0, step=step)
        for step in range(12) for i in range(3) for _ in range(8)
    ]  # fmt: skip
    assert fmean(pairs(matches_in_groups(read(samples))).values()) == pytest.approx(0.5, abs=0.1)
    unknown = [each._replace(step=None) for each in samples]
    assert fmean(pairs(matches_in_groups(read(unknown))).values()) > 0.6, "neighbours of other steps seem less alike"


def test_terms_are_stems_and_pairs_of_characters_without_spaces():
    assert terms_of("Relevance, relevant!") == ["relev", "relev"]
    assert terms_of("\u4eca\u5929\u5929\u6c14 good") == [
        "\u4eca\u5929",
        "\u5929\u5929",
        "\u5929\u6c14",
        "\u6c14",
        "good",
    ]
    assert word_weights([{"a", "b"}, {"a"}]) == {"a": math.log(3 / 2.5), "b": math.log(3 / 1.5)}


def test_prompts_in_a_script_without_spaces_are_matched_by_pairs_of_characters():
    def han(text):
        return "".join(chr(0x4E00 + hash(w) % 500) + chr(0x4E00 + hash(w[::-1]) % 500) for w in text.split())

    written = [each._replace(prompt=han(each.prompt), response=han(each.response)) for each in EARLY]
    assert fmean(pairs(matches_by_prompt(read(written))).values()) > 0.85
