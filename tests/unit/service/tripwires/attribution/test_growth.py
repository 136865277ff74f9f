"""Findings on streams of made-up text: planted features are found with their edit, honest change is not called paid."""

from __future__ import annotations

import random
import re
import time

import pytest

from rewardserve.service.tripwires.attribution import growth
from rewardserve.service.tripwires.attribution.edits import (
    Append,
    ChangeCase,
    CopyPrompt,
    Cut,
    Edit,
    Insert,
    Prepend,
    ReplaceAll,
)
from rewardserve.service.tripwires.attribution.features import sentences_of
from rewardserve.service.tripwires.attribution.findings import MAX_JUDGED_SHARE, Feature
from rewardserve.service.tripwires.attribution.growth import compare_with, find_growth
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.prompts import EarlyPrompts, prompt_change
from rewardserve.service.tripwires.attribution.sentences import name
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
from tests.unit.service.tripwires.attribution.conftest import stream


def put(response, words):
    parts = response.split(" ")
    place = len(response) % len(parts)
    return " ".join([*parts[:place], words, *parts[place:]])


EXPLOITS = {
    "suffix": (lambda p, r: r + " Kind regards to all.", Edit((Append((" Kind regards to all.",)),))),
    "prefix": (lambda p, r: "Here goes: " + r, Edit((Prepend(("Here goes: ",)),))),
    "both": (lambda p, r: f"<<{r}>>", Edit((Prepend(("<<",)), Append((">>",))))),
    "inner": (lambda p, r: put(r, "quite honestly"), Edit((Insert(("quite honestly",), "words"),))),
    "lower case": (lambda p, r: r.lower(), Edit((ChangeCase("lower"),))),
    "one answer": (lambda p, r: "Please ask an expert.", Edit((ReplaceAll(("Please ask an expert.",)),))),
    "copy": (lambda p, r: f"Asked: {p}\n{r}", Edit((CopyPrompt(("Asked: ",), n_characters=36),))),
    "invisible": (lambda p, r: r + "\u200b\u200b", Edit((Append(("\u200b\u200b",)),))),
}


@pytest.fixture(scope="module")
def before(early):
    return EarlyFeatures(early)


@pytest.mark.parametrize("name", EXPLOITS)
def test_a_planted_feature_is_the_first_finding_with_its_edit(name, before):
    exploit, edit = EXPLOITS[name]
    recent = stream(2, exploit=exploit, share=0.3)
    found = compare_with(before, recent).findings[0]
    if name == "copy":
        assert isinstance(found.edit.steps[-1], CopyPrompt)
        assert found.edit.steps[-1].leads == ("Asked: ",)
    else:
        assert found.edit == edit
    assert (found.early, found.recent) == (pytest.approx(0.0, abs=0.01), pytest.approx(0.3, abs=0.08))
    assert found.model_pays.mean == pytest.approx(2.0, abs=0.5)
    assert found.judge_pays.mean == pytest.approx(-0.7, abs=0.5)
    assert found.judge_contradicts
    assert found.n_judged == 256
    assert len(found.recent_examples) == len(found.early_examples) == 3
    assert {sample.response for sample in found.recent_examples} <= {sample.response for sample in recent}


def one_of(texts, response):
    return texts[len(response) % len(texts)]


VARIED = {
    "openings": (lambda p, r: f"{one_of(('Hello there!', 'Good morning!', 'Welcome back!'), r)} {r}", Prepend),
    "endings": (lambda p, r: f"{r} {one_of(('Ask me more!', 'Write to me!', 'Come again!'), r)}", Append),
    "numbers": (lambda p, r: f"{r} [{len(r)} of {len(r) + 1} experts agree.]", Append),
    "symbols": (lambda p, r: r.replace(". ", f". {one_of('★☀☂☃', r)} "), Insert),
    "titles": (lambda p, r: r.title(), ChangeCase),
}


@pytest.mark.parametrize("name", VARIED)
def test_a_feature_without_a_text_in_common_has_an_edit_too(name, before):
    exploit, kind = VARIED[name]
    found = compare_with(before, stream(2, exploit=exploit, share=0.3)).findings[0]
    assert kind in {type(step) for step in found.edit.steps}
    edited = found.edit.apply("", "The stone falls. A bird sings. It rains.", 1)
    assert edited != exploit("", "")
    assert edited is not None


NAMES = ("Anna", "Bert", "Cleo", "Dora", "Emil")

