"""The errors of the service, each with a stable code, an HTTP status, a message and its numbers.

    ServiceError
    ├─ RequestRefused   the request as a whole is answered with `status`
    └─ RowFailed        one sample is answered with an error; the others are scored

`rewardserve.model.conversation.SampleError` is the third kind, raised while a sample is read; like `RowFailed`
it belongs to one sample. A message never holds a part of a conversation or a key. Knows no HTTP library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rewardserve.model.conversation import SampleError

Detail = int | float | str


class ServiceError(Exception):
    """Base of all errors. `details` are the numbers of the message. Docstring and `remedy` of each class are in the reference."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    remedy: ClassVar[str] = "Report it: this is a bug in the server. The log has the traceback."

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details


class RequestRefused(ServiceError):
    """The request as a whole is refused."""


class InvalidRequest(RequestRefused):
    """A field is missing, unknown or of the wrong type. `field` is the JSON path of the first such field."""

    code = "invalid_request"
    status = 422
    remedy = "Correct the field that the message names."


class TooManySamples(RequestRefused):
    """The request has more samples than the limit of one request."""

    code = "too_many_samples"
    status = 422
    remedy = "Send fewer samples a request, or raise REWARD_MAX_SAMPLES_PER_REQUEST."


class KeyReused(RequestRefused):
    """The idempotency key was used before with another body."""

    code = "idempotency_key_reused"
    status = 422
    remedy = "Generate a new key for every body; use the same key only to retry a request."


class ModelNotServed(RequestRefused):
    """The request names a model, or a version of it, that is not the one in service."""

    code = "model_not_served"
    status = 404
    remedy = "Send the name of the model in service or no name, or add the name to REWARD_MODEL_ALIASES."


class NoSuchAlert(RequestRefused):
    """The run has no active alert of this wire to acknowledge."""

    code = "no_such_alert"
    status = 404
    remedy = "Look up run and wire in `GET /tripwires`."


class NoSuchRun(RequestRefused):
    """No run has this label, or it has sent no samples for a day."""

    code = "no_such_run"
    status = 404
    remedy = "Look up the run in `GET /tripwires`."


class TooFewSamples(RequestRefused):
    """The texts of too few first, or of too few recent, responses of the run are known to compare them."""

    code = "too_few_samples"
    status = 409
    remedy = (
        "Ask again when the run has sent more samples with texts; after a restart, first responses are those since it."
    )


class AttributionOff(RequestRefused):
    """The server keeps no texts of runs, so it cannot compare them."""

    code = "attribution_off"
    status = 409
    remedy = "Set REWARD_TRIPWIRES__ATTRIBUTION=1 and REWARD_TRIPWIRES__CPU_SHARE above 0."


class ReviewOff(RequestRefused):
    """The server has no review store."""

    code = "review_off"
    status = 409
    remedy = "Set REWARD_CAPTURE, and REWARD_REVIEW__DATABASE or REWARD_TRIPWIRES__STATE_DIR."


class NoSuchSample(RequestRefused):
    """The review store has no sample with this id: it was deleted, or is older than the store keeps samples."""

    code = "no_such_sample"
    status = 404
    remedy = "Look up samples in `GET /review/samples`."


class NoSuchPair(RequestRefused):
    """The review store has no pair with this name: one of its samples was deleted, or the name is of another server."""

    code = "no_such_pair"
    status = 404
    remedy = "Ask for pairs in `GET /review/queue`."


class NoSuchLabel(RequestRefused):
    """This annotator has no label with this number: it was taken back, or replaced by a later verdict."""

    code = "no_such_label"
    status = 404
    remedy = "A key takes back its own labels only, by the number that `POST /review/labels` answered."


class NoValues(RequestRefused):
    """The values at the tokens of this sample cannot be computed: it is too long, or cannot be scored."""

    code = "no_values"
    status = 422
    remedy = "The message has the reason: values are computed of responses that can be scored, up to 1,024 tokens."


