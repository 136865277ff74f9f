"""The texts behind an alarm: the right ones, where they were asked for, for nobody else's eyes, and not without end."""

from __future__ import annotations

import json
import stat

from service import evidence
from service.evidence import EvidenceRoom, Exhibit
from service.tripwires.wire import Finding

JUDGE = Finding("judge", "page", 0.1, 0.02, 7, ("e3", "e5"))


def exhibit(name, **fields):
    return Exhibit(name, 7, f"prompt of {name}", "response", 0.5, **{"flags": (), **fields})


def room_with(tmp_path, *exhibits, failed=None):
    room = EvidenceRoom(tmp_path, (failed if failed is not None else []).append)
    for each in exhibits:
        room.keep("team/ppo 7", each, is_telling=bool(each.flags))
    return room


def written(tmp_path):
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}


def test_an_alarm_writes_down_the_samples_that_it_names(tmp_path):
    room = room_with(tmp_path, *(exhibit(f"e{i}") for i in range(5)), exhibit("e5", flags=("judge",)))
    room.save("team/ppo 7", JUDGE)
    room.close()
    ((name, rows),) = written(tmp_path).items()
    assert name == "0001-team_ppo_7-judge-7.jsonl"
    assert {row["evidence"] for row in rows} == {"e3", "e5"}
    assert rows[0] == {"wire": "judge", "evidence": "e5", "step": 7, "prompt": "prompt of e5", "response": "response",
                       "reward": 0.5, "flags": ["judge"]}  # fmt: skip


def test_nobody_but_the_owner_may_read_it(tmp_path):
    room = room_with(tmp_path, exhibit("e3"))
    room.save("team/ppo 7", JUDGE)
    room.close()
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_flagged_sample_outlives_a_stream_of_plain_ones(tmp_path):
    room = room_with(tmp_path, exhibit("e5", flags=("judge",)), *(exhibit(f"x{i}") for i in range(500)))
    room.save("team/ppo 7", JUDGE)
    room.close()
    assert [row["evidence"] for rows in written(tmp_path).values() for row in rows] == ["e5"]


def test_an_alarm_without_its_samples_writes_nothing(tmp_path):
    room = room_with(tmp_path, exhibit("e9"))
    room.save("team/ppo 7", JUDGE)
    room.save("another run", JUDGE)
    room.close()
    assert written(tmp_path) == {}


def test_files_are_bounded_and_what_is_not_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MOST_FILES", 3)
    failed = []
    room = room_with(tmp_path, exhibit("e3"), failed=failed)
    for _ in range(5):
        room.save("team/ppo 7", JUDGE)
    room.close()
    assert len(written(tmp_path)) == 3
    assert len(failed) == 2
    assert len(EvidenceRoom(tmp_path, failed.append)._runs) == 0


def test_a_file_that_is_there_already_is_left_as_it_is(tmp_path):
    theirs = tmp_path / "0002-team_ppo_7-judge-7.jsonl"
    theirs.write_text("{}")  # of before a restart, and the first was deleted; or of a replica
    failed = []
    room = room_with(tmp_path, exhibit("e3"), failed=failed)
    room.save("team/ppo 7", JUDGE)
    room.close()
    assert failed == []
    assert sorted(written(tmp_path)) == [theirs.name, "0003-team_ppo_7-judge-7.jsonl"]
    assert theirs.read_text() == "{}"


def test_a_folder_that_is_gone_takes_nothing_down(tmp_path):
    folder, failed = tmp_path / "gone", []
    folder.mkdir()
    room = room_with(folder, exhibit("e3"), failed=failed)
    folder.rmdir()
    room.save("team/ppo 7", JUDGE)
    room.close()
    assert len(failed) == 1
    assert "No such file" in failed[0]


def test_no_more_runs_are_kept_than_there_is_room_for(tmp_path):
    room = EvidenceRoom(tmp_path, [].append)
    for i in range(100):
        room.keep(f"run {i}", exhibit("e"), is_telling=False)
    assert len(room._runs) == 32