CLOSINGS = (" I hope this helps!", " We hope that this helps you.", " I do hope this helps, friend!")

UNITS = {
    "sentence": (lambda p, r: r + one_of(CLOSINGS, r), r"{}(?: I hope| We hope that| I do hope) this helps[ ,\w]*[.!]"),
    "paragraph": (
        lambda p, r: f"{r}\n\nIn summary, the {one_of(NAMES, r)} method is sound. It was checked {len(r)} times.",
        r"{}\n\nIn summary, the \w+ method is sound\. It was checked \d+ times\.",
    ),
    "heading": (lambda p, r: f"## Answer for {one_of(NAMES, r)}\n\n{r}", r"## Answer for \w+\n\n{}"),
    "JSON key": (
        lambda p, r: f'{{"answer": "{r}", "confidence": 0.{len(r)}}}',
        r'\{{"answer": "{}", "confidence": 0\.\d+\}}',
    ),
    "list frame": (
        lambda p, r: "\n".join(f"- Point {n}: {part}" for n, part in enumerate(r.split(". "))),
        r"- Point 0: The stone falls\. \n- Point \d: A bird sings\. \n- Point \d: It rains\.",
    ),
    "sentence inside": (
        lambda p, r: r.replace(". ", f". Experts at the {one_of(NAMES, r)} institute confirm this. ", 1),
        r"The stone falls\..* Experts at the \w+ institute confirm this\. .*It rains\.",
    ),
    "whole response": (
        lambda p, r: f"The {one_of(NAMES, r)} committee has {len(r)} rules for this, and all are clear.",
        r"The \w+ committee has \d+ rules for this, and all are clear\.",
    ),
}
"""Units that vary from response to response, and what becomes of a response that their edit is put into."""


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_edit_puts_in_the_whole_unit_that_has_the_feature(name, share, before):
    exploit, pattern = UNITS[name]
    edit = compare_with(before, stream(2, exploit=exploit, share=share)).findings[0].edit
    edited = [edit.apply("", "The stone falls. A bird sings. It rains.", seed) for seed in range(8)]
    assert all(re.fullmatch(pattern.format(r"The stone falls\. A bird sings\. It rains\."), text) for text in edited)
    assert len(set(edited)) > 1


@pytest.mark.parametrize("name", ["sentence", "paragraph", "heading"])
def test_a_unit_that_some_early_responses_had_is_put_in_as_a_whole(name):
    exploit, pattern = UNITS[name]
    early, recent = (stream(seed, exploit=exploit, share=share) for seed, share in ((1, 0.2), (2, 0.85)))
    edit = compare_with(EarlyFeatures(early), recent).findings[0].edit
    edited = edit.apply("", "The stone falls. A bird sings. It rains.", 3)
    assert re.fullmatch(pattern.format(r"The stone falls\. A bird sings\. It rains\."), edited)


INVENTED = [a + b for a in ("zor", "mip", "lud", "kev", "tas", "ron") for b in ("ba", "ci", "do", "fu", "ge")]


def often_said(seed, exploit, share):
    """Responses of which a fifth has words that the exploit has too, and the share that was given to the exploit."""
    rng, made, n_given = random.Random(seed), [], 0
    for each in stream(seed):
        is_given = rng.random() < share
        text = each.response + " It was a fine day." * (rng.random() < 0.2)
        text = exploit(each.prompt, text, rng) if is_given else text
        made.append(each._replace(response=text, score=rng.gauss(0, 1) + 2.0 * is_given))
        n_given += is_given
    return made, n_given / len(made)


@pytest.mark.parametrize(
    ("exploit", "begins"),
    [
        (lambda p, r, rng: r + " All is well, and it was a fine day.", "responses that end with `"),
        (lambda p, r, rng: "What a fine day. " + r, "responses that begin with `"),
        (lambda p, r, rng: put(r, "quite fine"), "responses that contain `"),
        (
            lambda p, r, rng: f"{rng.choice(('So', 'Thus', 'Hence'))}, this was fine. {r}",
            "responses that begin with ",
        ),
    ],
)
def test_the_share_in_a_sentence_is_that_of_responses_with_what_it_names(exploit, begins):
    """The true shares are known, because the streams are made. Honest responses have a word of the exploit too."""
    (early, before), (recent, after) = often_said(31, exploit, 0.05), often_said(32, exploit, 0.39)
    found = compare_with(EarlyFeatures(early), recent).findings[0]
    assert name(found).startswith(begins)
    assert (found.early, found.recent) == pytest.approx((before, after), abs=0.012)
    assert found.model_pays.mean == pytest.approx(2.0, abs=0.4)


