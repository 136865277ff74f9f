"""The texts behind an alert: the right ones, in the named folder, private, and bounded."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
import threading

import pytest

from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.io import evidence
from rewardserve.service.tripwires.io.evidence import EvidenceRecord, EvidenceStore
from tests.support.service_fakes import PATIENCE_S, TripwireLog

SAFE = "team_ppo_7-" + hashlib.blake2b(b"team/ppo 7", digest_size=4).hexdigest()
JUDGE = Alert("judge_injection", "page", 0.1, 0.02, 7, ("e3", "e5"))


def record(name, **fields):
    return EvidenceRecord(name, 7, f"prompt of {name}", "response", 0.5, **{"flags": (), **fields})


def opened(folder, failed=None):
    events = TripwireLog()
    events.failures = events.failures if failed is None else failed
    return EvidenceStore(folder, events)


def prune(store, run, named):
    if store.is_large(run):
        store.prune(run, named)


def store_with(tmp_path, *records, failed=None):
    store = opened(tmp_path, failed)
    store.add("team/ppo 7", records)
    return store


def written(tmp_path):
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}


def test_an_alert_writes_down_the_samples_that_it_names(tmp_path):
    store = store_with(tmp_path, *(record(f"e{i}") for i in range(5)), record("e5", flags=("judge_injection",)))
    store.save("team/ppo 7", JUDGE)
    store.close()
    ((name, rows),) = written(tmp_path).items()
    assert name == f"0001-{SAFE}-judge_injection-7.jsonl"
    assert {row["evidence"] for row in rows} == {"e3", "e5"}
    assert rows[1] == {"run": "team/ppo 7", "wire": "judge_injection", "evidence": "e5", "step": 7, "prompt": "prompt of e5",
                       "response": "response",
                       "reward": 0.5, "flags": ["judge_injection"]}  # fmt: skip


def test_only_the_owner_may_read_a_file(tmp_path):
    store = store_with(tmp_path, record("e3"))
    store.save("team/ppo 7", JUDGE)
    store.close()
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_text_is_kept_as_long_as_an_alert_can_name_its_hash(tmp_path):
    store = store_with(tmp_path, record("e3"), record("e5"))
    for i in range(5_000):
        store.add("team/ppo 7", [record(f"x{i}")])
        prune(store, "team/ppo 7", {"e3", "e5", f"x{i}"})
    assert len(store._runs["team/ppo 7"]) < 1_000, "what no alert can name is let go"
    store.save("team/ppo 7", JUDGE)
    store.close()
    assert [row["evidence"] for rows in written(tmp_path).values() for row in rows] == ["e3", "e5"]


def test_texts_are_bounded_in_memory_and_missing_ones_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_CHARS", 1_000)
    failed = []
    store = store_with(tmp_path, failed=failed)
    for i in range(300):
        store.add(f"run {i % 3}", [record(f"e{i}")])
        prune(store, f"run {i % 3}", {f"e{i}" for i in range(300)})
        assert store._n_chars == sum(e.n_chars for kept in store._runs.values() for e in kept.values()) <= 1_000
    store.save("run 0", Alert("duplicate_across_prompts", "page", 1.0, 0.5, 3, ("e0", "e297")))
    store.close()
    ((why),) = failed
    assert "1 of 2 texts that the alert duplicate_across_prompts names" in why
    assert [row["evidence"] for rows in written(tmp_path).values() for row in rows] == ["e297"]


def test_an_alert_without_its_samples_writes_nothing_and_reports_it(tmp_path):
    failed = []
    store = store_with(tmp_path, record("e9"), failed=failed)
    store.save("team/ppo 7", JUDGE)
    store.save("another run", JUDGE)
    store.close()
    assert written(tmp_path) == {}
    assert ["2 of 2" in why for why in failed] == [True, True]


@pytest.mark.parametrize("run", ["я" * 300, "a" * 10_000, "../../etc/passwd", "\ud800", "a\0b", ".", "", "\x1b[31m"])
def test_any_name_of_a_run_makes_a_file_name(tmp_path, run):
    failed = []
    store = opened(tmp_path, failed)
    store.add(run, [record("e3")])
    store.save(run, Alert("judge_injection", "page", 0.1, 0.02, 10**400, ("e3",)))
    store.close()
    assert failed == []
    ((name, rows),) = written(tmp_path).items()
    assert len(name) < 128
    assert name.isascii()
    assert name.replace("\n", "").isprintable()
    assert rows[0]["run"] == run


def test_files_are_bounded_and_missing_ones_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FILES", 3)
    failed = []
    store = store_with(tmp_path, record("e3"), failed=failed)
    for _ in range(5):
        store.save("team/ppo 7", JUDGE)
    store.close()
    assert len(written(tmp_path)) == 3
    assert sum("3 files of evidence" in why for why in failed) == 2
    assert len(opened(tmp_path, failed)._runs) == 0


def test_files_that_were_moved_away_do_not_count_against_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FILES", 2)
    failed = []
    store = store_with(tmp_path, record("e3"), record("e5"), failed=failed)
    for n_moved in (0, 2, 1, 0):
        for path in sorted(tmp_path.iterdir())[:n_moved]:
            path.unlink()
        for _ in range(2):
            store.save("team/ppo 7", JUDGE)
        store._writer.submit(int).result(PATIENCE_S)
        assert len(written(tmp_path)) == 2
    assert len(failed) == 3, "one of the third round, two of the fourth"
    store.close()


def test_files_that_could_not_be_written_count_nothing_against_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FILES", 2)
    failed = []
    store = store_with(tmp_path, record("e3"), record("e5"), failed=failed)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(evidence, "write_atomically", full)
        for _ in range(5):
            store.save("team/ppo 7", JUDGE)
            store._writer.submit(int).result(PATIENCE_S)
    assert failed == ["OSError: No space left on device"] * 5
    store.save("team/ppo 7", JUDGE)
    store.close()
    assert len(written(tmp_path)) == 1


def test_a_disk_that_hangs_bounds_what_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FILES", 2)
    failed, let_go = [], threading.Event()
    store = store_with(tmp_path, record("e3"), record("e5"), failed=failed)
    store._writer.submit(let_go.wait, PATIENCE_S)
    for _ in range(5):
        store.save("team/ppo 7", JUDGE)
    assert len(failed) == 3
    assert all("wait to be written" in why for why in failed)
    let_go.set()
    store.close()
    assert len(written(tmp_path)) == 2


def test_a_file_that_is_there_already_is_left_as_it_is(tmp_path):
    theirs = tmp_path / f"0002-{SAFE}-judge_injection-7.jsonl"
    theirs.write_text("{}")  # of before a restart, and the first was deleted; or of a replica
    failed = []
    store = store_with(tmp_path, record("e3"), failed=failed)
    store.save("team/ppo 7", JUDGE)
    store.close()
    assert len(failed) == 1, "of the other text"
    assert sorted(written(tmp_path)) == [theirs.name, f"0003-{SAFE}-judge_injection-7.jsonl"]
    assert theirs.read_text() == "{}"


def test_a_folder_that_is_gone_takes_nothing_down(tmp_path):
    folder, failed = tmp_path / "gone", []
    folder.mkdir()
    store = store_with(folder, record("e3"), failed=failed)
    folder.rmdir()
    store.save("team/ppo 7", JUDGE)
    store.close()
    (why, _) = failed
    assert "1 of 2 texts" in why
    assert "No such file" in failed[1]


def test_at_most_64_runs_are_kept(tmp_path):
    store = opened(tmp_path)
    for i in range(100):
        store.add(f"run {i}", [record("e")])
        prune(store, f"run {i}", {"e"})
    assert len(store._runs) == 64
