"""Callers of each route, how often they call, what a failure is to them. Compared with `docs/how-to/trainers.md` by tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.contract import callers

PROMPT, RESPONSE = "Why?\n", "Because."
"""A prompt that the echo backend takes for rendered, so that all callers mean the same ids."""

TEXT = PROMPT + RESPONSE


@dataclass(frozen=True)
class Caller:
    """`ask(base, response, sleep)` gives the number that the trainer goes on with, None, or raises.

    `tries`: how often it asks, by status; `unscorable`: what it is left with where there is no score.
    """

    name: str
    route: str
    number: str
    ask: Callable[[str, str, callers.Sleep], Awaitable[float | None]]
    tries: dict[int, int]
    unscorable: str


async def _openrlhf(base: str, response: str, sleep: callers.Sleep) -> float | None:
    output = await callers.openrlhf(f"{base}/get_reward", PROMPT + response, PROMPT, None, sleep)
    callers.openrlhf_experience(output)
    return output["reward"][0] if output["reward"] is not None else None


async def _align_anything(base: str, response: str, _sleep: callers.Sleep) -> float | None:
    return callers.align_anything(f"{base}/get_reward", [PROMPT], [response])[0]


async def _slime(base: str, response: str, sleep: callers.Sleep) -> float | None:
    return await callers.slime(f"{base}/slime", PROMPT, response, None, sleep)


async def _slime_keyed(base: str, response: str, sleep: callers.Sleep) -> float | None:
    return await callers.slime(f"{base}/slime?reward_key=reward", PROMPT, response, "reward", sleep)


async def _llamafactory(base: str, response: str, _sleep: callers.Sleep) -> float | None:
    return callers.llamafactory(f"{base}/v1/score/evaluation", [PROMPT + response])[0]


async def _verl_vllm(base: str, response: str, sleep: callers.Sleep) -> float | None:
    return await callers.verl(base, PROMPT + response, "vllm", sleep)


async def _verl_sglang(base: str, response: str, sleep: callers.Sleep) -> float | None:
    return await callers.verl(base, PROMPT + response, "sglang", sleep)


async def _nemo_gym(base: str, response: str, sleep: callers.Sleep) -> float | None:
    answer = await callers.nemo_gym(base, *gym_episode(response), sleep)
    return None if answer.model_extra["mask_sample"] else answer.reward


async def _tei(base: str, response: str, _sleep: callers.Sleep) -> float | None:
    return callers.tei(base, [[PROMPT + response]])[0]


async def _sglang(base: str, response: str, _sleep: callers.Sleep) -> float | None:
    return callers.sglang(base, [PROMPT + response])[0]


async def _kserve(base: str, response: str, _sleep: callers.Sleep) -> float | None:
    return callers.kserve(base, [PROMPT + response])[0]


def gym_episode(response: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request and a response in the shape of OpenAI's Responses."""
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": response}]}
    return {"input": [{"role": "user", "content": PROMPT.strip()}]}, {"object": "response", "output": [said]}


CALLERS = (
    Caller("OpenRLHF", "/get_reward", "reward", _openrlhf, {422: 5, 429: 5, 503: 5}, "reward None"),
    Caller("align-anything", "/get_reward", "reward", _align_anything, {422: 3, 429: 3, 503: 3}, "raises"),
    Caller("slime", "/slime", "reward", _slime, {422: 10, 429: 10, 503: 10}, "raises"),
    Caller(
        "slime --reward-key", "/slime?reward_key=reward", "reward", _slime_keyed, {422: 10, 429: 10, 503: 10}, "raises"
    ),
    Caller("LLaMA-Factory", "/v1/score/evaluation", "reward", _llamafactory, {422: 1, 429: 1, 503: 1}, "raises"),
    Caller("verl with vLLM", "/classify", "raw", _verl_vllm, {422: 1, 429: 1, 503: 16}, "raises"),
    Caller("verl with SGLang", "/v1/embeddings", "raw", _verl_sglang, {422: 1, 429: 1, 503: 16}, "raises"),
    Caller("NeMo-Gym", "/verify", "reward", _nemo_gym, {422: 1, 429: 1, 503: 1}, "masked"),
    Caller("text-embeddings-inference", "/predict", "raw", _tei, {422: 1, 429: 1, 503: 1}, "raises"),
    Caller("SGLang", "/classify", "raw", _sglang, {422: 1, 429: 1, 503: 1}, "raises"),
    Caller("KServe v2", "/v2/models/reward_model/infer", "raw", _kserve, {422: 1, 429: 1, 503: 1}, "raises"),
)
