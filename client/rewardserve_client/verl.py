"""Custom reward function for verl's reward loop, by path or as `pkg://rewardserve_client.verl`.

    reward.custom_reward_function.path=pkg://rewardserve_client.verl  (name: compute_score)

verl calls it once a sample. The prompt is not among its arguments: it is read from `extra_info["prompt"]`, which your
data must carry (a text or a list of messages); the agent loop adds `raw_prompt` by itself. verl strips special tokens
and does not pass whether a response was cut off; your data can set `extra_info["finish_reason"]`. verl's `data_source` is sent
as the task of the sample.

A sample without a reward raises. The managers `naive`, `dapo`, `gdpo` and `remote` end the run then; `rate_limited`
would return 0.0 instead, so do not use it. Every result has the same keys, as verl demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardserve_client import shared
from rewardserve_client.configuration import run_from
from rewardserve_client.errors import Misconfigured
from rewardserve_client.fields import plain_messages, refuse_columns
from rewardserve_client.results import Scores
from rewardserve_client.samples import Sample
from rewardserve_client.summary import numbers, reward_of, stop_if_blocked

PROMPT_KEYS = ("prompt", "raw_prompt")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    run: str | None = None,
    prompt_key: str | None = None,
    **_given: Any,
) -> dict[str, float]:
    """Return `score` and its details, all floats. `run` and `prompt_key` may come from `reward_kwargs`.

    Raise `NotScored`, or the exceptions of `AsyncRewardClient.score`.
    """
    sample = sample_of(solution_str, extra_info or {}, prompt_key, data_source)
    return to_verl(await shared.async_client().score([sample], run=run or run_from(), step=step_of(extra_info or {})))


def compute_score_blocking(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    run: str | None = None,
    prompt_key: str | None = None,
    **_given: Any,
) -> dict[str, float]:
    """Score as `compute_score` does, for the manager `remote`, which cannot await."""
    sample = sample_of(solution_str, extra_info or {}, prompt_key, data_source)
    return to_verl(shared.client().score([sample], run=run or run_from(), step=step_of(extra_info or {})))


def sample_of(
    solution_str: str, extra_info: Mapping[str, Any], prompt_key: str | None = None, data_source: str | None = None
) -> Sample:
    """Build the sample. Raise `Misconfigured` if the data has no prompt, or fields that cannot be sent."""
    refuse_columns(extra_info)
    keys = PROMPT_KEYS if prompt_key is None else (prompt_key,)
    prompt = next((extra_info[key] for key in keys if extra_info.get(key) is not None), None)
    if prompt is None:
        raise Misconfigured(f"extra_info has no prompt under {' or '.join(keys)}: add it to your data")
    finish_reason = "length" if extra_info.get("finish_reason") == "length" else "stop"
    turns = prompt if isinstance(prompt, str) else plain_messages(prompt)
    return Sample(turns, solution_str, finish_reason=finish_reason, score_empty=True, task=data_source)


def step_of(extra_info: Mapping[str, Any]) -> int | None:
    """The step of the weights that generated the response, if the agent loop passes it."""
    step = extra_info.get("max_global_steps")
    return int(step) if step is not None and int(step) >= 0 else None


def to_verl(scores: Scores) -> dict[str, float]:
    """Convert the scores of one sample to verl's result."""
    [result] = stop_if_blocked(scores).results
    return {"score": reward_of(result), **numbers(result)}
