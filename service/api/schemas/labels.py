"""The requests and replies of `/review/queue` and `/review/labels`: pairs, and the verdicts of annotators."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rewardserve.service.api.field_docs import PROMPT, RESPONSE, doc
from rewardserve.service.api.requests import StrictRecord
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.api.schemas.review import RunLabel, TurnOut

MAX_QUEUE = 100
Verdict = Literal["first", "second", "tie", "both_bad", "skip"]
OrderedVerdict = Literal["earlier", "later", "tie", "both_bad", "skip"]

_TURNS = [{"role": "user", "content": PROMPT}]
_PAIR_ID = "9c41e07f52ab63d8"
_PAIR = {"id": _PAIR_ID, "prompt": _TURNS, "first": RESPONSE, "second": "No idea."}
_LABELLED = {
    "pair": _PAIR_ID, "run": "ppo-7", "sampling": "alert", "earlier": 17, "later": 341, "verdicts": {"ann": "earlier", "bo": "tie"},
}  # fmt: skip

PairId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]


class QueueQuery(StrictRecord, frozen=True, gc=False):
    """The query of `GET /review/queue`."""

    run: Annotated[RunLabel, doc("label of the run, as in GET /review/runs", "ppo-7")]
    sampling: Annotated[
        Literal["disagreement", "alert", "random"],
        doc(
            "which pairs come first: `disagreement` of model and audit judge, `alert`: a response that an alert or a flag points "
            "at beside an early one, or `random`",
            "alert",
        ),
    ] = "random"
    limit: Annotated[Annotated[int, Meta(ge=1, le=MAX_QUEUE)], doc("most pairs", 1)] = 1


class QueuedPairOut(ReplyRecord, frozen=True, gc=False):
    """A pair of responses to one prompt, blinded: nothing tells which policy or step wrote which, or what they scored."""

    id: Annotated[str, doc("name of the pair", _PAIR_ID)]
    prompt: Annotated[list[TurnOut] | str, doc("turns before the responses, or their text", _TURNS)]
    first: Annotated[str, doc("one response; the order of the two is drawn for each annotator", RESPONSE)]
    second: Annotated[str, doc("the other response", "No idea.")]


class QueueReply(ReplyRecord, frozen=True, gc=False):
    """The next pairs for this annotator."""

    pairs: Annotated[list[QueuedPairOut], doc("pairs without a label of this annotator", [_PAIR])]
    labelled: Annotated[int, doc("pairs of the run that this annotator has labelled", 12)]
    left: Annotated[int, doc("pairs of this sampling that are left, with those of this reply", 288)]


class LabelRequest(StrictRecord, frozen=True, gc=False):
    """The body of `POST /review/labels`."""

    pair: Annotated[PairId, doc("name of the pair, as in GET /review/queue", _PAIR_ID)]
    verdict: Annotated[
        Verdict,
        doc("the better response in the order of the queue; `skip`: no verdict, do not show the pair again", "first"),
    ]


class LabelReply(ReplyRecord, frozen=True, gc=False):
    """A stored label."""

    label: Annotated[int, doc("number of the label", 7)]


class LabelsQuery(StrictRecord, frozen=True, gc=False):
    """The query of `GET /review/labels` and of `GET /review/agreement`."""

    run: Annotated[RunLabel | None, doc("label of the run; left out: all runs", "ppo-7")] = None


class LabelledPairOut(ReplyRecord, frozen=True, gc=False):
    """A labelled pair."""

    pair: Annotated[str, doc("name of the pair", _PAIR_ID)]
    run: Annotated[str, doc("label of its run", "ppo-7")]
    sampling: Annotated[str, doc("why it was shown", "alert")]
    earlier: Annotated[int, doc("number of the sample that was captured first", 17)]
    later: Annotated[int, doc("number of the other sample", 341)]
    verdicts: Annotated[dict[str, OrderedVerdict], doc("verdict by annotator", _LABELLED["verdicts"])]


class LabelsReply(ReplyRecord, frozen=True, gc=False):
    """Labelled pairs."""

    pairs: Annotated[list[LabelledPairOut], doc("all labelled pairs", [_LABELLED])]


class AgreementReply(ReplyRecord, frozen=True, gc=False):
    """How far annotators agree. Skipped pairs do not count."""

    pairs: Annotated[int, doc("number of pairs with a verdict", 288)]
    labelled_twice: Annotated[int, doc("pairs with verdicts of several annotators", 57)]
    raw: Annotated[float | None, doc("share of pairs of verdicts that are equal; null: no pair has two", 0.86)]
    krippendorff_alpha: Annotated[
        float | None, doc("Krippendorff's alpha for nominal data: 1 is agreement, 0 is chance; null: undefined", 0.71)
    ]
    by_annotator: Annotated[dict[str, int], doc("number of verdicts by annotator", {"ann": 201, "bo": 144})]
