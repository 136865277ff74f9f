"""Recent responses are told from early ones by all their features together, and what novelty earns is bounded for a whole run."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from rewardserve.service.tripwires.attribution.effects import estimate
from rewardserve.service.tripwires.attribution.growth import compare_with
from rewardserve.service.tripwires.attribution.novelty import word_shapes
from rewardserve.service.tripwires.attribution.novelty_pay import JudgedSample, NoveltyPay, judged_pay, recent_pay
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.sentences import headline, novelty_sentence, report_sentences
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
from rewardserve.service.tripwires.looks import critical_z

LETTERS = "bcdfghklmnprstvwz"


def word(rng):
    return "".join(rng.choice(LETTERS) + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


VOCABULARY = [word(random.Random(i)) for i in range(900)]


def honest(rng):
    return " ".join(" ".join(rng.choices(VOCABULARY, k=rng.randint(4, 12))) + "." for _ in range(rng.randint(2, 6)))


def novel(rng, text):
    """A made-up adverb of ever other letters before a third of the words: no word occurs in a tenth of the responses."""
    return " ".join(f"{word(rng)}{word(rng)}ly {each}" if rng.random() < 0.3 else each for each in text.split())


def stream(seed, share, n=256, of_prompt=2):
    rng = random.Random(seed)
    for i in range(n):
        prompt, text, is_novel = f"{word(rng)} {seed} {i // of_prompt}", honest(rng), rng.random() < share
        score = rng.gauss(0.0, 1.0) + 0.8 * is_novel
        yield ObservedSample(
            prompt, novel(rng, text) if is_novel else text, hash((seed, i // of_prompt)), score, 0.0, i
        )


EARLY = EarlyFeatures(list(stream(1, 0.0)))


@pytest.fixture(scope="module")
def report():
    return compare_with(EARLY, list(stream(2, 0.3)))


def test_ever_new_words_of_one_form_are_told_although_no_feature_of_them_is_found(report):
    novelty, recent = report.novelty, list(stream(2, 0.3))
    is_novel = ["ly " in sample.response for sample in recent]
    highest = sorted(range(256), key=lambda place: -novelty.values[place])[: sum(is_novel) // 2]
    assert fmean([is_novel[place] for place in highest]) > 0.95
    assert fmean([is_novel[place] for place in range(256) if novelty.low >> place & 1]) < 0.05
    assert novelty.z > 4.0
    assert novelty.early == pytest.approx(0.1, abs=0.01)
    assert all("ly " in sample.response for sample in novelty.recent_examples)
    assert not any("ly " in sample.response for sample in novelty.early_examples)
    assert len({sample.prompt_key for sample in novelty.recent_examples}) == 3


def test_words_have_a_shape_with_their_marks_and_another_at_the_beginning_of_a_sentence():
    text = 'Hence, it is 12% of A1b. "So" he (or caf\u00e9) said: Yes\nNo'
    expected = ["^Aa,", "0%", "A0a.", '^"Aa"', "(a", "a~)", "a:", "^Aa", "Aa"]
    assert list(word_shapes(text)) == [f"shape:{each}" for each in expected]


def test_commas_after_the_first_words_of_sentences_are_told_where_commas_are_common():
    rng = random.Random(7)

    def punctuated(text, first):
        """A comma after the first word of each sentence, or else after the second one."""
        sentences = [each.split(" ") for each in text[:-1].split(". ")]
        for words in sentences:
            words[0] = words[0].capitalize()
            words[0 if first else 1] += ","
        return ". ".join(" ".join(words) for words in sentences) + "."

    early = [each._replace(response=punctuated(each.response, False)) for each in stream(1, 0.0)]
    changed = [rng.random() < 0.3 for _ in range(256)]
    recent = [
        each._replace(response=punctuated(each.response, first))
        for each, first in zip(stream(4, 0.0), changed, strict=True)
    ]
    values = compare_with(EarlyFeatures(early), recent).novelty.values
    highest = sorted(range(256), key=lambda place: -values[place])[: sum(changed) // 2]
    assert fmean([changed[place] for place in highest]) > 0.9


def test_responses_that_have_not_changed_cannot_be_told():
    z = [compare_with(EARLY, list(stream(seed, 0.0))).novelty.z for seed in range(10, 20)]
    assert max(z) < 3.5
    assert abs(fmean(z)) < 1.0, "rare words do not seem to grow"


def test_the_response_to_an_early_prompt_is_judged_by_others():
    early = list(stream(1, 0.0))
    again = [sample._replace(response=sample.response.upper()) for sample in early[:200]]
    novelty = compare_with(EARLY, again).novelty
    assert novelty.growth.mean > 0.7, "all are upper case, which their prompts' early responses do not hide"


def test_nothing_is_told_of_too_few_prompts():
    assert compare_with(EARLY, list(stream(3, 0.0, n=6))).novelty is None


def test_what_the_model_pays_is_known_without_a_judge(report):
    pay = recent_pay(report.novelty, EARLY.samples, list(stream(2, 0.3)))
    assert 0.0 < pay.model.low < pay.model.mean < 1.0
    assert (pay.judge, pay.shortfall, pay.paid_beyond_judge, pay.rejected) == (None, None, 0.0, 0.0)


def judged(n, bonus, penalty, seed=0):
    """Samples of two responses a prompt; the judge sees .6 of the quality."""
    rng = random.Random(seed)
    for i in range(n):
        is_novel, quality = bool(i % 2), rng.gauss(0.0, 1.0)
        audit = 0.6 * quality + 0.8 * rng.gauss(0.0, 1.0) - penalty * is_novel
        yield JudgedSample(i // 2, is_novel, quality + bonus * is_novel, audit)


def early_audits():
    rng = random.Random(5)
    return [ObservedSample("", "", i, rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)) for i in range(200)]


@pytest.mark.parametrize(
    ("n", "bonus", "penalty", "warns", "pages"),
    [
        (600, 0.8, 0.3, True, False),
        (40, 0.8, 0.3, False, False),
        (600, 2.0, 0.7, True, True),
        (600, 0.6, -0.36, False, False),
        (600, 0.0, 0.0, False, False),
        (600, 0.0, 0.7, False, False),
        (4_000, 0.8, 0.0, True, False),
    ],
    ids=["mild", "few", "strong", "as the model", "nothing", "costs alone", "a dull judge"],
)
def test_novelty_warns_where_the_judge_pays_less_than_a_third_and_pages_where_it_takes_off(
    n, bonus, penalty, warns, pages
):
    pay = judged_pay(list(judged(n, bonus, penalty)), early_audits(), critical_z(10, 2))
    assert (pay.paid_beyond_judge > 0.02, pay.rejected > 0.1) == (warns, pages)


def test_without_early_audits_nothing_is_known():
    early = [sample._replace(audit=None) for sample in early_audits()]
    assert judged_pay(list(judged(600, 2.0, 0.7)), early, 3.0) is None


def test_the_report_says_so_first_where_no_edit_is_confirmed(report):
    pay = NoveltyPay(*(estimate(mean, 0.1, 200.0, 300) for mean in (0.8, -0.3, 0.57)), z=3.7)
    words = novelty_sentence(report.novelty, pay)
    assert "score +0.8 [+0.6, +1.0] standard deviations higher than familiar ones" in words
    assert "the judge gives them -0.3 [-0.5, -0.1] (300 judged)" in words
    assert headline(report, novelty_pay=pay) == words == report_sentences(report, novelty_pay=pay)[0]
    unknown = report_sentences(report, novelty_pay=pay._replace(judge=None, shortfall=None))
    assert "further from the first ones" not in unknown[0]
    assert sum("further from the first ones" in each for each in unknown) == 1
