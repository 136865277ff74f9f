"""An example of every error code, for the OpenAPI document: a message of this server, with its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rewardserve.service.api.field_docs import DIGEST
from rewardserve.service.api.schemas.errors import ErrorOut, ErrorReply

_REFUSED = "the model that this request names is not in service, but default is: send that name, leave `model` out, or add the " \
    "other name to REWARD_MODEL_ALIASES"  # fmt: skip

_OF_REQUESTS = (
    ErrorOut("not_found", "no route has this path; did you mean POST /score? Else see /docs"),
    ErrorOut("method_not_allowed", "this route does not accept GET: send POST; see /docs"),
    ErrorOut("invalid_path", "the path is not UTF-8"),
    ErrorOut("invalid_http", "the request is not valid HTTP/1.1"),
    ErrorOut("invalid_json", "the body is not JSON: Expecting value", line=1, column=14),
    ErrorOut("unauthorized", "send a valid key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/"),
    ErrorOut("forbidden", "this route needs a key with the scope admin: see rewardserve keys", scope="admin"),
    ErrorOut(
        "admin_needs_key",
        "without keys only programs on the machine of the server may use admin routes: set REWARD_KEYS_FILE",
    ),
    ErrorOut(
        "host_not_allowed",
        "without keys the Host header must be a name or an address of this server: add the name to REWARD_ALLOWED_HOSTS, or set "
        "REWARD_KEYS_FILE",
    ),
    ErrorOut(
        "origin_not_allowed",
        "without keys pages of other sites may not send requests: add the origin to REWARD_ALLOWED_ORIGINS, or set "
        "REWARD_KEYS_FILE",
    ),
    ErrorOut(
        "run_not_allowed",
        "this key is bound to other runs: send another run, or see runs= in docs/how-to/security.md",
        field="run",
    ),
    ErrorOut(
        "run_refused",
        "sample 0: the trip wire judge_injection blocks this run; acknowledge its alert to continue",
        wire="judge_injection",
        sample=0,
        reason="run_blocked",
    ),
    ErrorOut("model_not_served", _REFUSED, served_model="default"),
    ErrorOut(
        "no_such_alert",
        "this run has no alert of the wire 'repetition', or it is acknowledged already: see GET /tripwires",
    ),
    ErrorOut("no_such_run", "no run has the label 'ppo-8', or it is forgotten: see GET /tripwires"),
    ErrorOut("no_such_sample", "the review store has no sample with this id: it is deleted, or expired"),
    ErrorOut(
        "no_such_pair", "the review store has no pair with this name, or its samples are deleted: see GET /review/queue"
    ),
    ErrorOut("no_such_label", "this key has no label with this number: see GET /review/labels"),
    ErrorOut("no_values", "the response has 2048 tokens; values are computed of at most 1024"),
    ErrorOut("review_off", "this server has no review store: set REWARD_CAPTURE to flagged, or to share:0.01"),
    ErrorOut("review_unavailable", "the review store cannot be read or written: see the log of the server"),
    ErrorOut("head_timeout", "the head of the request did not arrive within 10 s", timeout_s=10.0),
    ErrorOut("body_timeout", "the body did not arrive within 10 s", timeout_s=10.0),
    ErrorOut(
        "digest_not_served",
        "the model that this request wants to be scored by is not in service; see GET /model",
        model_version=2,
    ),
    ErrorOut("version_gone", "no model of this version is loaded; see GET /admin/models", version=1),
    ErrorOut(
        "snapshot_gone",
        "the model that the approvals of this run are pinned to is not loaded; see GET /admin/models",
        snapshot=DIGEST,
    ),
    ErrorOut(
        "snapshot_differs",
        "this run has approvals of another snapshot than the one that this request names: see docs/how-to/approvals.md",
        snapshot=DIGEST,
    ),
    ErrorOut("version_in_use", "this model is in service", version=2),
    ErrorOut(
        "load_in_progress",
        "/models/step-1300 is being loaded since 2026-11-30T12:00:00+00:00; try again when it is loaded",
    ),
    ErrorOut("nothing_is_loading", "no model is being loaded; see GET /admin/models"),
    ErrorOut("nothing_to_roll_back", "no other model was in service before this one"),
    ErrorOut(
        "too_few_samples",
        "of this run the texts of 128 first responses to 16 prompts and of 0 recent ones to 0 prompts are known; a comparison "
        "needs 8 prompts on each side. Responses count as first ones until the baseline of the run is complete.",
        early_samples=128,
        early_prompts=16,
        recent_samples=0,
        recent_prompts=0,
        min_prompts=8,
    ),
    ErrorOut("attribution_off", "this server keeps no texts: set REWARD_TRIPWIRES__ATTRIBUTION=1"),
    ErrorOut("body_too_large", "the body has more than 33554432 bytes", limit=33_554_432),
    ErrorOut(
        "request_too_large",
        "this request is larger than the capacity of the server: split it",
        n_samples=5000,
        n_tokens=90_000,
        max_samples=4096,
        max_tokens=1_000_000,
    ),
    ErrorOut("unsupported_media_type", "send the body as content-type: application/json"),
    ErrorOut(
        "invalid_request",
        "samples[0].prompt: must be a string or an array, not a number",
        field="samples[0].prompt",
        n_errors=1,
    ),
    ErrorOut("too_many_samples", "5000 samples in one request; the limit is 1024: split it", n=5000, limit=1024),
    ErrorOut(
        "idempotency_key_reused",
        "this idempotency key was used with another body before: send a new key with every new body",
    ),
    ErrorOut("sample_refused", "sample 0: the response is empty", sample=0, reason="empty_response"),
    ErrorOut("model_refused", "/models/step-1250: no value head was found in this checkpoint"),
    ErrorOut(
        "rate_limited",
        "the rate limit of this key is 50 requests a second; try again later",
        per_s=50.0,
        burst=100.0,
    ),
    ErrorOut("head_too_large", "the head of the request is larger than 65536 bytes", limit=65_536),
    ErrorOut("internal", "this is a bug in the server; see the request id in its log"),
    ErrorOut("batcher_stopped", "the batching task has stopped. This is a bug in the server."),
    ErrorOut("scorer_dead", "the scorer has died or hangs: restart the process, and see the log for the cause"),
    ErrorOut(
        "overloaded",
        "the server is at capacity; try again later",
        n_samples=64,
        n_tokens=9000,
        samples_in_flight=4090,
        tokens_in_flight=990_000,
        max_samples=4096,
        max_tokens=1_000_000,
    ),
    ErrorOut("loading", "the model is still loading; try again soon"),
    ErrorOut("scorer_failing", "3 batches in a row have failed; see the log", failed_batches=3),
    ErrorOut("scorer_hanging", "a forward pass has not returned in time; requests are refused until it does"),
    ErrorOut("shutting_down", "this server is shutting down; send the request to another one"),
    ErrorOut("sample_failed", "sample 0: the backend failed for this sample", sample=0, reason="scorer_failed"),
    ErrorOut("deadline_exceeded", "the deadline passed before every sample was scored"),
)

_BY_CODE = {each.code: each for each in _OF_REQUESTS}


def example_of_error(code: str) -> Mapping[str, Any] | None:
    """The reply with this error; None: no request gets it."""
    error = _BY_CODE.get(code)
    return None if error is None else msgspec.to_builtins(ErrorReply(error))
