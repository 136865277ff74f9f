"""Everything the service says no with: a stable code, an HTTP status, a message and the numbers.

    ServiceError
    ├─ RequestRefused   the request as a whole is answered with `status`
    └─ RowFailed        one sample is answered with an error; its neighbours are scored

`rewardserve.model.conversation.SampleError` is the third kind, raised by whoever reads a sample; like `RowFailed`
it belongs to one sample. A message never holds a part of a conversation or a key. Knows no HTTP library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rewardserve.model.conversation import SampleError

Detail = int | float | str


class ServiceError(Exception):
    """`details` are the numbers that whoever reads the message can act on."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details


class RequestRefused(ServiceError):
    """The request as a whole is refused."""


class InvalidRequest(RequestRefused):
    """Wrong types, unknown or missing fields. `field` is the JSON path of the first offender."""

    code = "invalid_request"
    status = 422


class TooManySamples(RequestRefused):
    """More samples than one request may hold."""

    code = "too_many_samples"
    status = 422


class KeyReused(RequestRefused):
    """An idempotency key that belongs to another body."""

    code = "idempotency_key_reused"
    status = 422


class ModelNotServed(RequestRefused):
    """A request names another model than the one that would score it."""

    code = "model_not_served"
    status = 404


class NoSuchAlarm(RequestRefused):
    """Nothing of that name waits to be acknowledged."""

    code = "no_such_alarm"
    status = 404


class InvalidJson(RequestRefused):
    """The body is no JSON: broken, NaN or Infinity, nested beyond reason."""

    code = "invalid_json"
    status = 400


class UnsupportedMediaType(RequestRefused):
    """The body says that it is something else than plain JSON."""

    code = "unsupported_media_type"
    status = 415


class BodyTooLarge(RequestRefused):
    """More bytes than this server reads."""

    code = "body_too_large"
    status = 413


class BodyTimeout(RequestRefused):
    """The body came too slowly."""

    code = "body_timeout"
    status = 408


class InvalidPath(RequestRefused):
    """A path that no log could show: control characters, line separators, or no UTF-8."""

    code = "invalid_path"
    status = 400


class HeadTimeout(RequestRefused):
    """The head of a request came too slowly."""

    code = "head_timeout"
    status = 408


class HeadTooLarge(RequestRefused):
    """More bytes of head than this server reads."""

    code = "head_too_large"
    status = 431


class InvalidHttp(RequestRefused):
    """Bytes that are no request."""

    code = "invalid_http"
    status = 400


class RequestTooLarge(RequestRefused):
    """Larger than all seats together: it could never be admitted, so trying again is no use."""

    code = "request_too_large"
    status = 413


class Unauthorized(RequestRefused):
    """No key, or not one of ours."""

    code = "unauthorized"
    status = 401


class Forbidden(RequestRefused):
    """A good key, but not for this. `scope` is what it lacks."""

    code = "forbidden"
    status = 403


class RunNotAllowed(RequestRefused):
    """This key may not send samples of this run: it is bound to others, or another key is bound to this one."""

    code = "run_not_allowed"
    status = 403


class AdminNeedsKey(RequestRefused):
    """Without keys only this machine may administrate."""

    code = "admin_needs_key"
    status = 403


class HostNotAllowed(RequestRefused):
    """Without keys: the request asks for a server of another name, as a page of another site would."""

    code = "host_not_allowed"
    status = 403


class OriginNotAllowed(RequestRefused):
    """Without keys: a page of another site asks."""

    code = "origin_not_allowed"
    status = 403


class RateLimited(RequestRefused):
    """This key has had what it may have for now. Nobody else is concerned."""

    code = "rate_limited"
    status = 429


class Overloaded(RequestRefused):
    """All seats are taken. The operator may prefer 429 over 503."""

    code = "overloaded"
    status = 503


class Loading(RequestRefused):
    """The model is not there yet."""

    code = "loading"
    status = 503


class ScorerFailing(RequestRefused):
    """Batch after batch has failed. `/readyz` says so; whoever asks for scores all the same is answered."""

    code = "scorer_failing"
    status = 503


