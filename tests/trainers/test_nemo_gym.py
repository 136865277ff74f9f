"""NeMo-Gym as it ships: its simple agent, its server classes and its client, with our example and a live server that fails.

What the agent returns goes through the two checks of NeMo-RL (`callers`): no failure ends a run, and each is masked.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

pytest.importorskip("nemo_gym", reason="needs NeMo-Gym: run `make test-trainers`")

import uvicorn
from aiohttp import web
from fastapi import FastAPI
from nemo_gym import global_config, server_utils
from nemo_gym.server_utils import BaseServerConfig, ServerClient
from omegaconf import OmegaConf
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

from tests.contract import callers
from tests.support import checkpoints
from tests.support.service_server import ROOT, Server, drill
from tests.trainers.tiny import TEMPLATE, normalized

QUESTION = "What is two plus two?"
PLACEHOLDER = -99.0

_spec = importlib.util.spec_from_file_location("gym_example", ROOT / "examples" / "nemo_gym" / "app.py")
example = sys.modules["gym_example"] = importlib.util.module_from_spec(_spec)  # pydantic looks for its names there
_spec.loader.exec_module(example)


def policy() -> FastAPI:
    """A policy that says what the user asks it to say."""
    app = FastAPI()

    @app.post("/v1/responses")
    async def respond(body: dict) -> dict:
        text = body["metadata"]["says"]
        said = {
            "id": "m", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }  # fmt: skip
        return {
            "id": "r", "object": "response", "created_at": 0, "model": "policy", "output": [said], "tools": [],
            "tool_choice": "auto", "parallel_tool_calls": True,
        }  # fmt: skip

    return app


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The example tries again at once."""
    sleep = asyncio.sleep

    async def asleep(_seconds):
        await sleep(0)

    monkeypatch.setattr(example.asyncio, "sleep", asleep)
    yield
    monkeypatch.undo()


@contextlib.asynccontextmanager
async def gym(url: str, **config) -> AsyncIterator[Callable[[str], Awaitable[dict]]]:
    """Gym's agent in front of the example in front of `url`: gives a function from answers to what NeMo-RL would get."""
    ports = {"policy": free_port(), "rewardserve": free_port(), "agent": free_port()}
    kinds = {"policy": "responses_api_models", "rewardserve": "resources_servers", "agent": "responses_api_agents"}
    entries = {
        name: {kinds[name]: {name: {"host": "127.0.0.1", "port": port, "entrypoint": "app.py"}}}
        for name, port in ports.items()
    }
    head = {"host": "127.0.0.1", "port": 1}
    everything = OmegaConf.create({"head_server": head, **entries})
    global_config._GLOBAL_CONFIG_DICT = everything
    server_utils._GLOBAL_AIOHTTP_CLIENT = None  # it belongs to an event loop
    client = ServerClient(head_server_config=BaseServerConfig(**head), global_config_dict=everything)

    def of(name):
        return {"host": "127.0.0.1", "port": ports[name], "entrypoint": "app.py", "name": name}

    settings = {"url": url, "domain": "rlhf", "failed_reward": PLACEHOLDER, "tries": 3, **config}
    resources = example.RewardServeResourcesServer(
        config=example.RewardServeConfig(**of("rewardserve"), **settings), server_client=client
    )
    agent = SimpleAgent(
        config=SimpleAgentConfig(
            **of("agent"),
            resources_server={"type": "resources_servers", "name": "rewardserve"},
            model_server={"type": "responses_api_models", "name": "policy"},
            max_steps=1,
        ),
        server_client=client,
    )
    apps = {"policy": policy(), "rewardserve": resources.setup_webserver(), "agent": agent.setup_webserver()}
    servers = [
        uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=ports[name], log_level="error", lifespan="off"))
        for name, app in apps.items()
    ]
    for server in servers:
        server.capture_signals = contextlib.nullcontext
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:

            async def rollout(says: str) -> dict:
                asked = {"input": [{"role": "user", "content": QUESTION}], "metadata": {"says": says}}
                body = {"responses_create_params": asked, "_ng_task_index": 7}
                async with session.post(f"http://127.0.0.1:{ports['agent']}/run", json=body) as answer:
                    answer.raise_for_status()
                    return await answer.json()

            rollout.ports = ports  # type: ignore[attr-defined]
            while not all(server.started for server in servers):
                await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(lambda: None))})
            yield rollout
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        session = server_utils._GLOBAL_AIOHTTP_CLIENT
        if session is not None:
            await session.close()
        server_utils._GLOBAL_AIOHTTP_CLIENT = None


def trained_on(results):
    """The rewards that NeMo-RL trains on, after its checks; None where it masks."""
    callers.nemo_rl_check_components(results)
    masks = callers.nemo_rl_masks(results)
    for result, masked in zip(results, masks, strict=True):
        assert result["mask_sample"] is masked
        assert (result["failure_kind"] is None) is not masked
        assert (result["failure_reason"] is None) is not masked
        assert ("_ng_failure_class" in result) is masked
    return [None if masked else result["reward"] for result, masked in zip(results, masks, strict=True)]


async def test_an_episode_has_the_score_of_training(server, by_hand):
    answers = ["Four, of course.", "Five.", "x"]
    async with gym(server.url) as rollout:
        results = [await rollout(answer) for answer in answers]
    turns = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}] for answer in answers]
    assert trained_on(results) == pytest.approx([normalized(by_hand.raw(each)) for each in turns], abs=1e-3)
    assert [result["_ng_task_index"] for result in results] == [7, 7, 7]


@pytest.fixture(scope="module")
def short():
    with Server("--backend=echo", "--max-input-tokens=64") as running:
        yield running


