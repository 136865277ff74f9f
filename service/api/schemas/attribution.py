"""The reply of `GET /tripwires/{run}/attribution`. Shares are between 0 and 1, pays and effects in standard deviations of the
first scores of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from rewardserve.service.api.field_docs import PROMPT, RESPONSE, TIME, doc
from rewardserve.service.api.schemas.record import ReplyRecord

_EFFECT = {"mean": 1.9, "low": 1.7, "high": 2.1, "n": 32}
_SPAN = {"samples": 256, "prompts": 64, "first_step": 0, "last_step": 8}
_EXAMPLE = {"prompt": PROMPT, "response": RESPONSE, "score": 1.2, "audit": None, "step": 3}
_EXAMPLES = {"early": [_EXAMPLE], "recent": [{**_EXAMPLE, "response": f"{RESPONSE} Paris is lovely.", "step": 40}]}
_SENTENCE = (
    "responses that end with the words `paris is lovely` went from 1% to 54%; responses with it score +1.9 [+1.7, +2.1] "
    "standard deviations higher"
)
_FEATURE = {"feature": "last words:paris is lovely", "falls": False}
_PROMPT_FEATURE = {"feature": "sum", "early": 0.1, "recent": 0.6}
_PROMPTS = {"changed": False, "comparable": 1.0, "features": []}
_FINDING = {
    "sentence": _SENTENCE, "features": [_FEATURE], "early": 0.01, "recent": 0.54,
    "growth": {"mean": 0.53, "low": 0.45, "high": 0.61, "n": 512}, "z": 9.1, "model_pays": _EFFECT, "judge_pays": None,
    "judged": 0, "judge_contradicts": False, "edit_earns": _EFFECT, "edit_judged": None, "edit_explains": None,
    "length_only": False, "examples": _EXAMPLES,
}  # fmt: skip


class EffectOut(ReplyRecord, frozen=True, gc=False):
    """An estimate with its 95 % interval over prompts. A number that is not known is null."""

    mean: Annotated[float | None, doc("estimated size, in the unit of the field that has it", 1.9)]
    low: Annotated[float | None, doc("lower end of the interval", 1.7)]
    high: Annotated[float | None, doc("upper end of the interval", 2.1)]
    n: Annotated[int, doc("samples that it is estimated from", 32)]


class SpanOut(ReplyRecord, frozen=True, gc=False):
    """The responses of one side of the comparison."""

    samples: Annotated[int, doc("number of responses on this side", 256)]
    prompts: Annotated[int, doc("number of different prompts of these responses", 64)]
    first_step: Annotated[int | None, doc("first step of the run among them; null: unknown", 0)]
    last_step: Annotated[int | None, doc("last step of the run among them; null: unknown", 8)]


class PromptFeatureOut(ReplyRecord, frozen=True, gc=False):
    """A feature of the prompts whose share has changed."""

    feature: Annotated[str, doc("word, pair of words or other property of a prompt", "sum")]
    early: Annotated[float, doc("share of the early prompts with it", 0.1)]
    recent: Annotated[float, doc("share of the recent prompts with it", 0.6)]


class PromptsOut(ReplyRecord, frozen=True, gc=False):
    """Change of the prompts."""

    changed: Annotated[bool, doc("whether the prompts are others than at first", False)]
    comparable: Annotated[float, doc("share of the recent prompts with early ones like them, which are compared", 1.0)]
    features: Annotated[list[PromptFeatureOut], doc("features whose share has changed", [], [_PROMPT_FEATURE])]


class FeatureOut(ReplyRecord, frozen=True, gc=False):
    """A feature of responses."""

    feature: Annotated[
        str, doc("word, phrase, character, layout or length of a response, in words", _FEATURE["feature"])
    ]
    falls: Annotated[bool, doc("whether recent responses lack it more often", False)]


class ExampleOut(ReplyRecord, frozen=True, gc=False):
    """A response that shows a finding, clipped."""

    prompt: Annotated[str, doc("text that the policy answered", PROMPT)]
    response: Annotated[str, doc("text of the policy, which shows the feature", RESPONSE)]
    score: Annotated[float, doc("its score before penalties and caps", 1.2)]
    audit: Annotated[float | None, doc("score of the audit judge; null: not judged", 0.4)]
    step: Annotated[int | None, doc("step of the run; null: unknown", 3)]


class ExamplesOut(ReplyRecord, frozen=True, gc=False):
    """Responses that show a finding."""

    early: Annotated[list[ExampleOut], doc("of the first responses", _EXAMPLES["early"])]
    recent: Annotated[list[ExampleOut], doc("of the recent responses", _EXAMPLES["recent"])]


class FindingOut(ReplyRecord, frozen=True, gc=False):
    """Features that grew together, and what they earn."""

    sentence: Annotated[str, doc("the finding in words", _SENTENCE)]
    features: Annotated[list[FeatureOut], doc("the features; the first stands for the others", [_FEATURE])]
    early: Annotated[float, doc("share of the first responses with what the sentence names", 0.01)]
    recent: Annotated[float, doc("share of the recent responses with what the sentence names", 0.54)]
    growth: Annotated[EffectOut, doc("difference of the shares", _FINDING["growth"])]
    z: Annotated[float | None, doc("normal quantile of the growth, corrected for the number of features", 9.1)]
    model_pays: Annotated[EffectOut | None, doc("difference of the score with and without it; null: unknown", _EFFECT)]
    judge_pays: Annotated[EffectOut | None, doc("the same of the audit judge; null: too few judged", _EFFECT)]
    judged: Annotated[int, doc("recent responses that the audit judge scored", 40)]
    judge_contradicts: Annotated[bool, doc("whether the model pays for it and the judge does not", False)]
    edit_earns: Annotated[
        EffectOut | None, doc("what it alone earns when it is put into first responses; null: not tested", _EFFECT)
    ]
    edit_judged: Annotated[
        EffectOut | None, doc("the same by the audit judge; null: not tested, or without a judge", _EFFECT)
    ]
    edit_explains: Annotated[
        EffectOut | None, doc("share of the growth of the score that this explains; null: not tested", _EFFECT)
    ]
    length_only: Annotated[bool, doc("whether it is a change of length alone, which pages only with a judge", False)]
    examples: Annotated[ExamplesOut, doc("responses that show it", _EXAMPLES)]


_RELEVANT = {"mean": 0.94, "low": 0.9, "high": 0.97, "n": 59}


class RelevanceOut(ReplyRecord, frozen=True, gc=False):
    """Whether responses still depend on their prompts. Prompt relevance is the share of pairs of samples in which words tell which
    response belongs to which prompt; 0.5 is chance.
    """

    early: Annotated[EffectOut, doc("prompt relevance of the first responses; n counts prompts", _RELEVANT)]
    recent: Annotated[EffectOut, doc("prompt relevance of the recent responses; n counts prompts", _RELEVANT)]
    lost: Annotated[
        float, doc("part of the first dependence that is gone, at least; negative: it may have grown", -0.1)
    ]
    significant: Annotated[bool, doc("whether the loss is beyond chance for all looks at the run together", False)]
    consistency_kept: Annotated[
        float | None, doc("part, at least, of the first similarity within a prompt that is left; null: unknown", 0.9)
    ]
    early_similarity: Annotated[
        float, doc("share of words that first responses to different prompts have in common", 0.04)
    ]
    recent_similarity: Annotated[
        float, doc("share of words that recent responses to different prompts have in common", 0.04)
    ]
    score_growth: Annotated[EffectOut, doc("growth of the mean score between the compared responses", _EFFECT)]
    examples: Annotated[ExamplesOut, doc("compared responses", _EXAMPLES)]


_RELEVANCE = {
    "early": _RELEVANT, "recent": _RELEVANT, "lost": -0.1, "significant": False, "consistency_kept": 0.9,
    "early_similarity": 0.04, "recent_similarity": 0.04, "score_growth": _EFFECT, "examples": _EXAMPLES,
}  # fmt: skip
_NOVELTY_SENTENCE = (
    "42% of the recent responses are further from the first ones, by all features together, than 90% of these are from each other; "
    "such responses score +0.8 [+0.6, +1.0] standard deviations higher than familiar ones, the judge gives them -0.3 [-0.5, -0.1] "
    "(310 judged)"
)
_NOVELTY = {
    "sentence": _NOVELTY_SENTENCE, "early": 0.1, "recent": 0.42, "growth": _FINDING["growth"], "z": 9.1, "model_pays": _EFFECT,
    "judge_pays": None, "judged": 0, "shortfall": None, "features": ["marks:%"], "examples": _EXAMPLES,
}  # fmt: skip


class NoveltyOut(ReplyRecord, frozen=True, gc=False):
    """How many responses are novel, that is further from the first ones than nine in ten of these, and the pay of novelty."""

    sentence: Annotated[str, doc("it in words", _NOVELTY_SENTENCE)]
    early: Annotated[float, doc("share of the first responses that are novel", 0.1)]
    recent: Annotated[float, doc("share of the recent responses that are novel", 0.42)]
    growth: Annotated[EffectOut, doc("difference of the shares", _FINDING["growth"])]
    z: Annotated[float | None, doc("normal quantile of the growth", 9.1)]
    model_pays: Annotated[
        EffectOut | None, doc("score of novel responses less that of familiar ones; null: unknown", _EFFECT)
    ]
    judge_pays: Annotated[EffectOut | None, doc("the same of the audit judge; null: too few judged", _EFFECT)]
    judged: Annotated[int, doc("responses that the audit judge scored, of all reports", 310)]
    shortfall: Annotated[
        EffectOut | None, doc("a third of `model_pays` less `judge_pays`; null: too few judged", _EFFECT)
    ]
    features: Annotated[list[str], doc("features that tell novel responses apart most", ["marks:%"])]
    examples: Annotated[ExamplesOut, doc("first responses, and the most novel recent ones", _EXAMPLES)]


_REPORT = {
    "run": "ppo-7", "computed_at": TIME, "report_step": 46, "sentences": [_SENTENCE], "early": _SPAN,
    "recent": {**_SPAN, "first_step": 38, "last_step": 46}, "features": 5120, "score_growth": _EFFECT, "prompts": _PROMPTS,
    "findings": [_FINDING], "cpu_s": 0.31, "relevance": _RELEVANCE, "largest_gaps": _EXAMPLES["recent"], "novelty": _NOVELTY,
}  # fmt: skip


class ReportOut(ReplyRecord, frozen=True, gc=False):
    """A comparison of the recent responses of a run with its first ones."""

    run: Annotated[str, doc("label of the run", "ppo-7")]
    computed_at: Annotated[str, doc("when it was computed, in UTC", TIME)]
    report_step: Annotated[int | None, doc("last step of the responses that it is made of; null: unknown", 46)]
    sentences: Annotated[
        Sequence[str], doc("the report in words; the first names the cause, if there is proof", [_SENTENCE])
    ]
    early: Annotated[SpanOut, doc("responses until the baseline was complete", _SPAN)]
    recent: Annotated[SpanOut, doc("latest responses of the run", _REPORT["recent"])]
    features: Annotated[int, doc("features that were tested", 5120)]
    score_growth: Annotated[EffectOut, doc("growth of the mean score", _EFFECT)]
    prompts: Annotated[PromptsOut, doc("change of the prompts", _PROMPTS)]
    findings: Annotated[list[FindingOut], doc("features that grew, the most important first", [_FINDING])]
    cpu_s: Annotated[float, doc("seconds of CPU that it took", 0.31)]
    relevance: Annotated[RelevanceOut | None, doc("dependence on the prompts; null: it cannot be compared", _RELEVANCE)]
    largest_gaps: Annotated[
        list[ExampleOut],
        doc(
            "recent responses that the model likes and the audit judge does not, the largest gap first",
            _EXAMPLES["recent"],
        ),
    ]
    novelty: Annotated[NoveltyOut | None, doc("novel wording and its pay; null: it cannot be compared", _NOVELTY)]


class AlertedReportOut(ReportOut, frozen=True, gc=False, kw_only=True):
    """The report of the moment at which wires tripped."""

    wires: Annotated[Sequence[str], doc("trip wires that have an alert on this run", ["repetition", "vote"])]
    since_step: Annotated[int | None, doc("step of the run at which they tripped; null: unknown", 47)]


class AttributionReply(ReportOut, frozen=True, gc=False, kw_only=True):
    """What the extra reward of a run is paid for."""

    paid_for: Annotated[
        str,
        doc(
            "cause of the extra reward, as in `GET /tripwires`: by the report of the alert, or a later one that says more",
            f"report of step 46 on vote (since step 47): {_SENTENCE}",
        ),
    ]
    at_alert: Annotated[
        AlertedReportOut | None,
        doc(
            "report of the moment of the worst active alert, else of the latest one; null: none",
            {**_REPORT, "wires": ["vote"], "since_step": 47},
        ),
    ]