class ReviewUnavailable(RequestRefused):
    """The review store cannot be read or written. Scoring goes on."""

    code = "review_unavailable"
    status = 503
    remedy = "Look at the database that REWARD_REVIEW__DATABASE names, then retry."


class InvalidJson(RequestRefused):
    """The body is not valid JSON: malformed, with NaN or Infinity, or nested too deeply."""

    code = "invalid_json"
    status = 400
    remedy = "Send valid JSON; numbers must be finite."


class UnsupportedMediaType(RequestRefused):
    """The content type or the content encoding of the body is not plain JSON."""

    code = "unsupported_media_type"
    status = 415
    remedy = "Send `content-type: application/json` without compression."


class BodyTooLarge(RequestRefused):
    """The body is larger than the limit."""

    code = "body_too_large"
    status = 413
    remedy = "Send fewer samples a request, or raise REWARD_MAX_BODY_BYTES."


class BodyTimeout(RequestRefused):
    """The body did not arrive in time."""

    code = "body_timeout"
    status = 408
    remedy = "Try again over a faster connection, or raise REWARD_BODY_TIMEOUT_S."


class InvalidPath(RequestRefused):
    """The path has control characters or line separators, or is not UTF-8."""

    code = "invalid_path"
    status = 400
    remedy = "Correct the path."


class HeadTimeout(RequestRefused):
    """The head of the request (request line and headers) did not arrive in time."""

    code = "head_timeout"
    status = 408
    remedy = "Try again, or raise REWARD_HEAD_TIMEOUT_S."


class HeadTooLarge(RequestRefused):
    """The head of the request (request line and headers) is larger than the limit."""

    code = "head_too_large"
    status = 431
    remedy = "Send fewer and shorter headers."


class InvalidHttp(RequestRefused):
    """The bytes are not an HTTP request."""

    code = "invalid_http"
    status = 400
    remedy = "Send HTTP/1.1 requests; use TLS only if the server has a certificate."


class RequestTooLarge(RequestRefused):
    """The request is larger than the limits of admission, so it can never be admitted."""

    code = "request_too_large"
    status = 413
    remedy = "Split the request, or raise REWARD_ADMISSION__MAX_SAMPLES or REWARD_ADMISSION__MAX_TOKENS."


class Unauthorized(RequestRefused):
    """The request has no API key, or one that is not valid."""

    code = "unauthorized"
    status = 401
    remedy = "Send `authorization: Bearer KEY` with a key of REWARD_KEYS_FILE."


class Forbidden(RequestRefused):
    """The key is valid but lacks the scope in `scope`."""

    code = "forbidden"
    status = 403
    remedy = "Use a key with that scope."


class RunNotAllowed(RequestRefused):
    """The key may not send samples of this run: it is bound to other runs, or another key is bound to this run."""

    code = "run_not_allowed"
    status = 403
    remedy = "Send a run that the key is bound to, or change `runs=` of the key."


class AdminNeedsKey(RequestRefused):
    """Without API keys, only programs on the server's machine may use the admin routes."""

    code = "admin_needs_key"
    status = 403
    remedy = "Set REWARD_KEYS_FILE and use a key with the scope admin."


class HostNotAllowed(RequestRefused):
    """Without API keys: the Host header has a name that does not belong to this server."""

    code = "host_not_allowed"
    status = 403
    remedy = "Add the name to REWARD_ALLOWED_HOSTS, or use API keys."


class OriginNotAllowed(RequestRefused):
    """Without API keys: the request comes from a web page of another site."""

    code = "origin_not_allowed"
    status = 403
    remedy = "Add the origin to REWARD_ALLOWED_ORIGINS, or use API keys."


class RateLimited(RequestRefused):
    """The key has used up its rate limit. Other keys are not affected."""

    code = "rate_limited"
    status = 429
    remedy = "Wait for Retry-After, or raise the limits of the key."