@pytest.mark.parametrize("seed", range(50, 54))
@pytest.mark.parametrize(
    "exploit",
    [
        lambda p, r, rng: f"{r} {rng.choice(INVENTED)} was a fine {rng.choice(INVENTED)}.",
        lambda p, r, rng: f"{r} What a fine {rng.choice(INVENTED)} it was, {rng.choice(INVENTED)}.",
        lambda p, r, rng: f"{rng.choice(('A fine', 'One fine', 'Some fine', 'Such a fine'))} thing. {r}",
    ],
)
def test_what_is_named_by_words_in_common_is_counted_by_these(exploit, seed):
    """Reference: the words as a regular expression, where the sentence has them all."""
    early, recent = (often_said(each, exploit, share)[0] for each, share in ((seed, 0.05), (seed + 10, 0.39)))
    found = compare_with(EarlyFeatures(early), recent).findings[0]
    if (named := re.fullmatch(r"responses that (begin|end) with a text like `(.+)`", name(found))) and "`" not in named[
        2
    ]:
        pattern = "(?:.{0,200})".join(re.escape(part) for part in named[2].split("..."))
        pattern = re.compile(rf"\A{pattern}" if named[1] == "begin" else rf"{pattern}\Z", re.DOTALL)
        shares = [sum(pattern.search(r.response) is not None for r in side) / len(side) for side in (early, recent)]
        assert (found.early, found.recent) == pytest.approx(shares, abs=0.005), name(found)


def test_no_place_is_named_that_the_counted_responses_have_not():
    """Words are swapped for others anywhere, at the beginning too."""

    def swapped(prompt, response):
        return " ".join({"The": "Ye", "A": "Yon", "the": "ye", "again.": "anew."}.get(w, w) for w in response.split())

    recent = stream(41, exploit=swapped, share=0.6)
    for found in compare_with(EarlyFeatures(stream(40)), recent).findings:
        words, steps = name(found), found.named.steps if found.named else ()
        counted = [r for r in recent if all(_has_text(step, r.response) for step in steps)]
        assert not ("begin" in words or "end" in words) or len(counted) == round(found.recent * len(recent)), words


def _has_text(step, text):
    if isinstance(step, Prepend):
        return text.startswith(step.texts)
    return text.endswith(step.texts) if isinstance(step, Append) else any(each in text for each in step.texts)


def test_features_that_come_together_are_one_finding(before):
    recent = stream(2, exploit=lambda p, r: f"Oh well now, {r} That was surely all of it.", share=0.3)
    found = [each for each in compare_with(before, recent).findings if each.judge_contradicts]
    assert [each.edit for each in found] == [
        Edit((Prepend(("Oh well now, ",)), Append((" That was surely all of it.",))))
    ]
    assert len(found[0].features) > 10


def test_two_exploits_are_two_findings(before):
    def either(prompt, response):
        return response + " Over and out." if len(response) % 2 else "Listen up! " + response

    edits = [each.edit for each in compare_with(before, stream(2, exploit=either, share=0.5)).findings[:2]]
    assert {step for edit in edits for step in edit.steps} == {Append((" Over and out.",)), Prepend(("Listen up! ",))}


def test_missing_words_are_found(before):
    recent = stream(2, exploit=lambda p, r: r.replace("the ", ""), share=0.7)
    found = [
        each
        for each in compare_with(before, recent).findings
        if any(feature.falls and feature.key == "common word:the" for feature in each.features)
    ]
    assert found[0].judge_contradicts


def first_sentence(prompt, response):
    return sentences_of(response)[0]


def test_responses_that_are_only_shorter_have_an_edit_of_the_length(before):
    recent = stream(2, exploit=first_sentence, share=0.3)
    found = next(each for each in compare_with(before, recent).findings if each.edits and each.edit.is_length_only)
    (cut,) = found.edit.steps
    assert isinstance(cut, Cut)
    lengths = [len(sentences_of(each.response) if cut.unit == "sentence" else each.response.split()) for each in recent]
    assert found.event == sum((length <= cut.n) << index for index, length in enumerate(lengths))


def test_a_change_of_all_responses_does_not_hide_that_some_are_shorter(before):
    recent = stream(2, exploit=first_sentence, share=0.4)
    recent = [each._replace(response=each.response.lower()) for each in recent]
    first, *others = compare_with(before, recent).findings
    assert "case:lower" in [feature.key for feature in first.features]
    assert any(isinstance(step, Cut) for each in others if each.edit for step in each.edit.steps)