async def test_an_episode_that_cannot_be_scored_is_masked_among_others(short):
    lowest = short.client.get("/model").json()["pipeline"]["cap_low"]
    async with gym(short.url) as rollout:
        results = await asyncio.gather(*[rollout(answer) for answer in ("fine", "too long " * 40, "fine too")])
    rewards = trained_on(results)
    assert [reward is None for reward in rewards] == [False, True, False]
    assert results[1]["reward"] == lowest
    assert results[1]["failure_kind"] == "rewardserve:input_too_long"


async def test_without_a_number_for_failures_they_are_errors(short):
    async with gym(short.url, failed_reward=None) as rollout:
        assert trained_on([await rollout("fine")]) != [None]
        with pytest.raises(aiohttp.ClientResponseError):
            await rollout("too long " * 40)


async def test_a_server_without_a_lowest_reward_refuses_and_the_episode_is_masked():
    with Server("--backend=echo", "--max-input-tokens=64", "--shape=none") as server:
        async with gym(server.url) as rollout:
            result = await rollout("too long " * 40)
    assert trained_on([result]) == [None]
    assert (result["reward"], result["failure_kind"]) == (PLACEHOLDER, "rewardserve:input_too_long")


@contextlib.asynccontextmanager
async def flaky(url: str, failures: int) -> AsyncIterator[str]:
    """A proxy that answers 503 so often, then passes on."""
    left = [failures]

    async def handle(request):
        if left[0] > 0:
            left[0] -= 1
            return web.json_response(
                {"error": {"code": "overloaded", "message": "no seats"}}, status=503, headers={"retry-after": "1"}
            )
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                url + str(request.rel_url), data=await request.read(), headers={"content-type": "application/json"}
            ) as answer,
        ):
            return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_overload_is_waited_for_and_masked_only_where_it_lasts(short):
    async with flaky(short.url, 2) as url, gym(url) as rollout:
        assert trained_on([await rollout("fine")]) != [None]
    async with flaky(short.url, 10**6) as url, gym(url) as rollout:
        result = await rollout("fine")
    assert trained_on([result]) == [None]
    assert (result["reward"], result["failure_kind"]) == (PLACEHOLDER, "provider_unavailable")
    assert "503 overloaded" in result["failure_reason"]


@pytest.mark.parametrize("model", ["raises:ScorerError", "nan:", "too-few:", "bug-in-encoder:x"])
async def test_a_failing_scorer_masks_every_episode(model):
    with drill(model) as server:
        async with gym(server.url) as rollout:
            results = await asyncio.gather(*[rollout(f"answer {i}") for i in range(4)])
    assert trained_on(results) == [None] * 4
    assert {result["reward"] for result in results} == {PLACEHOLDER}


async def test_a_server_that_does_not_answer_masks_the_episode(tmp_path):
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    with drill(f"waits-while-there-is:{fifo}") as server:
        async with gym(server.url, timeout_s=0.3, tries=2) as rollout:
            result = await rollout("fine")
        assert trained_on([result]) == [None]
        assert result["failure_kind"] == "transport_timeout"


async def test_no_server_masks_the_episode():
    async with gym(f"http://127.0.0.1:{free_port()}") as rollout:
        result = await rollout("fine")
    assert trained_on([result]) == [None]
    assert result["failure_kind"] == "transport_unreachable"


async def test_a_server_that_is_stopped_in_the_middle_masks_what_it_did_not_score():
    with drill("echo") as server:
        async with gym(server.url, tries=2, timeout_s=5) as rollout:
            before = await asyncio.gather(*[rollout(f"before {i}") for i in range(8)])
            running = [asyncio.create_task(rollout(f"during {i}")) for i in range(48)]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            server.signal()
            during = await asyncio.gather(*running)
            after = await asyncio.gather(*[rollout(f"after {i}") for i in range(4)])
        assert server.ended() == 0
    assert None not in trained_on(before)
    assert trained_on(after) == [None] * 4
    for result, reward in zip(during, trained_on(during), strict=True):
        assert (reward is None) == (result["reward"] == PLACEHOLDER)


async def test_a_wrong_key_ends_the_run_instead_of_masking_it(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k-0123456789abcdef")
    with Server("--backend=echo", f"--keys-file={keys}") as locked:
        async with gym(locked.url, api_key="k-0123456789abcdef", run="gym-1") as rollout:
            assert trained_on([await rollout("fine")]) != [None]
        async with gym(locked.url, api_key="wrong") as rollout:
            with pytest.raises(aiohttp.ClientResponseError):
                await rollout("fine")


async def test_components_of_two_heads_add_up(tmp_path):
    heads = {"convincing": 1.5, "harmless": -0.25}
    checkpoints.reward_model(tmp_path / "model", "qwen2", heads=heads, template=TEMPLATE)
    flags = ("--device=cpu", "--dtype=float32", "--shape=none", "--normalize=off")
    with Server(f"{tmp_path / 'model'}", *flags) as server:
        async with gym(server.url) as rollout:
            results = [await rollout(answer) for answer in ("Four.", "Five.")]
    assert None not in trained_on(results)
    assert [set(callers.nemo_rl_components(result)) for result in results] == [set(heads)] * 2


async def test_gym_may_verify_episodes_again(short):
    async with gym(short.url) as rollout, aiohttp.ClientSession() as session:
        port = rollout.ports["rewardserve"]  # type: ignore[attr-defined]
        url = f"http://127.0.0.1:{port}/reverify_mode"
        async with session.get(url) as answer:
            assert await answer.json() == "stateless"