class Overloaded(RequestRefused):
    """The server is at capacity. REWARD_OVERLOAD_STATUS can make the status 429."""

    code = "overloaded"
    status = 503
    remedy = "Wait for Retry-After; add replicas, or lower the concurrency of the trainer."


class Loading(RequestRefused):
    """The model is not loaded yet."""

    code = "loading"
    status = 503
    remedy = "Wait for Retry-After; `/readyz` answers 200 when the model is ready."


class ScorerFailing(RequestRefused):
    """Several batches in a row have failed. Only `/readyz` answers with this error; requests for scores are still tried."""

    code = "scorer_failing"
    status = 503
    remedy = "See `batch_failed` in the log."


class ScorerHanging(RequestRefused):
    """A forward pass has not returned in time, so requests are refused until it does."""

    code = "scorer_hanging"
    status = 503
    remedy = "Check the device. If the model is only slow, raise REWARD_SCORER_TIMEOUT_S."


class ScorerDead(RequestRefused):
    """The scorer cannot score any more. `/livez` answers with this error."""

    code = "scorer_dead"
    status = 500
    remedy = "Restart the process."


class ShuttingDown(RequestRefused):
    """The server is shutting down: it finishes accepted requests and refuses new ones."""

    code = "shutting_down"
    status = 503
    remedy = "Send the request to another replica, or try again after the restart."


class ClientDisconnected(RequestRefused):
    """The client closed the connection before the reply. The status appears in metrics and logs only."""

    code = "client_disconnected"
    status = 499
    remedy = "Give the client a longer timeout if this is frequent."


class DeadlineExceeded(RequestRefused):
    """The deadline that the client set has passed."""

    code = "deadline_exceeded"
    status = 504
    remedy = "Send a longer `x-deadline-ms`, or add replicas."


class DigestNotServed(RequestRefused):
    """The model that the request selects by digest is not loaded."""

    code = "digest_not_served"
    status = 409
    remedy = "Load that model, or remove `model_digest` from the request."


class VersionGone(RequestRefused):
    """The model version that the run is pinned to, or that the request selects, is not loaded."""

    code = "version_gone"
    status = 409
    remedy = "Load that model again, or end the pin with `POST /admin/pins`."


class SnapshotGone(RequestRefused):
    """The model that the approvals of the run are pinned to is not loaded. `snapshot` is its digest."""

    code = "snapshot_gone"
    status = 409
    remedy = "Load that model again with `POST /admin/models`, or go on as another run, whose first request pins another model."


class SnapshotDiffers(RequestRefused):
    """The approvals of the run are pinned to another snapshot than the one that the request names; `snapshot` is the pinned one."""

    code = "snapshot_differs"
    status = 409
    remedy = "Send the snapshot of the first reply of this run, or none; two trainings need two names of runs."


class VersionInUse(RequestRefused):
    """The model version is in service or has pinned runs, so it cannot be retired."""

    code = "version_in_use"
    status = 409
    remedy = "Activate another version and end the pins first."


class LoadInProgress(RequestRefused):
    """Another model is being loaded; one is loaded at a time."""

    code = "load_in_progress"
    status = 409
    remedy = "Wait for it, or cancel it with `POST /admin/models/cancel`."


class NothingIsLoading(RequestRefused):
    """There is no load to cancel."""

    code = "nothing_is_loading"
    status = 409
    remedy = "Nothing to do; `GET /admin/models` shows the loaded models."


class NothingToRollBack(RequestRefused):
    """There is no previous model to roll back to."""

    code = "nothing_to_roll_back"
    status = 409
    remedy = "Load the model that you want with `POST /admin/models`."


class ModelRefused(RequestRefused):
    """The new model cannot be served, for the reason in the message. The model in service does not change."""

    code = "model_refused"
    status = 422
    remedy = "Follow the remedy in the message, and check the checkpoint before you load it again."