class ScorerHanging(RequestRefused):
    """A forward has not come back in time. Nobody is kept waiting for it; it may still come back."""

    code = "scorer_hanging"
    status = 503


class ScorerDead(RequestRefused):
    """The scorer cannot score any more: the process must be restarted. `/livez` answers with this error."""

    code = "scorer_dead"
    status = 500


class ShuttingDown(RequestRefused):
    """Accepted work is finished; new work goes elsewhere."""

    code = "shutting_down"
    status = 503


class CallerLeft(RequestRefused):
    """Nobody waits for the answer any more. nginx's status for it is seen in metrics and logs only."""

    code = "caller_left"
    status = 499


class DeadlineExceeded(RequestRefused):
    """The caller's own deadline has passed."""

    code = "deadline_exceeded"
    status = 504


class DigestNotServed(RequestRefused):
    """The caller wants to be scored by one model alone, and that one is not here."""

    code = "digest_not_served"
    status = 409


class VersionGone(RequestRefused):
    """What an operator has pinned a run to, or asks for, is not loaded."""

    code = "version_gone"
    status = 409


class VersionInUse(RequestRefused):
    """A model that serves, or that runs are pinned to, cannot be let go of."""

    code = "version_in_use"
    status = 409


class LoadInProgress(RequestRefused):
    """One model is being loaded at a time."""

    code = "load_in_progress"
    status = 409


class NothingIsLoading(RequestRefused):
    """There is no load to cancel."""

    code = "nothing_is_loading"
    status = 409


class NothingToRollBack(RequestRefused):
    """No other model was in service before this one."""

    code = "nothing_to_roll_back"
    status = 409


class ModelRefused(RequestRefused):
    """A model that was to follow the one in service cannot be served; the message says why. The other one serves on."""

    code = "model_refused"
    status = 422


class BatcherStopped(RequestRefused):
    """The task that owns the queue has died. A bug of ours; `/livez` says so too."""

    code = "batcher_stopped"
    status = 500


class RowFailed(ServiceError):
    """One sample has no score. It is never given another number instead."""


class OutOfMemoryForRow(RowFailed):
    """A batch of this row alone does not fit on the device."""

    code = "out_of_memory"


class ScorerFailed(RowFailed):
    """The backend raised, for this row alone."""

    code = "scorer_failed"


class ScorerBug(RowFailed):
    """The backend answered with the wrong number of scores or without a head that it has."""

    code = "scorer_bug"


class ScoreNotFinite(RowFailed):
    """The score, or the reward made of it, is NaN or infinite."""

    code = "score_not_finite"


class SampleRefused(RequestRefused):
    """A sample cannot be scored, and the caller's wire format has no word for that: trying again is no use."""

    code = "sample_refused"
    status = 422


class SampleFailed(RequestRefused):
    """A sample has no score this time, and the caller's wire format has no word for that."""

    code = "sample_failed"
    status = 503


class RunRefused(RequestRefused):
    """A trip wire has ended the service of this run, and the caller's wire format has no word for that."""

    code = "run_refused"
    status = 403


class RunBlocked(RowFailed):
    """A trip wire has ended the service of this run, until somebody acknowledges its alarm."""

    code = "run_blocked"


class EncodingFailed(RowFailed):
    """The encoder raised something other than a `SampleError`: a bug of ours, or a process that cannot be started."""

    code = "encoding_failed"


def codes_of(kind: type[ServiceError | SampleError]) -> tuple[str, ...]:
    """The codes of all errors of a kind, in order."""
    return tuple(sorted({code for each in kind.__subclasses__() for code in (each.code, *codes_of(each))}))


SAMPLE_CODES = (*codes_of(SampleError), *codes_of(RowFailed))
"""Why one sample has no score, beside others that have one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one sample or comparison has no result, as the wire carries it.

    `is_final`: the sample itself is at fault, so the same request fails again. False: it may be scored another time.
    """

    code: str
    message: str
    details: Mapping[str, Detail]
    is_final: bool

    @classmethod
    def of(cls, error: SampleError | ServiceError) -> Failure:
        """What an error says, without the exception."""
        is_final = isinstance(error, SampleError) and error.is_final
        return cls(error.code, error.message, error.details, is_final)