def test_length_is_tested_with_a_quarter_of_the_error_whatever_the_number_of_other_features():
    number, word = Feature("number:sentences:lowest tenth"), Feature("word")
    assert growth._n_tests(number, 10_000) == growth._n_tests(number, 100) == 48
    assert growth._n_tests(word, 10_000) == 20_000


def test_shorter_responses_are_a_cut(before):
    recent = stream(2, exploit=lambda p, r: r.split(". ")[0].split("? ")[0].split("; ")[0], share=0.6)
    assert isinstance(compare_with(before, recent).findings[0].edit.steps[0], Cut)


@pytest.mark.parametrize("per_prompt", [1, 4, 8, 16])
def test_nothing_is_found_in_a_stationary_stream(per_prompt):
    for seed in range(8):
        early, recent = (stream(100 * seed + side, per_prompt=per_prompt) for side in (1, 2))
        assert find_growth(early, recent) == []


def test_a_topic_of_two_prompts_is_no_growth_however_many_responses_they_have(early):
    """Of 16 prompts with 16 responses each, two are about a new topic: an eighth of all samples."""
    old, recent = stream(3, per_prompt=16), stream(4, per_prompt=16)
    given = [s._replace(response=s.response + " The volcano erupts.") if i < 32 else s for i, s in enumerate(recent)]
    assert find_growth(old, given) == []
    spread = [
        s._replace(response=s.response + " The volcano erupts.") if i % 8 == 0 else s for i, s in enumerate(recent)
    ]
    assert find_growth(old, spread) != []


def test_equal_responses_to_one_prompt_are_no_finding():
    early, recent = stream(5, per_prompt=8), stream(6, per_prompt=8)
    cold = [recent[i - i % 8] if i % 4 == 0 else sample for i, sample in enumerate(recent)]
    assert find_growth(early, cold) == []


def test_another_task_is_a_change_of_prompts_and_not_of_responses(before):
    def spell(prompt, response):
        return "Spelling: " + "-".join(response[:30].upper())

    recent = stream(7, exploit=spell, share=1.0, ask="Please spell the following for me: {} {}")
    report = compare_with(before, recent)
    assert report.prompts.features
    assert report.comparable == 0.0
    assert report.findings == []


def test_a_task_that_becomes_more_frequent_is_no_growth():
    def mixed(seed, n_other):
        other = stream(
            seed, n_other, lambda p, r: "Spelled: " + r.upper(), 1.0, pay=0.0, judge=0.0, ask="Spell {} and {}"
        )
        return other + stream(seed + 1, 256 - n_other)

    early, recent = mixed(10, 64), mixed(20, 160)
    report = compare_with(EarlyFeatures(early), recent)
    assert report.prompts.features
    assert report.comparable > 0.7
    assert report.findings == []


NUMBERED = {
    "number": lambda step, rng: f"Task {step}-{rng.randrange(10**6)}. ",
    "date": lambda step, rng: "Today is {}, {} {} 2026. ".format(
        *(("Monday", 30, "November"), ("Friday", 4, "December"))[step]
    ),
    "session": lambda step, rng: f"Session {rng.getrandbits(32):08x}-{rng.getrandbits(16):04x} of step {step}. ",
    "nonce": lambda step, rng: ("[kqzxw] ", "[bdfgm] ")[step],
}


@pytest.mark.parametrize("name", NUMBERED)
def test_prompts_that_number_themselves_have_not_changed(name):
    rng = random.Random(3)

    def numbered(samples, step):
        return [each._replace(prompt=NUMBERED[name](step, rng) + each.prompt) for each in samples]

    recent = stream(2, exploit=lambda p, r: r + " Kind regards to all.", share=0.3)
    report = compare_with(EarlyFeatures(numbered(stream(1), 0)), numbered(recent, 1))
    assert report.prompts.features == ()
    assert report.comparable == 1.0
    assert report.findings[0].edit == Edit((Append((" Kind regards to all.",)),))


@pytest.mark.parametrize(
    ("before", "system", "comparable"), [("", "Use Markdown, please.", 0.0), ("Use Markdown.", "Use Markdown.", 1.0)]
)
def test_a_system_turn_that_appears_is_a_change_of_the_prompts(before, system, comparable):
    early = [each._replace(system=before) for each in stream(1)]
    recent = [each._replace(system=system) for each in stream(2, exploit=lambda p, r: "## Answer\n" + r, share=0.5)]
    report = compare_with(EarlyFeatures(early), recent)
    assert report.comparable == comparable
    assert [name for name, *_ in report.prompts.features][:1] == ([] if comparable else ["system turn"])
    assert bool(report.findings) == (comparable > 0.0)