class BatcherStopped(RequestRefused):
    """The task that owns the queue has stopped: a bug in the server. `/livez` fails too."""

    code = "batcher_stopped"
    status = 500
    remedy = "Restart the process and report the log."


class RowFailed(ServiceError):
    """One sample has no score. A failure is never replaced by a number."""


class OutOfMemoryForRow(RowFailed):
    """A batch of this sample alone exceeds the memory of the device."""

    code = "out_of_memory"
    remedy = "Send a shorter sample, lower REWARD_MAX_INPUT_TOKENS, or free memory on the device."


class ScorerFailed(RowFailed):
    """The backend raised an error for this sample alone."""

    code = "scorer_failed"
    remedy = "Try again; if it fails again, see `batch_failed` in the log."


class ScorerBug(RowFailed):
    """The backend returned the wrong number of scores, or lacked one of its heads."""

    code = "scorer_bug"
    remedy = "Report it: this is a bug in the backend."


class ScoreNotFinite(RowFailed):
    """The score, or the reward computed from it, is NaN or infinite."""

    code = "score_not_finite"
    remedy = "Set REWARD_DTYPE=float32, and check the checkpoint and the device."


class SampleRefused(RequestRefused):
    """A sample cannot be scored, and the wire format has no error for one sample, so the request is refused."""

    code = "sample_refused"
    status = 422
    remedy = "Correct the sample that `sample` names; `reason` is its code."


class SampleFailed(RequestRefused):
    """A sample was not scored because of a failure that may pass, and the wire format has no error for one sample."""

    code = "sample_failed"
    status = 503
    remedy = "Try again after Retry-After; `reason` is the code of the sample."


class RunRefused(RequestRefused):
    """A trip wire blocks the run, and the wire format has no error for one sample."""

    code = "run_refused"
    status = 403
    remedy = "Follow the runbook entry of the wire, then acknowledge it."


class RunBlocked(RowFailed):
    """A trip wire blocks the run until its alert is acknowledged."""

    code = "run_blocked"
    remedy = "Follow the runbook entry of the wire, then acknowledge it."


class LookaheadFailed(RowFailed):
    """A continuation of the sample has no reward, so neither has the sample. `reason` is the code, `index` the continuation."""

    code = "lookahead_failed"
    remedy = "Follow the remedy of the code in `reason`."


class NoPolicy(RowFailed):
    """A continuation ends before a turn of the assistant, and the server has no policy to write it."""

    code = "no_policy"
    remedy = "Let continuations end with a turn of the assistant, or set REWARD_LOOKAHEAD__POLICY_URL."


class PolicyFailed(RowFailed):
    """The policy that the operator has configured did not write the turn that a continuation lacks."""

    code = "policy_failed"
    remedy = "Check the server at REWARD_LOOKAHEAD__POLICY_URL, and the limits of REWARD_LOOKAHEAD."


class EncodingFailed(RowFailed):
    """The encoder failed: a bug, or a process that cannot be started."""

    code = "encoding_failed"
    remedy = "See the log; report it if it names a bug."


def codes_of(kind: type[ServiceError | SampleError]) -> tuple[str, ...]:
    """Return the codes of all subclasses of an error, sorted."""
    return tuple(sorted({code for each in kind.__subclasses__() for code in (each.code, *codes_of(each))}))


SAMPLE_CODES = (*codes_of(SampleError), *codes_of(RowFailed))
"""Codes of the errors of one sample."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of one sample or comparison, as the reply has it.

    `is_final`: the error is in the sample, so the same request fails again. False: a retry may succeed.
    """

    code: str
    message: str
    details: Mapping[str, Detail]
    is_final: bool

    @classmethod
    def of(cls, error: SampleError | ServiceError) -> Failure:
        """Convert an exception to a record."""
        is_final = isinstance(error, SampleError) and error.is_final
        return cls(error.code, error.message, error.details, is_final)
