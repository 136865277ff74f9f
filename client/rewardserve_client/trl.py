"""A reward function for the GRPO, RLOO and async-GRPO trainers of TRL. Knows nothing of TRL but what it passes.

    GRPOTrainer(reward_funcs=reward_function(run="grpo-7", eos_token_id=tokenizer.eos_token_id), ...)

TRL leaves a sample whose reward is None out of its group. It gathers what is logged over all processes under the names
that one of them has, so every call logs the same names; NaN is the mean of nothing.
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
"""A prompt or a completion: plain, or as messages."""

Rewards = list[float | None]
EndIds = int | Collection[int] | None


def reward_function(
    client: AsyncRewardClient | None = None,
    *,
    run: str | None = None,
    eos_token_id: EndIds = None,
    kl: Callable[[Any], float | None] | None = None,
    rendered: bool = False,
    name: str = "rewardserve",
) -> Callable[..., Awaitable[Rewards]]:
    """An `async def` for `reward_funcs`. Raise `RunBlocked` when a trip wire has ended the service of this run.

    `client`, `run`: default from the environment. `eos_token_id`: with it, a completion whose last id is another one
    counts as cut off; without, TRL does not say, and none does. `kl` makes of the trainer's state the policy's KL from
    its start in nats. `rendered`: prompts are plain text in which the turns are marked already, not a user's turn.
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
        asked = samples(prompts, completions, completion_ids, eos_token_id, rendered=rendered)
        origin = _run_and_step(run, trainer_state, kl)
        scores = await (client or shared.async_client()).score(asked, **origin)
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
    name: str = "rewardserve",
) -> Callable[..., Rewards]:
    """As `reward_function`, for trainers that do not await."""

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
        asked = samples(prompts, completions, completion_ids, eos_token_id, rendered=rendered)
        scores = (client or shared.client()).score(asked, **_run_and_step(run, trainer_state, kl))
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
) -> list[Sample]:
    """What TRL passes, as samples. Messages go as messages: every turn of a completion is sent, the last is scored."""
    ends = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or ())
    ids: Sequence[Sequence[int]] = completion_ids if completion_ids is not None else [()] * len(prompts)
    return [
        _sample(prompt, completion, _finish_reason(own_ids, ends), rendered=rendered)
        for prompt, completion, own_ids in zip(prompts, completions, ids, strict=True)
    ]


def _sample(prompt: Text, completion: Text, finish_reason: str, *, rendered: bool) -> Sample:
    if not isinstance(completion, str):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain_messages(prompt)
        return Sample(messages=[*turns, *plain_messages(completion)], finish_reason=finish_reason)
    if rendered:
        if not isinstance(prompt, str):
            raise Misconfigured("rendered=True is for prompts of plain text, and this one has messages")
        return Sample(text=prompt + completion, finish_reason=finish_reason, group=prompt)
    return Sample(
        prompt if isinstance(prompt, str) else plain_messages(prompt), completion, finish_reason=finish_reason
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
    """The rewards, after the trainer was told the rest."""
    stop_if_blocked(scores)
    if log_metric is not None:
        for metric, value in summary(scores).items():
            log_metric(f"{name}/{metric}", value)
    if log_extra is not None:
        for column, values in columns(scores).items():
            log_extra(f"{name}_{column}", values)
    return scores.rewards