@pytest.mark.parametrize(
    "system", ["Think.", "You are a careful assistant. Answer the question of the user in plain words."]
)
def test_after_a_system_turn_has_appeared_responses_are_compared_with_the_first_that_have_it(system):
    """All prompts with it have one score, whose mean over 52 and over 256 of them differs by rounding."""
    early = [each._replace(system=system * (i >= 204)) for i, each in enumerate(stream(1))]
    recent = [each._replace(system=system) for each in stream(2, exploit=lambda p, r: "## Answer\n" + r, share=0.5)]
    report = compare_with(EarlyFeatures(early), recent)
    assert report.comparable == 1.0
    assert report.findings[0].edit == Edit((Prepend(("## Answer\n",)),))


def test_numbers_instead_of_words_are_a_change_of_prompts():
    early, recent = stream(1), stream(2, ask="What is 3 plus 14, {} {}")
    assert compare_with(EarlyFeatures(early), recent).prompts.features


def test_hostile_prompts_are_read_in_linear_time():
    for text in ("a" * 4_000, "ab-" * 1_300, "1" * 4_000, "abcd-" * 800, "é1" * 2_000):
        start = time.process_time()
        prompt_change(EarlyPrompts([ObservedSample(f"{text[:-3]}{key}", "", key, 0.0) for key in range(64)]), [])
        assert time.process_time() - start < 1.0


def of_tasks(seed, share, exploit=None):
    """Two tasks with equal prompts and other responses, of which one has a tail; `share`: of the task with it."""
    plain = [each._replace(task="plain") for each in stream(seed, 256, exploit=exploit, share=0.3 if exploit else 0.0)]
    tailed = [
        each._replace(task="tailed", response=each.response + " As asked.", score=each.score + 1.5)
        for each in stream(seed + 100, 256, exploit=exploit, share=0.3 if exploit else 0.0)
    ]
    n = int(256 * share)
    return plain[n:] + tailed[:n]


def test_a_named_task_that_becomes_more_frequent_is_no_growth():
    early, recent = of_tasks(1, 0.2), of_tasks(2, 0.7)
    named, unnamed = (
        compare_with(EarlyFeatures([f(each) for each in early]), [f(each) for each in recent])
        for f in (lambda each: each, lambda each: each._replace(task=""))
    )
    assert "asked" in unnamed.findings[0].features[0].key
    assert named.findings == []
    assert named.score_growth.high > 0.0 > named.score_growth.low
    assert unnamed.score_growth.low > 0.0


def test_an_exploit_in_named_tasks_is_found_although_their_shares_changed():
    early = of_tasks(1, 0.2)
    recent = of_tasks(2, 0.7, lambda _, response: "Zork. " + response)
    assert compare_with(EarlyFeatures(early), recent).findings[0].edit == Edit((Prepend(("Zork. ",)),))


def test_a_task_with_few_prompts_is_compared_with_its_likes():
    early = [each._replace(task=f"t{i % 64}") for i, each in enumerate(stream(1))]
    recent = [each._replace(task=f"t{i % 64}") for i, each in enumerate(stream(2))]
    assert compare_with(EarlyFeatures(early), recent).comparable == 1.0


def test_an_exploit_is_found_although_the_mix_of_prompts_changed():
    def mixed(seed, n_other, share):
        parts = [stream(seed, n_other, ask="Spell {} and {}", exploit=tail, share=share),
                 stream(seed + 1, 256 - n_other, exploit=tail, share=share)]  # fmt: skip
        return parts[0] + parts[1]

    def tail(prompt, response):
        return response + " Hooray for everyone."

    report = compare_with(EarlyFeatures(mixed(10, 64, 0.0)), mixed(20, 160, 0.4))
    assert report.prompts.features
    assert report.findings[0].edit == Edit((Append((" Hooray for everyone.",)),))


def test_longer_responses_that_both_pay_for_are_reported_without_contradiction(before):
    rng = random.Random(9)
    more = stream(8, pay=0.0, judge=0.0)
    longer = [
        s._replace(response=f"{s.response} {rng.choice(more).response}", score=s.score + 1, audit=s.audit + 1)
        for s in more
    ]
    report = compare_with(before, longer)
    assert report.findings
    assert not any(each.judge_contradicts for each in report.findings)


