"""One model after the other in one event loop: who is answered by whom, what is freed, and what an end leaves behind."""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import replace

import pytest

from rewardserve.model.conversation import Sample
from rewardserve.service.admission import Admission
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import LoadInProgress, ModelRefused, NothingIsLoading, VersionGone, VersionInUse
from rewardserve.service.models import registry as succession_module
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.registry import Succession
from rewardserve.service.models.runtime import build_commons, prepare
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.settings import ServeSettings
from tests.support.service_fakes import PATIENCE_S

ECHO = Source("echo")


class Paper:
    """What is to be closed once, at the end."""

    n_closed = 0

    def close(self):
        self.n_closed += 1


@pytest.fixture
async def succession():
    settings = ServeSettings(backend="echo", model="echo", _cli_parse_args=[])
    clock, metrics, stage = MonotonicClock(), Metrics(), ActiveModels()
    admission, paper = Admission(1000, 100_000, clock), Paper()
    commons = replace(build_commons(settings, admission, metrics, clock), evidence_store=paper)
    built = Succession(commons, stage, prepare(settings), ECHO, keep=1)
    built.stage, built.paper = stage, paper
    yield built
    await asyncio.wait_for(built.close(), PATIENCE_S)
    assert paper.n_closed == 1
    assert (admission.n_samples, admission.n_tokens) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settled(succession):
    """When whoever was to be let go of is gone."""
    while succession._leaving:
        await asyncio.wait(set(succession._leaving), timeout=PATIENCE_S)


async def test_what_is_let_go_of_is_freed(succession):
    first = weakref.ref(succession.serving.engine.batcher)
    await succession.load(ECHO)
    assert first() is not None
    await succession.load(ECHO)
    await settled(succession)
    assert first() is None


async def test_its_memory_goes_back_to_the_kernel_and_only_when_it_has_gone(succession, monkeypatch):
    first, told = weakref.ref(succession.serving.engine.batcher), []
    monkeypatch.setattr("rewardserve.service.models.registry.trim_heap", lambda: told.append(first()))
    await succession.load(ECHO)
    assert told == []
    await succession.load(ECHO)
    await settled(succession)
    assert told == [None]


async def test_whoever_is_inside_is_answered_by_the_model_that_he_was_let_in_to(succession):
    served = succession.stage.served_for(None)
    asked = asyncio.create_task(served.scoring.score([Sample(text="a")]))
    await asyncio.sleep(0)
    for _ in range(3):
        await succession.load(ECHO)
    (result,) = await asked
    assert result.reward is not None
    assert succession.stage.served().version == 4


async def test_a_model_with_somebody_inside_is_not_freed(succession):
    engine = succession.serving.engine
    with engine.scoring._inside():
        for _ in range(2):
            await succession.load(ECHO)
        await asyncio.sleep(0.01)
        assert engine.batcher.is_alive
    await settled(succession)
    assert not engine.batcher.is_alive


async def test_a_load_that_nobody_waits_for_any_more_goes_on(succession):
    impatient = asyncio.create_task(succession.load(ECHO))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(LoadInProgress):
        await succession.load(ECHO)
    await asyncio.wait({succession._load}, timeout=PATIENCE_S)
    assert succession.overview.serving == 2


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_load_that_hangs_is_given_up_and_others_can_begin(succession, monkeypatch, how):
    gate, begun, closed = threading.Event(), threading.Event(), threading.Event()
    real = succession_module.prepare

    def hang(settings):
        begun.set()
        assert gate.wait(PATIENCE_S)
        prepared = real(settings)
        monkeypatch.setattr(prepared.loaded.scorer, "close", closed.set, raising=False)
        return prepared

    monkeypatch.setattr("rewardserve.service.models.registry.prepare", hang)
    succession._load_timeout_s = 0.01 if how == "timeout" else 0.0
    loading = asyncio.create_task(succession.load(ECHO))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    if how == "cancelled":
        succession.cancel_load()
    with pytest.raises(ModelRefused, match="LOAD_TIMEOUT_S" if how == "timeout" else "cancelled the load"):
        await asyncio.wait_for(loading, PATIENCE_S)
    assert (succession.overview.loading, succession.serving.engine.version) == (None, 1)
    monkeypatch.setattr("rewardserve.service.models.registry.prepare", real)
    succession._load_timeout_s = 0.0
    assert await asyncio.wait_for(succession.load(ECHO), PATIENCE_S) == 2
    assert await asyncio.wait_for(succession.roll_back(), PATIENCE_S) == 1
    gate.set()
    assert await asyncio.to_thread(closed.wait, PATIENCE_S), "what comes late is freed"
    with pytest.raises(NothingIsLoading):
        succession.cancel_load()


async def test_what_has_no_words_for_an_operator_is_not_quoted_to_him(succession, monkeypatch):
    def choke(_settings):
        raise KeyError("a conversation")

    monkeypatch.setattr("rewardserve.service.models.registry.prepare", choke)
    with pytest.raises(ModelRefused) as refused:
        await succession.load(ECHO)
    assert "conversation" not in refused.value.message
    assert succession.overview.refused.why == refused.value.message
    assert succession.overview.loading is None


async def test_a_load_that_does_not_fit_beside_the_model_in_service_names_the_device_and_a_remedy(
    succession, monkeypatch
):
    def fill(_settings):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 7.79 GiB")

    monkeypatch.setattr("rewardserve.service.models.registry.prepare", fill)
    with pytest.raises(ModelRefused) as refused:
        await succession.load(ECHO)
    assert "GPU 1 has not enough free memory: 2.00 GiB more were wanted" in refused.value.message
    assert "docs/how-to/models.md" in refused.value.message
    assert succession.overview.serving == 1


async def test_a_second_shadow_takes_the_place_of_the_first(succession):
    await succession.load(ECHO, shadow=0.5)
    await succession.load(ECHO, shadow=1.0)
    await settled(succession)
    assert [(m.version, m.state) for m in succession.overview.models] == [(1, "serving"), (3, "shadow")]
    with pytest.raises(VersionInUse):
        succession.pin("run", 3)
    with pytest.raises(VersionGone):
        succession.activate(2)


async def test_a_pin_is_kept_when_all_runs_of_now_are_pinned(succession):
    await succession.load(ECHO)
    succession.pin("old", 1)
    await succession.load(ECHO, pin=["old", "new"])
    assert succession.overview.pins == {"old": 1, "new": 2}
    assert [m.version for m in succession.overview.models] == [3, 2, 1]
