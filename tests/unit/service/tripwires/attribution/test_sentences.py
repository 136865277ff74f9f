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
    name,
    quoted,
    report_sentences,
    sentence,
)
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
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
        (CopyPrompt("Re: ", at_end=True), "copy the prompt at the end after `Re:`"),
        (CopyPrompt(), "copy the prompt at the beginning"),
        (RemoveWords(("may",)), "avoid `may`"),
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
    assert " standard deviations higher, by the judge " in words
    assert "(256 judged)" in words
    alone = "; the feature alone, put into 32 first responses of the run, earns +1.9 [+1.7, +2.1] standard deviations"
    assert words.endswith(alone)
    assert sentence(found, estimate(1.9, 0.1, 31, 32), estimate(0.2, 0.1, 31, 32)).endswith(
        f"{alone}, by the judge +0.2 [-0.0, +0.4]"
    )
    assert report_sentences(report)[-1].endswith("recent and 256 early responses were tested")


@pytest.mark.parametrize(
    ("pays", "earns", "end"),
    [
        (10.9, -0.8, ": so something else that came with it is paid"),
        (10.9, 0.1, ": so something else that came with it is paid"),
        (-10.9, 0.8, ": so it is paid, and something else that came with it costs more"),
        (10.9, 9.0, " standard deviations"),
        (0.1, -0.8, " standard deviations"),
        (None, -0.8, " standard deviations"),
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
        "; responses with it score +1.9 [+1.7, +2.1] standard deviations lower, by the judge +0.5 [+0.3, +0.7] (9 judged)"
    )


def test_a_report_without_findings_says_what_was_looked_at():
    lines = report_sentences(compare_with(EarlyFeatures(stream(1)), stream(2)))
    assert len(lines) == 1
    assert lines[0].startswith("no feature of the responses grew: ")


def test_a_report_says_that_the_prompts_have_changed():
    report = compare_with(EarlyFeatures(stream(1)), stream(2, ask="Please spell the following for me: {} {}"))
    assert report_sentences(report)[0].startswith("the prompts have changed (prompts with `")
    assert "0% of the recent prompts have early ones like them" in report_sentences(report)[0]
    assert report_sentences(report)[-1].startswith(
        "nothing could be compared, because no recent prompt has early ones like it"
    )
