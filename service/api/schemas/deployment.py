"""The reply of the admin routes: the models in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from rewardserve.service.api.field_docs import CHECKPOINT, DIGEST, TIME, doc
from rewardserve.service.api.schemas.record import ReplyRecord

_SHADOW = {
    "share": 0.1, "samples": 640, "pairs": {"same": 1210, "other": 30, "tied": 0}, "agreement": 0.976, "shift": 0.03,
    "correlation": 0.99,
}  # fmt: skip
_MODEL = {
    "version": 1, "state": "serving", "source": CHECKPOINT, "name": CHECKPOINT, "contract": DIGEST, "calibration": DIGEST,
    "pipeline": DIGEST, "snapshot": DIGEST, "loaded_at": TIME, "requests_in_flight": 3, "pinned_runs": ["ppo-7"], "shadow": None,
}  # fmt: skip
_LOADING = {"source": "/models/step-1300", "since": TIME}
_REFUSED = {"source": "/models/step-1250", "reason": "the score head is missing", "at": TIME}


class LoadingOut(ReplyRecord, frozen=True, gc=False):
    """A model that is being loaded."""

    source: Annotated[str, doc("the model as the operator named it", "/models/step-1300")]
    since: Annotated[str, doc("when its load began, in UTC", TIME)]


class RefusedLoadOut(ReplyRecord, frozen=True, gc=False):
    """The latest model that could not be loaded."""

    source: Annotated[str, doc("the model as the operator named it", "/models/step-1250")]
    reason: Annotated[str, doc("why it is not served, with the remedy", "the score head is missing")]
    at: Annotated[str, doc("when it was refused, in UTC", TIME)]


class ShadowOut(ReplyRecord, frozen=True, gc=False):
    """Comparison of a shadow with the model in service."""

    share: Annotated[float, doc("share of the prompts that it scores", 0.1)]
    samples: Annotated[int, doc("samples that both have scored", 640)]
    pairs: Annotated[
        Mapping[str, int], doc("pairs of responses to one prompt, by whether both order them alike", _SHADOW["pairs"])
    ]
    agreement: Annotated[float | None, doc("share of the pairs that both order alike; null: none yet", 0.976)]
    shift: Annotated[float | None, doc("mean reward of the shadow above that of the service; null: none yet", 0.03)]
    correlation: Annotated[float | None, doc("Pearson's correlation of the rewards; null: not known", 0.99)]


class LoadedModelOut(ReplyRecord, frozen=True, gc=False):
    """One model in memory."""

    version: Annotated[int, doc("version within this process", 1)]
    state: Annotated[
        Literal["serving", "standby", "shadow"],
        doc(
            "serving: answers requests; shadow: scores a share of them for comparison; standby: idle in memory",
            "serving",
        ),
    ]
    source: Annotated[str, doc("the model as the operator named it", CHECKPOINT)]
    name: Annotated[str, doc("name of the model", CHECKPOINT)]
    contract: Annotated[str, doc("digest of the scoring contract", DIGEST)]
    calibration: Annotated[str | None, doc("digest of the calibration; null without one", DIGEST)]
    pipeline: Annotated[str, doc("digest of the reward pipeline", DIGEST)]
    snapshot: Annotated[str, doc("digest of these three, to which approvals of runs are pinned", DIGEST)]
    loaded_at: Annotated[str, doc("when it was loaded, in UTC", TIME)]
    requests_in_flight: Annotated[int, doc("requests that it answers now", 3)]
    pinned_runs: Annotated[Sequence[str], doc("runs that are pinned to it", ["ppo-7"])]
    shadow: Annotated[ShadowOut | None, doc("comparison with the model in service; null: it is no shadow", _SHADOW)]


class DeploymentReply(ReplyRecord, frozen=True, gc=False, kw_only=True):
    """The models in memory, and the role of each."""

    version: Annotated[int | UnsetType, doc("version that the request has loaded or selected", 2)] = UNSET
    serving: Annotated[int, doc("version in service", 1)]
    previous: Annotated[int | None, doc("version that a rollback goes to; null: none", 1)]
    loading: Annotated[LoadingOut | None, doc("model that is being loaded; null: none", _LOADING)]
    refused: Annotated[RefusedLoadOut | None, doc("latest model that could not be loaded; null: none", _REFUSED)]
    models: Annotated[list[LoadedModelOut], doc("models in memory", [_MODEL])]
    pins: Annotated[Mapping[str, int], doc("version of each pinned run", {"ppo-7": 1})]
