"""Several models, one after the other, in one event loop: which answers which request, and which memory is freed."""

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
from rewardserve.service.models import registry as registry_module
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.loading import prepare_model
from rewardserve.service.models.registry import ModelRegistry
from rewardserve.service.models.shared_resources import create_shared_resources
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
async def registry():
    settings = ServeSettings(backend="echo", model="echo", _cli_parse_args=[])
    clock, metrics, active_models = MonotonicClock(), Metrics(), ActiveModels()
    admission, paper = Admission(1000, 100_000, clock), Paper()
    resources = replace(create_shared_resources(settings, admission, metrics, clock), evidence_store=paper)
    built = ModelRegistry(resources, active_models, prepare_model(settings), ECHO, keep=1)
    built.active_models, built.paper = active_models, paper
    yield built
    await asyncio.wait_for(built.close(), PATIENCE_S)
    assert paper.n_closed == 1
    assert (admission.n_samples, admission.n_tokens) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settled(registry):
    """Wait until the unloaded models are freed."""
    while registry._unloading:
        await asyncio.wait(set(registry._unloading), timeout=PATIENCE_S)


async def test_what_is_let_go_of_is_freed(registry):
    first = weakref.ref(registry.serving.batcher)
    await registry.load(ECHO)
    assert first() is not None
    await registry.load(ECHO)
    await settled(registry)
    assert first() is None


async def test_its_memory_goes_back_to_the_kernel_and_only_when_it_has_gone(registry, monkeypatch):
    first, told = weakref.ref(registry.serving.batcher), []
    monkeypatch.setattr("rewardserve.service.models.registry.trim_heap", lambda: told.append(first()))
    await registry.load(ECHO)
    assert told == []
    await registry.load(ECHO)
    await settled(registry)
    assert told == [None]


async def test_a_request_is_answered_by_the_model_that_it_began_with(registry):
    served = registry.active_models.for_request(None)
    asked = asyncio.create_task(served.scoring.score([Sample(text="a")]))
    await asyncio.sleep(0)
    for _ in range(3):
        await registry.load(ECHO)
    (result,) = await asked
    assert result.reward is not None
    assert registry.active_models.current().version == 4


async def test_a_model_with_a_request_in_flight_is_not_freed(registry):
    engine = registry.serving
    with engine.scoring._track():
        for _ in range(2):
            await registry.load(ECHO)
        await asyncio.sleep(0.01)
        assert engine.batcher.is_alive
    await settled(registry)
    assert not engine.batcher.is_alive


async def test_a_load_goes_on_after_its_caller_was_cancelled(registry):
    impatient = asyncio.create_task(registry.load(ECHO))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(LoadInProgress):
        await registry.load(ECHO)
    await asyncio.wait({registry._load}, timeout=PATIENCE_S)
    assert registry.status.serving == 2


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_load_that_hangs_is_given_up_and_others_can_begin(registry, monkeypatch, how):
    gate, begun, closed = threading.Event(), threading.Event(), threading.Event()
    real = registry_module.prepare_model

    def hang(settings):
        begun.set()
        assert gate.wait(PATIENCE_S)
        prepared = real(settings)
        monkeypatch.setattr(prepared.loaded.scorer, "close", closed.set, raising=False)
        return prepared

    monkeypatch.setattr("rewardserve.service.models.registry.prepare_model", hang)
    registry._load_timeout_s = 0.01 if how == "timeout" else 0.0
    loading = asyncio.create_task(registry.load(ECHO))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    if how == "cancelled":
        registry.cancel_load()
    with pytest.raises(ModelRefused, match="LOAD_TIMEOUT_S" if how == "timeout" else "cancelled the load"):
        await asyncio.wait_for(loading, PATIENCE_S)
    assert (registry.status.loading, registry.serving.version) == (None, 1)
    monkeypatch.setattr("rewardserve.service.models.registry.prepare_model", real)
    registry._load_timeout_s = 0.0
    assert await asyncio.wait_for(registry.load(ECHO), PATIENCE_S) == 2
    assert await asyncio.wait_for(registry.roll_back(), PATIENCE_S) == 1
    gate.set()
    assert await asyncio.to_thread(closed.wait, PATIENCE_S), "a late result is freed"
    with pytest.raises(NothingIsLoading):
        registry.cancel_load()


async def test_an_error_without_a_message_for_operators_is_not_quoted(registry, monkeypatch):
    def choke(_settings):
        raise KeyError("a conversation")

    monkeypatch.setattr("rewardserve.service.models.registry.prepare_model", choke)
    with pytest.raises(ModelRefused) as refused:
        await registry.load(ECHO)
    assert "conversation" not in refused.value.message
    assert registry.status.refused.reason == refused.value.message
    assert registry.status.loading is None


async def test_a_load_that_does_not_fit_beside_the_model_in_service_names_the_device_and_a_remedy(
    registry, monkeypatch
):
    def fill(_settings):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 7.79 GiB")

    monkeypatch.setattr("rewardserve.service.models.registry.prepare_model", fill)
    with pytest.raises(ModelRefused) as refused:
        await registry.load(ECHO)
    assert "GPU 1 has not enough free memory: 2.00 GiB were requested" in refused.value.message
    assert "docs/how-to/models.md" in refused.value.message
    assert registry.status.serving == 1


async def test_a_second_shadow_takes_the_place_of_the_first(registry):
    await registry.load(ECHO, shadow=0.5)
    await registry.load(ECHO, shadow=1.0)
    await settled(registry)
    assert [(m.version, m.state) for m in registry.status.models] == [(1, "serving"), (3, "shadow")]
    with pytest.raises(VersionInUse):
        registry.pin("run", 3)
    with pytest.raises(VersionGone):
        registry.activate(2)


async def test_a_pin_is_kept_when_all_runs_of_now_are_pinned(registry):
    await registry.load(ECHO)
    registry.pin("old", 1)
    await registry.load(ECHO, pin=["old", "new"])
    assert registry.status.pins == {"old": 1, "new": 2}
    assert [m.version for m in registry.status.models] == [3, 2, 1]
