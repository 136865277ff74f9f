"""Rewards for PPO and GRPO workers from a RewardServe server: deadlines, safe retries, several servers, typed results.

A failure is never a reward: a sample that could not be scored has None with a reason, or the call raises.
"""

from rewardserve_client.asyncclient import AsyncRewardClient, Environment
from rewardserve_client.backoff import Backoff
from rewardserve_client.client import RewardClient
from rewardserve_client.configuration import ClientLimits
from rewardserve_client.errors import (
    Misconfigured,
    MixedModels,
    NotScored,
    RequestRefused,
    RewardClientError,
    RunBlocked,
    Unavailable,
    WrongType,
)
from rewardserve_client.results import (
    ApprovalResult,
    Approvals,
    ComparisonResult,
    Comparisons,
    Failure,
    ModelIdentity,
    Result,
    Scores,
)
from rewardserve_client.samples import Sample

__all__ = [
    "ApprovalResult",
    "Approvals",
    "AsyncRewardClient",
    "Backoff",
    "ClientLimits",
    "ComparisonResult",
    "Comparisons",
    "Environment",
    "Failure",
    "Misconfigured",
    "MixedModels",
    "ModelIdentity",
    "NotScored",
    "RequestRefused",
    "Result",
    "RewardClient",
    "RewardClientError",
    "RunBlocked",
    "Sample",
    "Scores",
    "Unavailable",
    "WrongType",
]
