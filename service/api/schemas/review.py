"""The requests and replies of `/review`: captured samples and alerts."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rewardserve.service.api.field_docs import PROMPT, RESPONSE, TIME, doc
from rewardserve.service.api.names import MAX_NAME_CHARS
from rewardserve.service.api.requests import MAX_STEP, StrictRecord
from rewardserve.service.api.schemas.record import ReplyRecord

MAX_PAGE = 1_000
_KEY = r"^[0-9a-f]{16}$"

RunLabel = Annotated[str, Meta(min_length=1, max_length=2 * MAX_NAME_CHARS)]
Step = Annotated[int, Meta(ge=0, le=MAX_STEP)]
Reason = Literal["flagged", "share", "alert"]

_TURNS = [{"role": "user", "content": PROMPT}]
_SAMPLE = {
    "id": 17, "run": "ppo-7", "step": 120, "at": TIME, "prompt": _TURNS, "response": RESPONSE, "score": 0.52, "reward": 0.41,
    "raw": 1.93, "heads": {"convincing": 0.7}, "stages": {"score": 0.52, "cap": -0.11}, "flags": ["flattery"], "audit": None,
    "reason": "flagged", "sample_id": "a", "task": "math", "tokens": 213, "truncated": False, "missing_end": False,
    "evidence": "5f2b9c1e0a7d4836", "prompt_key": "0c93d21b7e5a4f68", "model": "default", "model_version": 1,
}  # fmt: skip
_ALERT = {
    "id": 3, "run": "ppo-7", "step": 120, "at": TIME, "wire": "repetition", "severity": "warn", "statistic": 0.88,
    "threshold": 0.2, "task": "", "evidence": ["5f2b9c1e0a7d4836"], "model": "default", "model_version": 1,
}  # fmt: skip
_RUN = {"run": "ppo-7", "samples": 512, "alerts": 3, "bytes": 1_048_576, "first": TIME, "last": TIME}


class SamplesQuery(StrictRecord, frozen=True, gc=False):
    """The query of `GET /review/samples` and of `GET /review/export`: samples that have all that is given."""

    run: Annotated[RunLabel | None, doc("label of the run, as in GET /review/runs", "ppo-7")] = None
    prompt_key: Annotated[
        Annotated[str, Meta(pattern=_KEY)] | None, doc("key of the prompt, as in a sample", "0c93d21b7e5a4f68")
    ] = None
    evidence: Annotated[
        Annotated[str, Meta(pattern=_KEY)] | None, doc("hash of the sample, as an alert names it", "5f2b9c1e0a7d4836")
    ] = None
    reason: Annotated[Reason | None, doc("why it was captured", "alert")] = None
    flag: Annotated[
        Annotated[str, Meta(max_length=64, pattern="^[a-z_]+$")] | None, doc("one of its flags", "flattery")
    ] = None
    first_step: Annotated[Step | None, doc("earliest step", 0)] = None
    last_step: Annotated[Step | None, doc("latest step", 120)] = None


class SamplePageQuery(SamplesQuery, frozen=True, gc=False):
    """The query of `GET /review/samples`."""

    before: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_STEP)] | None,
        doc("id below which the page begins: `next` of the page before", 17),
    ] = None
    limit: Annotated[Annotated[int, Meta(ge=1, le=MAX_PAGE)], doc("most samples of the page", 100)] = 100


class RunQuery(StrictRecord, frozen=True, gc=False):
    """The query of routes of one run."""

    run: Annotated[RunLabel, doc("label of the run, as in GET /review/runs", "ppo-7")]


class TurnOut(ReplyRecord, frozen=True, gc=False):
    """One turn of a conversation."""

    role: Annotated[str, doc("speaker of the turn: system, user, assistant or tool", "user")]
    content: Annotated[str, doc("text of the turn", PROMPT)]


class CapturedSampleOut(ReplyRecord, frozen=True, gc=False):
    """A captured sample."""

    id: Annotated[int, doc("number in the store", 17)]
    run: Annotated[str, doc("label of its run", "ppo-7")]
    step: Annotated[int | None, doc("training step; null: not known", 120)]
    at: Annotated[str, doc("time of its capture, in UTC", TIME)]
    prompt: Annotated[
        list[TurnOut] | str, doc("turns before the response, or their text where the client rendered it", _TURNS)
    ]
    response: Annotated[str, doc("text of the policy that was scored", RESPONSE)]
    score: Annotated[float, doc("combined score before penalties and shape", 0.52)]
    reward: Annotated[float | None, doc("reward as sent; null: not kept with texts of an alert", 0.41)]
    raw: Annotated[float | None, doc("raw score; null: not kept with texts of an alert", 1.93)]
    heads: Annotated[dict[str, float], doc("scores by head of the model", _SAMPLE["heads"])]
    stages: Annotated[dict[str, float], doc("change by each step of the reward pipeline", _SAMPLE["stages"])]
    flags: Annotated[list[str], doc("flags as in the reply", ["flattery"])]
    audit: Annotated[float | None, doc("score of the audit judge; null: not judged, or not known here", None)]
    reason: Annotated[Reason, doc("why it was captured", "flagged")]
    sample_id: Annotated[str | None, doc("id that its client gave it", "a")]
    task: Annotated[str, doc("task that its client named", "math")]
    tokens: Annotated[int | None, doc("tokens of the sample", 213)]
    truncated: Annotated[bool, doc("whether its prompt was cut", False)]
    missing_end: Annotated[bool, doc("whether its response has no end", False)]
    evidence: Annotated[str, doc("hash by which alerts name it", _SAMPLE["evidence"])]
    prompt_key: Annotated[str, doc("equal for samples of one prompt", _SAMPLE["prompt_key"])]
    model: Annotated[str, doc("model that scored it", "default")]
    model_version: Annotated[int, doc("version of this model", 1)]


class SamplesReply(ReplyRecord, frozen=True, gc=False):
    """Captured samples, the latest first."""

    samples: Annotated[list[CapturedSampleOut], doc("one page of them", [_SAMPLE])]
    next: Annotated[int | None, doc("`before` of the next page; null: this is the last one", 17)]


class CapturedAlertOut(ReplyRecord, frozen=True, gc=False):
    """A captured alert."""

    id: Annotated[int, doc("number in the store", 3)]
    run: Annotated[str, doc("label of its run", "ppo-7")]
    step: Annotated[int | None, doc("training step; null: not known", 120)]
    at: Annotated[str, doc("time of its capture, in UTC", TIME)]
    wire: Annotated[str, doc("name of the trip wire that tripped", "repetition")]
    severity: Annotated[str, doc("note, warn or page", "warn")]
    statistic: Annotated[float | None, doc("number that was measured; null: not finite", 0.88)]
    threshold: Annotated[float, doc("threshold that it exceeded", 0.2)]
    task: Annotated[str, doc("task whose samples alone tripped it", "")]
    evidence: Annotated[list[str], doc("hashes of samples that show it", _ALERT["evidence"])]
    model: Annotated[str, doc("model that scored the run", "default")]
    model_version: Annotated[int, doc("version of this model", 1)]


class CapturedAlertsReply(ReplyRecord, frozen=True, gc=False):
    """Captured alerts of a run, the latest first."""

    alerts: Annotated[list[CapturedAlertOut], doc("alerts, at most 1,000", [_ALERT])]


class CapturedRunOut(ReplyRecord, frozen=True, gc=False):
    """A run in the review store."""

    run: Annotated[str, doc("label of the run", "ppo-7")]
    samples: Annotated[int, doc("number of captured samples", 512)]
    alerts: Annotated[int, doc("number of captured alerts", 3)]
    bytes: Annotated[int, doc("bytes of its samples", _RUN["bytes"])]
    first: Annotated[str, doc("time of its first capture, in UTC", TIME)]
    last: Annotated[str, doc("time of its last capture, in UTC", TIME)]


class CapturedRunsReply(ReplyRecord, frozen=True, gc=False):
    """Runs in the review store, that with the last capture first."""

    capture: Annotated[str, doc("which samples are captured: REWARD_CAPTURE", "flagged")]
    runs: Annotated[list[CapturedRunOut], doc("runs, at most 10,000", [_RUN])]


class DeletedReply(ReplyRecord, frozen=True, gc=False):
    """Numbers of deleted records."""

    samples: Annotated[int, doc("number of deleted samples", 512)]
    alerts: Annotated[int, doc("number of deleted alerts", 3)]


_TOKEN = {"text": " minutes", "heads": {"score": 0.31}}


class TokenValueOut(ReplyRecord, frozen=True, gc=False):
    """A token of a response."""

    text: Annotated[str, doc("its text; empty where a later token completes its character", " minutes")]
    heads: Annotated[dict[str, float], doc("value of each head at this token", {"score": 0.31})]


class ValuesReply(ReplyRecord, frozen=True, gc=False):
    """The value of each head at each token of a response: the raw score if the response ended there."""

    model_version: Annotated[int, doc("version of the model in service, which computed them", 1)]
    tokens: Annotated[
        list[TokenValueOut],
        doc(
            "tokens of the response and of its ending; the last values are the score",
            [_TOKEN],
        ),
    ]
