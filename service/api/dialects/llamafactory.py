"""`POST /v1/score/evaluation`: LLaMA-Factory's reward server, as its PPO trainer calls it (`reward_model_type: api`).

Texts are decoded from ids with special tokens kept. The client always sends `"model": "model"`, which counts as no name. It
has no timeout, does not retry, and ends with a KeyError on any reply without `scores` (`llamafactory/train/ppo/ppo_utils.py`), so
a request waits for capacity here.
"""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import msgspec

from rewardserve.model.conversation import Sample, SampleOptions
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ScoredRequest
from rewardserve.service.api.field_docs import CHECKPOINT, MODEL, RENDERED, doc
from rewardserve.service.api.requests import Tokens
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

_QUEUE_TIMEOUT_S = 600.0


class ScoreEvaluationRequest(msgspec.Struct, frozen=True, gc=False):
    """The fields of LLaMA-Factory's protocol; `messages` are whole texts."""

    messages: Annotated[
        list[str], msgspec.Meta(min_length=1), doc("whole conversations, decoded with special tokens", [RENDERED])
    ]
    model: Annotated[
        str | None,
        doc(
            "the name of the model in service, an alias or a digest; `model`, which LLaMA-Factory always sends: any model",
            MODEL,
        ),
    ] = None
    max_length: Annotated[
        Tokens | None, doc("lower limit in tokens: the prompt is cut from the left, never the end", 2048)
    ] = None


class ScoreEvaluationReply(ReplyRecord, frozen=True, gc=False):
    """LLaMA-Factory's reply."""

    id: Annotated[str, doc("new for every reply", "scoreval-1")]
    object: Annotated[str, doc("kind of the reply", "score.evaluation")]
    model: Annotated[str, doc("name of the model", CHECKPOINT)]
    scores: Annotated[list[float], doc("rewards, in order", [0.41])]


def _to_samples(body: ScoreEvaluationRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    options = SampleOptions(max_tokens=body.max_length, scores_empty=True)
    return [Sample(text=text, options=options) for text in body.messages]


def _to_reply(_body: ScoreEvaluationRequest, scored_request: ScoredRequest) -> ScoreEvaluationReply:
    return ScoreEvaluationReply(
        f"scoreval-{uuid4().hex}", "score.evaluation", scored_request.model, scored_request.scores
    )


SCORE_EVALUATION = Dialect(
    path="/v1/score/evaluation",
    clients="LLaMA-Factory",
    body_formats=(
        BodyFormat(
            text_fields=("messages",),
            body=ScoreEvaluationRequest,
            to_samples=_to_samples,
            to_reply=_to_reply,
            replies=(ScoreEvaluationReply,),
        ),
    ),
    score_kind="reward",
    example_reply={"id": "scoreval-1", "object": "score.evaluation", "model": "/models/rm", "scores": [0.41]},
    queue_timeout_s=_QUEUE_TIMEOUT_S,
    fixed_names=frozenset({"model"}),
)
