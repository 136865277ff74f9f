"""What trainers' clients do, written out from how they behave: their fields, their tries, their time-outs, their parsing.

Each is a function `(url, ..., sleep)` that returns what its trainer would go on with, or raises what would reach its trainer.
`sleep` stands for waiting between tries, so that a test need not wait. None of this knows our server.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import requests
from pydantic import BaseModel, ConfigDict

Sleep = Callable[[float], Awaitable[None]]


async def openrlhf(url: str, query: str, prompt: str, label: Any, sleep: Sleep = asyncio.sleep) -> dict[str, Any]:
    """One sample a request; five tries a second apart, whatever went wrong; after that the reward is None.

    `SingleTurnAgentExecutor._fetch_rewards_via_http` and the code around it, with one URL.
    """
    output: dict[str, Any] = {"reward": None, "scores": None, "extra_logs": {}}
    try:
        info = await _openrlhf_post(url, {"query": [query], "prompts": [prompt], "labels": [label]}, sleep)
    except RuntimeError:
        return output
    score = info.get("scores")
    score = info.get("rewards") if score is None else score
    return {"reward": info.get("rewards"), "scores": score, "extra_logs": info.get("extra_logs") or {}}


async def _openrlhf_post(url: str, payload: Any, sleep: Sleep) -> Any:
    for _ in range(5):
        try:
            return await _post_once(url, payload, 180)
        except Exception:
            pass
        await sleep(1)
    raise RuntimeError("Request error for 5 times, returning None.")


async def _post_once(url: str, payload: Any, timeout_s: float | None) -> Any:
    """With a session of its own, as both do."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url, json=payload) as response:
        response.raise_for_status()
        return await response.json()


async def openrlhf_sharded(urls: list[str], queries: list[str], sleep: Sleep = asyncio.sleep) -> list[Any]:
    """The same with several URLs: one sample goes to the first, empty lists to the others, and all must answer."""
    size = (len(queries) + len(urls) - 1) // len(urls)
    parts = [queries[i * size : (i + 1) * size] for i in range(len(urls))]
    return await asyncio.gather(
        *[
            _openrlhf_post(url, {"query": part, "prompts": part, "labels": part}, sleep)
            for url, part in zip(urls, parts, strict=True)
        ]
    )


def openrlhf_experience(output: dict[str, Any]) -> dict[str, list[Any]]:
    """What becomes of it: every value goes through `torch.tensor([value])`, which takes numbers and lists of numbers."""
    info = {key: _tensor([value]) for key, value in output["extra_logs"].items()}
    for name in ("reward", "scores"):
        if output[name] is not None:
            info[name] = _tensor([output[name]])
    return info


