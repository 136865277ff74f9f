"""A run has one snapshot: through evictions, restarts, damaged files and first requests that come together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from rewardserve.service.errors import SnapshotDiffers, SnapshotGone
from rewardserve.service.models import snapshots as module
from rewardserve.service.models.snapshots import SnapshotPins
from rewardserve.service.tripwires.run_context import RunContext


@dataclass(frozen=True)
class Model:
    version: int
    snapshot: str


@dataclass
class Models:
    """The models in memory, the one in service first."""

    loaded: list = field(default_factory=lambda: [Model(1, "one")])

    def for_request(self, run):
        return self.loaded[0]

    def with_snapshot(self, snapshot):
        return next((each for each in self.loaded if each.snapshot == snapshot), None)


class Events(list):
    def on_pinned(self, run, version, snapshot):
        self.append((run, snapshot))

    def on_not_saved(self, error):
        self.append(type(error).__name__)


def ask(pins, run="ppo", wanted=None, owner=None):
    return asyncio.run(pins.for_run(RunContext(run, owner=owner), wanted)).snapshot


def test_the_first_request_pins_and_later_ones_keep_to_it():
    models, events = Models(), Events()
    pins = SnapshotPins(models, events)
    assert ask(pins) == "one"
    models.loaded = [Model(2, "two"), Model(1, "one")]
    assert [ask(pins), ask(pins, wanted="one"), ask(pins, "other"), ask(pins, owner="b")] == [
        "one",
        "one",
        "two",
        "two",
    ]
    assert events == [("ppo", "one"), ("other", "two"), ("ppo", "two")]
    with pytest.raises(SnapshotDiffers):
        ask(pins, wanted="two")
    models.loaded = [Model(2, "two")]
    with pytest.raises(SnapshotGone):
        ask(pins)


def test_a_snapshot_that_is_not_loaded_pins_nothing():
    pins = SnapshotPins(Models(), Events())
    with pytest.raises(SnapshotGone):
        ask(pins, wanted="two")
    assert ask(pins) == "one"


def test_first_requests_that_come_together_agree(tmp_path):
    """A swap between them included: the second waits on no write of the first."""
    models = Models()
    pins = SnapshotPins(models, Events())
    pins.restore(tmp_path)

    async def both():
        first = asyncio.create_task(pins.for_run(RunContext("ppo"), None))
        await asyncio.sleep(0)
        models.loaded.insert(0, Model(2, "two"))
        return await asyncio.gather(first, pins.for_run(RunContext("ppo"), None))

    assert {each.snapshot for each in asyncio.run(both())} == {"one"}


def test_pins_outlive_the_process_and_a_damaged_file_is_set_aside(tmp_path):
    pins, models = SnapshotPins(Models(), Events()), Models([Model(2, "two")])
    pins.restore(tmp_path)
    ask(pins)
    later = SnapshotPins(models, Events())
    later.restore(tmp_path)
    with pytest.raises(SnapshotGone):
        ask(later)
    (tmp_path / "snapshots.json").write_text("[1]")
    events = Events()
    damaged = SnapshotPins(models, events)
    damaged.restore(tmp_path)
    assert events == ["ValueError"]
    assert (tmp_path / "snapshots.json.broken").exists()
    assert ask(damaged) == "two"


def test_a_folder_that_cannot_be_written_is_reported_and_the_pin_holds(tmp_path):
    events = Events()
    pins = SnapshotPins(Models(), events)
    pins.restore(tmp_path / "absent")
    assert [ask(pins), ask(pins)] == ["one", "one"]
    assert events == [("ppo", "one"), "FileNotFoundError"]


def test_beyond_the_limit_the_run_that_asked_least_recently_is_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MAX_RUNS", 2)
    models = Models()
    pins = SnapshotPins(models, Events())
    for run in ("a", "b", "a", "c"):
        ask(pins, run)
    models.loaded.insert(0, Model(2, "two"))
    assert [ask(pins, run) for run in ("a", "c", "b")] == ["one", "one", "two"]
