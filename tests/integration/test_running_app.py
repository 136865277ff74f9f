"""The server for those who bring their own socket: `running_app` scores while it is open, and finishes what it has accepted."""

from __future__ import annotations

import asyncio
import os
import threading

import httpx
import pytest

from rewardserve.model.backends import BACKENDS, LoadError
from rewardserve.service.app import running_app
from rewardserve.service.settings import ServeSettings

BODY = {"samples": [{"prompt": "What is two plus two?", "response": "Four."}]}


@pytest.fixture(autouse=True)
def _this_process_is_no_server(monkeypatch):
    """The garbage collector stays as it is; settings of the machine are not read."""
    for name in [name for name in os.environ if name.startswith("REWARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(BACKENDS, "drill", "tests.support.service_backends:load")
    monkeypatch.setattr("rewardserve.service.app.tune_garbage_collector", lambda: None)


def opened(**settings):
    """An application with these settings; there are no keys."""
    read = ServeSettings(**settings)
    return running_app(read, read.read_keys())


def caller(application):
    return httpx.AsyncClient(transport=httpx.ASGITransport(application.app), base_url="http://application")


async def test_it_scores_while_it_is_open_and_refuses_in_words_afterwards():
    async with opened(backend="echo") as (application, _), caller(application) as http:
        assert (await http.get("/readyz")).status_code == 200
        assert len((await http.post("/score", json=BODY)).json()["rewards"]) == 1
    async with caller(application) as http:
        refused = await http.post("/score", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


async def test_leaving_waits_for_what_was_accepted(tmp_path):
    os.mkfifo(gate := tmp_path / "gate")
    inside, may_go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold():
        with gate.open("wb"):  # returns once the forward is at the gate
            loop.call_soon_threadsafe(inside.set)
            may_go_on.wait(30.0)

    holding = asyncio.create_task(asyncio.to_thread(hold))
    door = opened(backend="drill", model=f"forward-waits:{gate}")
    application, _ = await door.__aenter__()
    async with caller(application) as http:
        asked = asyncio.create_task(http.post("/score", json=BODY))
        await asyncio.wait_for(inside.wait(), 30.0)
        leaving = asyncio.create_task(door.__aexit__(None, None, None))
        await application.active_models.sleep(30.0)  # returns at once when it closes
        assert (await http.get("/readyz")).status_code == 503
        assert not asked.done()
        assert not leaving.done()
        may_go_on.set()
        await asyncio.wait_for(leaving, 30.0)
        assert (await asked).status_code == 200
    await holding
    assert application.admission.n_samples == 0


async def test_a_model_that_cannot_be_served_raises_where_the_app_is_opened():
    with pytest.raises(LoadError, match="no such weights"):
        async with opened(backend="drill", model="load-fails:no such weights"):
            pytest.fail("there is nothing to open")
