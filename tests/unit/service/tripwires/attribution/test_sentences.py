"""The report in words."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.edits import (
    Append,
    ChangeCase,
    CopyPrompt,
    Cut,
    Edit,
    EndSentences,
    Insert,
    Prepend,
    Reformat,
    RemoveWords,
    Repeat,
    ReplaceAll,
)
from rewardserve.service.tripwires.attribution.effects import estimate
from rewardserve.service.tripwires.attribution.findings import Feature
from rewardserve.service.tripwires.attribution.growth import compare_with
from rewardserve.service.tripwires.attribution.sentences import (
    describe_edit,
    describe_feature,
    headline,
    name,
    quoted,
    report_sentences,
    sentence,
)
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
from rewardserve.service.tripwires.attribution.templates import templates
from tests.unit.service.tripwires.attribution.conftest import stream


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Prepend(("Well, ",)), "begin with `Well, `"),
        (Append((" a", " b", " c", " d")), "end with a text like ` a`, ` b` or ` c`"),
        (Insert(("so",)), "contain `so`"),
        (ReplaceAll(("No.",)), "are equal to `No.`"),
        (ChangeCase("upper"), "are written in upper case"),
        (Repeat("response"), "repeat themselves"),
        (Repeat("word"), "repeat their last word"),
        (Cut("sentence", 1), "have at most 1 sentence"),
        (Cut("word", 12), "have at most 12 words"),
        (CopyPrompt(("Re: ",), at_end=True), "copy the prompt at the end after `Re: `"),
        (CopyPrompt(), "copy the prompt at the beginning"),
        (RemoveWords(("may",)), "have none of the words `may`"),
        (RemoveWords(tuple("abcde")), "have none of the words `a`, `b`, `c` and 2 more"),
        (Reformat("list"), "are formatted as list"),
        (Reformat("blank line"), "have a paragraph for each sentence"),
        (EndSentences("!"), "end sentences with `!`"),
    ],
)
def test_edits_in_words(step, words):
    assert describe_edit(Edit((step,))) == words


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (Feature("so"), "with the word `so`"),
        (Feature("so what"), "with the words `so what`"),
        (Feature("so", falls=True), "without the word `so`"),
        (Feature("last characters:?", falls=True), "that do not end with `?`"),
        (Feature("case:lower", falls=True), "that are not in lower case"),
        (Feature("first words:so it"), "that begin with the words `so it`"),
        (Feature("last characters:!"), "that end with `!`"),
        (Feature("layout:blank line"), "with a blank line"),
        (Feature("equal:"), "that are equal to a response to another prompt"),
    ],
)
def test_features_in_words(feature, words):
    assert describe_feature(feature) == words


def test_bins_of_numbers_have_their_bound_and_unit():
    feature = Feature("number:characters:highest tenth")
    assert (
        describe_feature(feature, (812.0, float("inf")))
        == "with more than 812 characters, as the highest tenth of the first responses"
    )
    feature = Feature("number:digits:lowest tenth")
    assert (
        describe_feature(feature, (-float("inf"), 0.25))
        == "with at most 25% of digits, as the lowest tenth of the first responses"
    )
    assert (
        describe_feature(feature, (-float("inf"), 0.0)) == "without digits, as the lowest tenth of the first responses"
    )
    falls = Feature("number:digits:lowest tenth", falls=True)
    assert (
        describe_feature(falls, (-float("inf"), 0.25))
        == "with more than 25% of digits, unlike the lowest tenth of the first responses"
    )


def test_invisible_characters_are_shown_escaped_and_long_texts_are_cut():
    assert quoted("a\x00\u202eb\n") == "`a\\x00\\u202eb\\n`"
    assert len(quoted("x" * 10**6)) < 140


def test_a_finding_in_one_sentence():
    recent = stream(2, exploit=lambda p, r: r + " Kind regards to all.", share=0.3)
    report = compare_with(EarlyFeatures(stream(1)), recent)
    found = report.findings[0]
    assert name(found) == "responses that end with ` Kind regards to all.`"
    words = sentence(found, estimate(1.9, 0.1, 31, 32))
    assert words.startswith("responses that end with ` Kind regards to all.` went from 0% to ")
    assert "; responses with it score +" in words
    assert " standard deviations higher, the judge gives them " in words
    assert "(256 judged)" in words
    alone = "; this alone, put into 32 first responses of the run, earns +1.9 [+1.7, +2.1] standard deviations"
    assert words.endswith(alone)
    assert sentence(found, estimate(1.9, 0.1, 31, 32), estimate(0.2, 0.1, 31, 32)).endswith(
        f"{alone}, from the judge +0.2 [-0.0, +0.4]"
    )
    assert report_sentences(report)[-1].endswith("recent and 256 early responses were tested")


@pytest.mark.parametrize(
    ("pays", "earns", "end"),
    [
        (10.9, -0.8, ": the edit test does not confirm that it is paid"),
        (10.9, 0.1, ": the edit test does not confirm that it is paid"),
        (-10.9, -0.8, ": it costs that by itself"),
        (-10.9, 0.8, ": so it is paid, and something else that came with it costs more"),
        (10.9, 9.0, " standard deviations"),
        (None, -0.8, ": the edit test does not confirm that it is paid"),
        (None, 0.8, " standard deviations"),
    ],
)
def test_where_correlation_and_causal_test_disagree_the_sentence_says_what_it_means(pays, earns, end):
    recent = stream(2, exploit=lambda p, r: r + " Kind regards to all.", share=0.3)
    found = compare_with(EarlyFeatures(stream(1)), recent).findings[0]
    found = found._replace(model_pays=None if pays is None else estimate(pays, 0.1, 31, 32))
    words = sentence(found, estimate(earns, 0.1, 31, 32))
    assert words.endswith(end)
    assert words.count(": so ") == end.count(": so ")


def test_a_feature_that_costs_scores_lower_by_its_amount():
    recent = stream(2, exploit=lambda p, r: r + " Kind regards to all.", share=0.3)
    found = compare_with(EarlyFeatures(stream(1)), recent).findings[0]
    found = found._replace(model_pays=estimate(-1.9, 0.1, 31, 32), judge_pays=estimate(-0.5, 0.1, 31, 32), n_judged=9)
    assert sentence(found).endswith(
        "; responses with it score 1.9 [1.7, 2.1] standard deviations lower, the judge gives them -0.5 [-0.7, -0.3] (9 judged)"
    )


def test_a_report_without_findings_says_what_was_looked_at():
    lines = report_sentences(compare_with(EarlyFeatures(stream(1)), stream(2)))
    assert lines[0] == "no feature of the responses grew"
    assert lines[1].endswith("recent and 256 early responses were tested")
    assert len(lines) == 2


def test_a_report_says_that_the_prompts_have_changed():
    report = compare_with(EarlyFeatures(stream(1)), stream(2, ask="Please spell the following for me: {} {}"))
    first, second, _ = report_sentences(report)
    assert first.startswith(
        "responses since step 0 are not compared: no recent prompt has an early one like it (those with `"
    )
    assert first.endswith(" of the first and 0% of the recent ones)")
    assert second.startswith("the prompts have changed: those with `")
    assert "0% of the recent prompts have early ones like them" in second


def test_a_report_on_prompts_with_another_system_turn_says_since_when_nothing_is_compared():
    recent = [each._replace(system="Use Markdown.", step=25 + i // 64) for i, each in enumerate(stream(2))]
    assert report_sentences(compare_with(EarlyFeatures(stream(1)), recent))[0] == (
        "responses since step 25 are not compared: no recent prompt has an early one like it (those with a system turn are "
        "0% of the first and 100% of the recent ones)"
    )


@pytest.fixture(scope="module")
def grown():
    """A report with one finding, whose edit is an ending."""
    return compare_with(
        EarlyFeatures(stream(1)), stream(2, exploit=lambda p, r: r + " Kind regards to all.", share=0.3)
    )


def test_what_the_edit_test_does_not_confirm_is_no_result(grown):
    lines = report_sentences(grown, {0: (estimate(0.0, 0.1, 31, 32), None)})
    assert lines[0] == headline(grown, {0: (estimate(0.0, 0.1, 31, 32), None)})
    assert lines[0].startswith(
        "no cause is proven; what grew most with the gap between model and judge: responses that end with ` Kind regards"
    )
    assert "put into 32 first responses of the run, earns +0.0 [-0.2, +0.2]" in lines[0]
    assert lines[0].endswith("the edit test does not confirm that it is paid; read its examples")
    assert "something else" not in lines[0]
    proven = headline(grown, {0: (estimate(2.0, 0.1, 31, 32), None)})
    assert proven.startswith("responses that end with ` Kind regards to all.` went from")


def test_of_a_score_that_fell_the_report_says_what_went_with_that(grown):
    fell = grown._replace(score_growth=estimate(-1.2, 0.1, 31, 256))
    words = headline(fell, {0: (estimate(2.0, 0.1, 31, 32), None)})
    assert words.startswith(
        "the mean score fell by 1.2 [1.0, 1.4] standard deviations, so nothing extra is paid; what changed with it: responses "
    )
    assert headline(fell._replace(findings=[])).endswith("so nothing extra is paid; no feature of the responses grew")


def test_a_finding_is_named_by_its_edit_where_that_is_counted_and_else_by_its_feature(grown):
    texts = tuple(f"{word} sentence of {i} words is truly about it" for i, word in enumerate("abcdefgh"))
    edit = Edit((Insert(texts),))
    found = grown.findings[0]._replace(features=(Feature("truly"),), edit=edit, named=edit)
    assert name(found) == "responses that contain a text like `... sentence of ... words is truly about it`"
    found = found._replace(named=None)
    assert name(found) == "responses with the word `truly`"
    assert sentence(found, estimate(1.9, 0.1, 31, 32)).endswith(
        "; 32 first responses of the run, edited so that they contain a text like `... sentence of ... words is truly about it`, "
        "earn +1.9 [+1.7, +2.1] standard deviations"
    )


def test_of_many_texts_the_part_that_they_have_in_common_is_shown():
    tails = [
        f" {before} Do you want me to hear about {word}?" for before, word in zip("abcdefgh", "stuvwxyz", strict=True)
    ]
    assert templates(tails) == ["... Do you want me to hear about ..."]
    assert describe_edit(Edit((Append(tuple(tails)),))) == "end with a text like `... Do you want me to hear about ...`"
    apart = [f"[{i}]" for i in range(100, 96, -1)]
    assert templates(apart) == sorted(apart, key=len), "nothing in common: the shortest first"
    gaps = [f"we {i}a go on {i}b to the {i}c of a {i}d in the end" for i in range(8)]
    assert templates(gaps) == sorted(gaps, key=len), "words here and there say nothing"
    two = [f"Good {i} friend" for i in range(5)] + [f"see page {i} of it" for i in range(8)]
    assert templates(two)[0] == "see page ... of it"
