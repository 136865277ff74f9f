"""Reward function for the GRPO, RLOO and async-GRPO trainers of TRL. Depends only on the arguments that TRL passes.

    GRPOTrainer(reward_funcs=reward_function(run="grpo-7", eos_token_id=tokenizer.eos_token_id), ...)

TRL leaves a sample whose reward is None out of its group. It gathers logged values over all processes by the names that
one process has, so every call logs the same names, NaN for a mean without values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from rewardserve_client import shared
from rewardserve_client.asyncclient import AsyncRewardClient
from rewardserve_client.client import RewardClient
from rewardserve_client.configuration import run_from
from rewardserve_client.errors import Misconfigured
from rewardserve_client.fields import plain_messages, refuse_columns
from rewardserve_client.results import Scores
from rewardserve_client.samples import Sample
from rewardserve_client.summary import columns, stop_if_blocked, summary

Text = str | Sequence[Mapping[str, Any]]
"""Prompt or completion, as plain text or as messages."""

Rewards = list[float | None]
EndIds = int | Collection[int] | None


def reward_function(
    client: AsyncRewardClient | None = None,
    *,
    run: str | None = None,
    eos_token_id: EndIds = None,
    kl: Callable[[Any], float | None] | None = None,
    rendered: bool = False,
    task_column: str | None = None,
    name: str = "rewardserve",
) -> Callable[..., Awaitable[Rewards]]:
    """Build an `async def` for `reward_funcs`. It raises `RunBlocked` when a trip wire blocks the run.

    `client`, `run`: default from the environment. `eos_token_id`: with it, a completion that ends with another id counts
    as cut off; without it, no completion does, as TRL does not pass that. `kl` computes, from the trainer's state, the
    policy's KL from its start in nats. `rendered`: prompts are plain text with the turns marked already, not the text of
    a user turn. `task_column`: the column of your data set that names the task or source of a prompt.
    """

    async def reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **data: Any,
    ) -> Rewards:
        refuse_columns(data, rendered=rendered)
        tasks = _tasks(data, task_column)
        batch = samples(prompts, completions, completion_ids, eos_token_id, rendered=rendered, tasks=tasks)
        origin = _run_and_step(run, trainer_state, kl)
        scores = await (client or shared.async_client()).score(batch, **origin)
        return _log_metrics(scores, name, log_metric, log_extra)

    reward.__name__ = reward.__qualname__ = name
    return reward


def blocking_reward_function(
    client: RewardClient | None = None,
    *,
    run: str | None = None,
    eos_token_id: EndIds = None,
    kl: Callable[[Any], float | None] | None = None,
    rendered: bool = False,
    task_column: str | None = None,
    name: str = "rewardserve",
) -> Callable[..., Rewards]:
    """Build a blocking form of `reward_function`, for trainers that do not await."""

    def reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **data: Any,
    ) -> Rewards:
        refuse_columns(data, rendered=rendered)
        tasks = _tasks(data, task_column)
        batch = samples(prompts, completions, completion_ids, eos_token_id, rendered=rendered, tasks=tasks)
        scores = (client or shared.client()).score(batch, **_run_and_step(run, trainer_state, kl))
        return _log_metrics(scores, name, log_metric, log_extra)

    reward.__name__ = reward.__qualname__ = name
    return reward


def samples(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]] | None,
    eos_token_id: EndIds,
    *,
    rendered: bool = False,
    tasks: Sequence[str | None] | None = None,
) -> list[Sample]:
    """Convert TRL's arguments to samples. Messages stay messages: every turn of a completion is sent, the last is scored."""
    ends = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or ())
    ids: Sequence[Sequence[int]] = completion_ids if completion_ids is not None else [()] * len(prompts)
    return [
        _sample(prompt, completion, _finish_reason(token_ids, ends), task, rendered=rendered)
        for prompt, completion, token_ids, task in zip(
            prompts, completions, ids, tasks or [None] * len(prompts), strict=True
        )
    ]


def _tasks(data: Mapping[str, Any], column: str | None) -> Sequence[str | None] | None:
    """The tasks of the samples. Raise `Misconfigured` where the data set lacks the column, or it has other values than names."""
    if column is None:
        return None
    tasks = data.get(column)
    if tasks is None or not all(task is None or isinstance(task, str) for task in tasks):
        raise Misconfigured(
            f"task_column={column!r} is no column of names in your data set; columns: {', '.join(sorted(data))}"
        )
    return list(tasks)


def _sample(prompt: Text, completion: Text, finish_reason: str, task: str | None, *, rendered: bool) -> Sample:
    if not isinstance(completion, str):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain_messages(prompt)
        return Sample(messages=[*turns, *plain_messages(completion)], finish_reason=finish_reason, task=task)
    if rendered:
        if not isinstance(prompt, str):
            raise Misconfigured("rendered=True needs prompts of plain text, and this prompt consists of messages")
        return Sample(text=prompt + completion, finish_reason=finish_reason, group=prompt, task=task)
    return Sample(
        prompt if isinstance(prompt, str) else plain_messages(prompt),
        completion,
        finish_reason=finish_reason,
        task=task,
    )


def _finish_reason(ids: Sequence[int], ends: frozenset[int]) -> str:
    return "length" if ends and len(ids) and int(ids[-1]) not in ends else "stop"


def _run_and_step(run: str | None, state: Any, kl: Callable[[Any], float | None] | None) -> dict[str, Any]:
    step = getattr(state, "global_step", None)
    return {"run": run or run_from(), "step": step, "kl": kl(state) if kl is not None else None}


def _log_metrics(
    scores: Scores,
    name: str,
    log_metric: Callable[[str, float], None] | None,
    log_extra: Callable[[str, list[Any]], None] | None,
) -> Rewards:
    """Log the summary and the columns, and return the rewards."""
    stop_if_blocked(scores)
    if log_metric is not None:
        for metric, value in summary(scores).items():
            log_metric(f"{name}/{metric}", value)
    if log_extra is not None:
        for column, values in columns(scores).items():
            log_extra(f"{name}_{column}", values)
    return scores.rewards
