"""Findings in English words, for the report and for alerts. Pure.

Texts of responses are shown with control, invisible and bidirectional characters escaped, and clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite

from rewardserve.service.tripwires.attribution.edits import (
    Append,
    ChangeCase,
    CopyPrompt,
    Cut,
    Edit,
    EditStep,
    EndSentences,
    Insert,
    Lengthen,
    Prepend,
    Reformat,
    RemoveWords,
    Repeat,
    ReplaceAll,
)
from rewardserve.service.tripwires.attribution.effects import Effect
from rewardserve.service.tripwires.attribution.features import SHARES
from rewardserve.service.tripwires.attribution.findings import Feature, Finding, GrowthReport, Novelty
from rewardserve.service.tripwires.attribution.novelty_pay import NoveltyPay
from rewardserve.service.tripwires.attribution.relevance import Relevance
from rewardserve.service.tripwires.attribution.templates import FEW, templates
from rewardserve.service.tripwires.attribution.verdicts import is_confirmed

SHOWN_Z = 4.0
"""Normal quantile of the growth of novelty from which it is a sentence."""

_SHOWN = 120
"""Characters of a text that are shown."""


def headline(
    report: GrowthReport,
    earned: Mapping[int, tuple[Effect, Effect | None]] | None = None,
    relevance: Relevance | None = None,
    novelty_pay: NoveltyPay | None = None,
) -> str:
    """The cause of the extra reward in one sentence; where there is no proof, the feature that grew most, or that came with a fall.

    `earned` is what the edit of a finding earned in first responses from model and judge, by the index of the finding.
    """
    if relevance and relevance.lost_to_collapse:
        return relevance_sentence(relevance)
    fell = (
        f"the mean score fell by {_amount(_negated(report.score_growth))} standard deviations, so nothing extra is paid; "
        if report.score_fell
        else ""
    )
    first, tested = report.findings[0] if report.findings else None, (earned or {}).get(0)
    is_confirmed_first = tested is not None and is_confirmed(tested[0])
    if not (fell or is_confirmed_first) and report.novelty and novelty_pay and novelty_pay.paid_beyond_judge:
        return novelty_sentence(report.novelty, novelty_pay)
    if first is None:
        return f"{fell}{nothing_found(report)}"
    words = sentence(first, *(tested or ()))
    if fell:
        return f"{fell}what changed with it: {words}"
    if is_confirmed_first:
        return words
    gap = " with the gap between model and judge" if first.judge_pays else ""
    untested = "" if tested else " (its edit was not tested)"
    return f"no cause is proven; what grew most{gap}{untested}: {words}; read its examples"


def sentence(finding: Finding, earned: Effect | None = None, judged: Effect | None = None) -> str:
    """A finding in one sentence; `earned` is what its edit alone earned in first responses of the run, `judged` from the judge."""
    parts = [f"{name(finding)} went from {finding.early:.0%} to {finding.recent:.0%}", pays(finding)]
    if earned is not None:
        alone = f"{_put_in(finding, earned.n)} {_interval(earned)} standard deviations"
        by_judge = "" if judged is None else f", from the judge {_interval(judged)}"
        parts.append(alone + by_judge + _conclude(finding.model_pays, earned))
    elif not finding.edits:
        parts.append("not tested: there is no text to put in")
    return "; ".join(part for part in parts if part)


def _put_in(finding: Finding, n: int) -> str:
    """The edit that was tested, as the subject of what it earns: in words where it is not what the finding is named by."""
    if finding.edit is None or finding.edit == finding.named:
        return f"this alone, put into {n} first responses of the run, earns"
    return f"{n} first responses of the run, edited so that they {describe_edit(finding.edit)}, earn"


def relevance_sentence(relevance: Relevance) -> str:
    """A collapse in one sentence."""
    before, after = relevance.similarity
    return (
        "responses no longer depend on their prompts as at the start of the run: words tell which of two responses belongs to "
        f"which prompt in {relevance.recent.mean:.0%} of pairs, {relevance.early.mean:.0%} at the start (50% is chance); "
        f"a response has {after:.0%} of its words in common with one to another prompt, {before:.0%} at the start; "
        f"the mean score changed by {_interval(relevance.score_growth)} standard deviations"
    )


def novelty_sentence(novelty: Novelty, pay: NoveltyPay | None) -> str:
    """How far recent responses can be told from early ones, and the pay for that, in one sentence."""
    share = novelty.early + novelty.growth.mean
    parts = [
        f"{share:.0%} of the recent responses are further from the first ones, by all features together, than "
        f"{1 - novelty.early:.0%} of these are from each other"
    ]
    if pay is not None:
        parts.append(f"such responses score {_interval(pay.model)} standard deviations higher than familiar ones")
        if pay.judge is not None:
            parts[-1] += f", the judge gives them {_interval(pay.judge)} ({pay.judge.n} judged)"
    if novelty.features:
        named = ", ".join(describe_feature(Feature(key)) for key in novelty.features)
        parts.append(f"features that tell them apart most, which need not be paid: responses {named}")
    return "; ".join(parts)


def report_sentences(
    report: GrowthReport,
    earned: Mapping[int, tuple[Effect, Effect | None]] | None = None,
    relevance: Relevance | None = None,
    novelty_pay: NoveltyPay | None = None,
) -> list[str]:
    """The report: the headline, the change of the prompts where there is one, then all other findings.

    `earned` is what the edit of a finding earned in first responses from model and judge, by the index of the finding.
    """
    earned = earned or {}
    lines = [headline(report, earned, relevance, novelty_pay)]
    if report.prompts.features:
        lines.append(
            f"the prompts have changed: those with {_changed_prompts(report)}; the first ones are those until the baseline of "
            "their task or kind was complete, or the first since no prompts of before came; "
            f"{report.comparable:.0%} of the recent prompts have early ones like them, and only these are compared"
        )
    words = [sentence(finding, *earned.get(index, ())) for index, finding in enumerate(report.findings)]
    lines += [each for index, each in enumerate(words) if index or each not in lines[0]]
    if report.novelty is not None and report.novelty.z >= SHOWN_Z:
        told = novelty_sentence(report.novelty, novelty_pay)
        lines += [told] * (told != lines[0])
    return [
        *lines,
        f"{report.n_features:,} features of {report.n_recent} recent and {report.n_early} early responses were tested",
    ]


def _changed_prompts(report: GrowthReport) -> str:
    """The feature of prompts whose share changed most, with both shares."""
    key, before, after = report.prompts.features[0]
    kind, _, word = key.partition(":")
    of_system = {"system turn": "a system turn", "system": f"{quoted(word)} in a system turn"}
    return f"{of_system.get(kind, quoted(key))} are {before:.0%} of the first and {after:.0%} of the recent ones"


def nothing_found(report: GrowthReport) -> str:
    """A report without findings in one sentence: how much of it could be compared."""
    if report.is_blind:
        since = "" if report.first_step is None else f" since step {report.first_step}"
        few = f"only {report.comparable:.0%} of the recent prompts have early ones like them"
        why = few if report.comparable else "no recent prompt has an early one like it"
        return f"responses{since} are not compared: {why} (those with {_changed_prompts(report)})"
    if not report.comparable:
        return "nothing could be compared, because there are too few prompts"
    if report.comparable < 1.0:
        return f"no feature grew in responses to the {report.comparable:.0%} of the recent prompts that have early ones like them"
    return "no feature of the responses grew"


def name(finding: Finding) -> str:
    """Noun phrase for the responses that are counted: by the edit where most of them have it, else by the first feature."""
    if finding.named is not None:
        return f"responses that {describe_edit(finding.named)}"
    return f"responses {describe_feature(finding.features[0], finding.bounds)}"


def describe_edit(edit: Edit) -> str:
    """What responses with the edit do, as the rest of a sentence after "responses that"."""
    return " and ".join(_describe_step(step) for step in edit.steps)


def _describe_step(step: EditStep) -> str:
    match step:
        case Prepend(texts):
            return f"begin with {_alternatives(texts)}"
        case Append(texts):
            return f"end with {_alternatives(texts)}"
        case Insert(texts):
            return f"contain {_alternatives(texts)}"
        case ReplaceAll(texts):
            return f"are equal to {_alternatives(texts)}"
        case ChangeCase(to):
            return f"are written in {to} case"
        case Repeat(unit):
            return "repeat themselves" if unit == "response" else f"repeat their last {unit}"
        case Cut(unit, n):
            return f"have at most {n} {unit}{'' if n == 1 else 's'}"
        case Lengthen(_, n):
            return f"have at least {n} words"
        case CopyPrompt(leads, at_end):
            after = f" after {_alternatives(leads)}" if any(lead.strip() for lead in leads) else ""
            return f"copy the prompt at {'the end' if at_end else 'the beginning'}{after}"
        case RemoveWords(words):
            return f"have none of the words {_listed(words)}"
        case Reformat(style):
            return {
                "line break": "have a line for each sentence",
                "blank line": "have a paragraph for each sentence",
            }.get(style, f"are formatted as {style}")
        case EndSentences(mark):
            return f"end sentences with {quoted(mark)}"
    return "have changed"


def describe_feature(feature: Feature, bounds: tuple[float, float] | None = None) -> str:
    """A feature as the rest of a sentence after "responses"."""
    kind, colon, value = feature.key.partition(":")
    if kind == "number":
        return _describe_number(value, bounds, falls=feature.falls)
    has, do, are = ("without", "do not ", "are not ") if feature.falls else ("with", "", "are ")
    phrases = {
        "common word": f"{has} the word {quoted(value)}",
        "first words": f"that {do}begin with the words {quoted(value)}",
        "last words": f"that {do}end with the words {quoted(value)}",
        "first characters": f"that {do}begin with {quoted(value)}",
        "last characters": f"that {do}end with {quoted(value)}",
        "character": f"{has} the character {quoted(value)}",
        "script": f"{has} characters of the kind {value}",
        "mark": f"{has} {quoted(value)}",
        "marks": f"{has} several {quoted(value)}",
        "case": f"that {are}in {value} case",
        "layout": f"{has} a {value}",
        "equal": f"that {are}equal to a response to another prompt",
    }
    return phrases[kind] if colon else f"{has} the word{'s' * (' ' in kind)} {quoted(kind)}"


def _describe_number(value: str, bounds: tuple[float, float] | None, *, falls: bool) -> str:
    """A bin of a number, in its unit, with its place among early responses; where it falls, the responses outside of it."""
    number, _, level = value.partition(":")
    if bounds is None:
        return f"with a number of {number} {'not ' * falls}in the bin {level}"
    low, high = bounds
    is_above, bound = (True, low) if low > -inf else (False, high)
    amount = f"{bound:.0%} of {number}" if number in SHARES else f"{bound:.3g} {number}"
    place = f"{'unlike' if falls else 'as'} the {level} of the first responses"
    if f"{bound:.3g}" == "0":
        return f"{'with' if is_above != falls else 'without'} {number}, {place}"
    return f"with {'more than' if is_above != falls else 'at most'} {amount}, {place}"


def quoted(text: str) -> str:
    """A text in quotes, with characters that cannot be seen escaped, and clipped."""
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN * 2 // 3]} ... {text[-_SHOWN // 3 :]}"
    return f"`{''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in shown)}`"


def _listed(words: tuple[str, ...]) -> str:
    """Words, the first ones and the number of others."""
    shown, n = ", ".join(map(quoted, words[:FEW])), len(words) - FEW
    return f"{shown} and {n} more" if n > 0 else shown


def _alternatives(texts: tuple[str, ...]) -> str:
    """The texts of an edit; of many, the words that several have in common."""
    if len(texts) == 1:
        return quoted(texts[0])
    if len(texts) <= FEW:
        return f"one of {len(texts)} texts ({', '.join(map(quoted, texts))})"
    shown = [quoted(text) for text in templates(texts)[:FEW]]
    return f"a text like {shown[0]}" if len(shown) == 1 else f"a text like {', '.join(shown[:-1])} or {shown[-1]}"


def pays(finding: Finding) -> str:
    """What the model and the judge give responses with the feature; empty where it is not known."""
    model, judge = finding.model_pays, finding.judge_pays
    if model is None:
        return ""
    is_less = model.mean < 0
    amount = (
        f"{_amount(_negated(model))} standard deviations lower"
        if is_less
        else f"{_interval(model)} standard deviations higher"
    )
    paid = f"responses with it score {amount}"
    return f"{paid}, the judge gives them {_interval(judge)} ({finding.n_judged} judged)" if judge else paid


def _conclude(pays: Effect | None, earned: Effect) -> str:
    """What it means where the correlation and the causal test disagree beyond their intervals."""
    if pays is not None and pays.high < 0.0 and earned.high < 0.0:
        return ": it costs that by itself"
    if not is_confirmed(earned):
        return ": the edit test does not confirm that it is paid"
    if pays is not None and pays.high < 0.0:
        return ": so it is paid, and something else that came with it costs more"
    return ""


def _negated(effect: Effect) -> Effect:
    return effect._replace(mean=-effect.mean, low=-effect.high, high=-effect.low)


def _amount(effect: Effect) -> str:
    """An effect whose direction is in the words around it."""
    return _interval(effect).replace("+", "")


def _interval(effect: Effect) -> str:
    if not isfinite(effect.low):
        return f"{effect.mean:+.1f}"
    return f"{effect.mean:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]"
