"""The HTTP clients of OpenRLHF, verl and LLaMA-Factory as they ship, on the CPU, against a live server.

Of each package only the module with the client is run: its parents' `__init__` would pull in what needs a GPU.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import sys
import types

import pytest
import torch

from tests.support.refusing_server import RefusingServer
from tests.support.service_server import Server

if importlib.machinery.PathFinder.find_spec("openrlhf") is None:
    pytest.skip("needs OpenRLHF, verl and LLaMA-Factory: run `make test-trainers`", allow_module_level=True)

MESSAGES = [{"role": "user", "content": "What is two plus two?"}, {"role": "assistant", "content": "Four, of course."}]


def without_its_parents(target: str):
    """The module, its parent packages being nothing but places."""
    parents = [target.rsplit(".", n)[0] for n in range(target.count("."), 0, -1)]
    spec = importlib.machinery.PathFinder.find_spec(parents[0])
    for name in parents:
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = ["/".join([spec.submodule_search_locations[0], *name.split(".")[1:]])]
            sys.modules[name] = package
    return importlib.import_module(target)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Tries follow each other at once; a server that answers is not waited for either."""
    slept, sleep = [], asyncio.sleep

    async def asleep(seconds, *more):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", asleep)
    return slept


# -- OpenRLHF ---------------------------------------------------------------------------------------------------------


class PolicyEngine:
    """Generates what it is told to."""

    def __init__(self, ids):
        self._ids = ids

    async def generate(self, *_args, **_more):
        output = types.SimpleNamespace(token_ids=self._ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


def rollout(url, tokenizer, messages=MESSAGES):
    """What OpenRLHF's executor makes of one prompt."""
    agent = without_its_parents("openrlhf.utils.agent")
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    answer = tokenizer(messages[1]["content"] + tokenizer.eos_token, add_special_tokens=False).input_ids
    executor = agent.SingleTurnAgentExecutor(remote_rm_url=url)
    parameters = types.SimpleNamespace(max_tokens=64, logprobs=None)
    return asyncio.run(executor.execute(prompt, "label", parameters, 200, tokenizer, PolicyEngine(answer)))


def numbers_of(value):
    """As `torch.tensor([value])` reads it."""
    return torch.tensor([value]).flatten().tolist()


def test_openrlhf_gets_the_score_of_training(raw_server, by_hand):
    output = rollout([f"{raw_server.url}/get_reward?run=openrlhf&step=1"], by_hand.tokenizer)
    expected = pytest.approx([by_hand.raw(MESSAGES)], abs=1e-4)
    assert numbers_of(output["reward"]) == expected
    assert numbers_of(output["scores"]) == expected
    assert {name: numbers_of(value) for name, value in output["extra_logs"].items()}["raw_reward"] == expected


def test_openrlhf_shards_over_several_urls(raw_server, by_hand):
    output = rollout([f"{raw_server.url}/get_reward"] * 3, by_hand.tokenizer)
    assert numbers_of(output["reward"]) == pytest.approx([by_hand.raw(MESSAGES)], abs=1e-4)


def test_openrlhf_is_left_with_none_after_five_tries(by_hand):
    async def refused():
        async with RefusingServer(503) as refusing:
            output = await asyncio.to_thread(rollout, [refusing.url], by_hand.tokenizer)
            return refusing.n, output["reward"]

    assert asyncio.run(refused()) == (5, None)


# -- verl -------------------------------------------------------------------------------------------------------------


def verl_worker(address, tokenizer, engine):
    """A reward-loop worker that knows this address and nothing else."""
    loop = importlib.import_module("verl.experimental.reward_loop.reward_loop")
    worker = object.__new__(loop.RewardLoopWorker)
    worker.reward_router_address = address
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    rollout = types.SimpleNamespace(name=engine)
    reward_model = types.SimpleNamespace(rollout=rollout, model_path="rm")
    worker.config = types.SimpleNamespace(reward=types.SimpleNamespace(reward_model=reward_model))
    return worker


def episode(tokenizer):
    """One rollout as verl keeps it: the raw prompt, and padded response ids under a mask."""
    import numpy as np
    from verl import DataProto

    ids = tokenizer(MESSAGES[1]["content"] + tokenizer.eos_token, add_special_tokens=False).input_ids
    pads = [tokenizer.pad_token_id] * 3
    prompts = np.empty(1, dtype=object)
    prompts[0] = MESSAGES[:1]
    mask = [1] * len(ids) + [0] * len(pads)
    tensors = {"responses": torch.tensor([ids + pads]), "attention_mask": torch.tensor([[1] * 5 + mask])}
    return DataProto.from_dict(tensors=tensors, non_tensors={"raw_prompt": prompts})


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl_gets_the_score_of_training(raw_server, by_hand, engine):
    worker = verl_worker(raw_server.url.removeprefix("http://"), by_hand.tokenizer, engine)
    outcome = asyncio.run(worker.compute_score_disrm(episode(by_hand.tokenizer)))
    assert outcome["reward_score"] == pytest.approx(by_hand.raw(MESSAGES), abs=1e-4)


@pytest.mark.parametrize(("status", "n_tries"), [(503, 16), (500, 16), (422, 1), (429, 1)])
def test_verl_tries_again_after_5xx_only(by_hand, no_waiting, status, n_tries):
    async def refused():
        async with RefusingServer(status) as refusing:
            worker = verl_worker(refusing.url.removeprefix("http://"), by_hand.tokenizer, "vllm")
            with pytest.raises(Exception, match=str(status)):
                await worker.compute_score_disrm(episode(by_hand.tokenizer))
            return refusing.n

    assert asyncio.run(refused()) == n_tries


# -- LLaMA-Factory ----------------------------------------------------------------------------------------------------


def test_llamafactory_gets_the_score_of_training(raw_server, by_hand):
    client = without_its_parents("llamafactory.train.ppo.ppo_utils")
    texts = by_hand.tokenizer.batch_decode([by_hand.ids(MESSAGES)] * 2, skip_special_tokens=False)
    rewards = client.get_rewards_from_server(f"{raw_server.url}/v1/score/evaluation?run=lf", texts)
    assert rewards.tolist() == pytest.approx([by_hand.raw(MESSAGES)] * 2, abs=1e-4)


def test_llamafactory_never_goes_on_with_a_made_up_number(reward_folder):
    client = without_its_parents("llamafactory.train.ppo.ppo_utils")
    flags = ("--max-input-tokens=20", "--truncation=error")
    with Server(f"{reward_folder}", *flags) as short, pytest.raises(KeyError, match="scores"):
        client.get_rewards_from_server(f"{short.url}/v1/score/evaluation", ["too long " * 40])