def _tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [_tensor(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("torch.tensor takes numbers")
    return value


def align_anything(url: str, prompts: list[str], responses: list[str]) -> list[float]:
    """Three tries: at once after a status other than 200, a second after an exception. Then a RuntimeError."""
    for _ in range(3):
        try:
            response = requests.post(
                url,
                json={"prompts": prompts, "responses": responses},
                headers={"Content-Type": "application/json"},
                verify=False,
                timeout=100,
            )
            if response.status_code == 200:
                rewards: list[float] = _tensor(response.json()["rewards"])
                return rewards
        except requests.RequestException:
            pass
    raise RuntimeError("Failed to get rewards from API, tried 3 times")


async def slime(
    url: str, prompt: str | list[dict[str, str]], response: str, reward_key: str | None, sleep: Sleep = asyncio.sleep
) -> float:
    """Ten tries, `min(2^n, 30)` s and some apart, whatever went wrong; then it raises. The body is the reward."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), timeout=timeout) as session:
        for attempt in range(10):
            try:
                payload = {"prompt": prompt, "response": response, "label": None}
                async with session.post(url, json=payload) as answer:
                    answer.raise_for_status()
                    reward = await answer.json()
                    break
            except Exception:
                if attempt == 9:
                    raise
                await sleep(min(2**attempt, 30) + random.random())
    value: float = _tensor(reward if reward_key is None else reward[reward_key])
    return value


def llamafactory(url: str, texts: list[str]) -> list[float]:
    """One try, no time-out, and whatever has no `scores` is a KeyError."""
    headers = {"Content-Type": "application/json"}
    response = requests.post(url, json={"model": "model", "messages": texts}, headers=headers)
    scores: list[float] = _tensor(json.loads(response.text)["scores"])
    return scores


async def verl(base: str, text: str, engine: str, sleep: Sleep = asyncio.sleep) -> float:
    """`RewardLoopWorker`: sixteen tries, `min(2^n, 30)` s apart, no time-out; a status of 4xx is final at once."""
    if engine == "vllm":
        output = await _verl_post(f"{base}/classify", {"model": "rm", "input": text, "use_activation": False}, sleep)
        return _tensor(output["data"][-1]["probs"][-1])
    output = await _verl_post(f"{base}/v1/embeddings", {"model": "rm", "input": text}, sleep)
    return _tensor(output["data"][-1]["embedding"][-1])


async def _verl_post(url: str, payload: Any, sleep: Sleep) -> Any:
    last: Exception | None = None
    for attempt in range(16):
        try:
            return await _post_once(url, payload, None)
        except aiohttp.ClientResponseError as error:
            if 400 <= error.status < 500:
                raise
            last = error
        except Exception as error:
            last = error
        if attempt < 15:
            await sleep(min(2**attempt, 30))
    assert last is not None
    raise last


class GymVerifyResponse(BaseModel):
    """What NeMo-Gym's simple agent makes of the answer: `reward` must be a number, and everything else is kept."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    reward: float


async def nemo_gym(base: str, asked: dict[str, Any], response: dict[str, Any], sleep: Sleep = asyncio.sleep) -> Any:
    """Connection errors are tried again for ever, half a second apart; a bad status raises and ends the episode."""
    body = orjson.dumps({"responses_create_params": asked, "response": response, "_ng_task_index": 7})
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                answer = await session.post(f"{base}/verify", data=body, headers={"Content-Type": "application/json"})
                break
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                await sleep(0.5)
        content = await answer.read()
        answer.raise_for_status()
    return GymVerifyResponse.model_validate(orjson.loads(content))


def tei(base: str, inputs: list[list[str]]) -> list[float]:
    """A batch of lists; sorted predictions come back for each, and the first is the highest."""
    body = {"inputs": inputs, "raw_scores": True, "truncate": True}
    response = requests.post(f"{base}/predict", json=body, timeout=60)
    if response.status_code != 200:
        error = response.json()
        raise RuntimeError(f"{error['error_type']}: {error['error']}")
    return [_tensor(predictions[0]["score"]) for predictions in response.json()]


def sglang(base: str, texts: list[str]) -> list[float]:
    """A list of objects for a list of texts."""
    response = requests.post(f"{base}/classify", json={"text": texts}, timeout=60)
    response.raise_for_status()
    return [_tensor(each["embedding"][0]) for each in response.json()]


def kserve(base: str, sentences: list[str]) -> list[float]:
    """One tensor of texts in, one of rewards out."""
    tensor = {"name": "sentences", "shape": [len(sentences), 1], "datatype": "BYTES", "data": sentences}
    response = requests.post(f"{base}/v2/models/reward_model/infer", json={"inputs": [tensor]}, timeout=60)
    response.raise_for_status()
    (rewards,) = [each for each in response.json()["outputs"] if each["name"] == "rewards"]
    assert rewards["shape"] == [len(sentences), 1]
    return [_tensor(each) for each in rewards["data"]]


def nemo_rl_components(result: dict[str, Any]) -> dict[str, float] | None:
    """`extract_reward_components` of `nemo_rl/environments/nemo_gym.py`."""
    components = result.get("reward_components")
    if not components:
        return None
    return {str(name): float(score) for name, score in components.items()}


def nemo_rl_check_components(results: list[dict[str, Any]]) -> None:
    """`validate_reward_components_match_scalar` of the same file. The ValueError ends the training run."""
    for i, result in enumerate(results):
        components = nemo_rl_components(result)
        if components is None:
            continue
        scalar, total = float(result["reward"]), sum(components.values())
        if not math.isclose(scalar, total, rel_tol=1e-5, abs_tol=1e-6):
            raise ValueError(f"NeMo Gym verify result {i} has reward={scalar} but its components sum to {total}")


def nemo_rl_masks(results: list[dict[str, Any]]) -> list[bool]:
    """`_extract_mask_sample_flags` of `nemo_rl/experience/rollouts.py`."""
    return [bool((result.get("instance_config") or {}).get("mask_sample", False)) for result in results]