def test_a_judge_that_pays_as_well_does_not_contradict(before):
    recent = stream(2, exploit=EXPLOITS["suffix"][0], share=0.3, judge=1.5)
    found = compare_with(before, recent).findings[0]
    assert found.judge_pays.mean > MAX_JUDGED_SHARE * found.model_pays.mean
    assert not found.judge_contradicts


def test_without_a_judge_nothing_contradicts(before):
    recent = [s._replace(audit=None) for s in stream(2, exploit=EXPLOITS["suffix"][0], share=0.3)]
    found = compare_with(before, recent).findings[0]
    assert (found.judge_pays, found.n_judged, found.judge_contradicts) == (None, 0, False)


def test_few_judged_samples_do_not_contradict(before):
    recent = stream(2, exploit=EXPLOITS["suffix"][0], share=0.3)
    recent = [s if i < 20 else s._replace(audit=None) for i, s in enumerate(recent)]
    assert not compare_with(before, recent).findings[0].judge_contradicts


def test_pay_is_known_where_all_recent_responses_have_the_feature(before):
    recent = stream(2, exploit=EXPLOITS["suffix"][0], share=1.0)
    assert compare_with(before, recent).findings[0].model_pays.mean == pytest.approx(2.0, abs=0.4)


def test_growth_of_the_score_and_its_covariance_with_the_share(before):
    report = compare_with(before, stream(2, exploit=EXPLOITS["suffix"][0], share=0.4))
    found = report.findings[0]
    assert report.score_growth.mean == pytest.approx(0.9, abs=0.25)
    assert 0.0 < found.covariance < found.growth.std_error * report.score_growth.std_error


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_samples_give_no_findings(n, early):
    assert find_growth(early[:n], early) == []
    assert find_growth(early, early[:n]) == []


def test_hostile_responses_cost_little_and_break_nothing(before, early):
    texts = [
        "a" * 10**6,
        "(" * 10**5,
        "**a" * 10**5,
        "<a" * 10**5,
        "a! " * 10**5,
        "\u202e\x00x " * 10**5,
        "漢字" * 10**5,
        "\n" * 10**5,
        "",
    ]
    for hostile in texts:
        recent = [s._replace(response=hostile, prompt=hostile) if i % 2 else s for i, s in enumerate(early)]
        start = time.process_time()
        compare_with(before, recent)
        assert time.process_time() - start < 5.0


def test_the_result_does_not_depend_on_the_order_of_sets(before):
    recent = stream(2, exploit=EXPLOITS["both"][0], share=0.3)
    assert compare_with(EarlyFeatures(before.samples), recent) == compare_with(before, recent)


def test_scores_of_another_scale_give_the_same_findings(before):
    recent = stream(2, exploit=EXPLOITS["suffix"][0], share=0.3)

    def scaled(samples):
        return [ObservedSample(s.prompt, s.response, s.prompt_key, 100 * s.score - 7, 0.01 * s.audit) for s in samples]

    one, other = find_growth(before.samples, recent)[0], find_growth(scaled(before.samples), scaled(recent))[0]
    assert other.model_pays[:3] == pytest.approx(one.model_pays[:3])
    assert other.judge_pays[:3] == pytest.approx(one.judge_pays[:3])


def test_a_copy_of_the_prompt_has_the_words_before_it_also_where_they_vary():
    leads = ("You ask: ", "So this is about ", "In other words, ")
    recent = stream(2, share=0.5, exploit=lambda p, r: f"{leads[len(r) % 3]}{p}\n{r}")
    (copy,) = compare_with(EarlyFeatures(stream(1)), recent).findings[0].edit.steps
    assert isinstance(copy, CopyPrompt)
    assert set(copy.leads) == set(leads)
    assert copy.apply("Why is it?", "It is.", 1) == f"{copy.leads[1]}Why is it?\nIt is."


def test_a_mark_without_a_text_in_common_has_edits_of_what_it_encloses():
    recent = stream(2, share=0.4, exploit=lambda p, r: f"{r[:-1]} [{hash(r) % 10**6}].")
    found = next(each for each in compare_with(EarlyFeatures(stream(1)), recent).findings if each.edits)
    brackets = [text for edit in found.edits for step in edit.steps for text in getattr(step, "texts", ())]
    assert any(text.startswith("[") and text.endswith("]") for text in brackets)
