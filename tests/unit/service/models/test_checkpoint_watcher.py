"""Another checkpoint is told from one that is being written, and from the one that is known."""

from __future__ import annotations

import os
import shutil
import threading

import pytest

from rewardserve.service.models.checkpoint_watcher import CheckpointFiles, CheckpointWatcher, fingerprint


def seen(**versions):
    """A fingerprint: files by name, each in a version."""
    return tuple(
        (f"{name}.json" if name != "weights" else "model.safetensors", 1, 1, n) for name, n in versions.items()
    )


KNOWN, HALF, WHOLE = (seen(weights=n) for n in (1, 2, 3))


def looks(watcher, *fingerprints):
    return [watcher.poll(each) for each in fingerprints]


def test_what_is_known_is_no_news():
    assert looks(CheckpointWatcher(KNOWN), KNOWN, KNOWN, KNOWN) == ["", "", ""]


def test_what_is_being_written_is_left_alone_until_it_stands_still():
    assert looks(CheckpointWatcher(KNOWN), HALF, WHOLE, WHOLE) == ["", "", "new"]


def test_a_reported_checkpoint_is_not_reported_again():
    assert looks(CheckpointWatcher(KNOWN), WHOLE, WHOLE, WHOLE, WHOLE) == ["", "new", "", ""]


def test_a_way_back_to_what_was_known_before_is_news():
    assert looks(CheckpointWatcher(KNOWN), WHOLE, WHOLE, KNOWN, KNOWN) == ["", "new", "", "new"]


def test_a_link_that_leads_nowhere_is_no_news():
    assert looks(CheckpointWatcher(KNOWN), (), (), ()) == ["", "", ""]


def test_a_file_that_changes_at_every_look_holds_up_a_new_checkpoint_for_ten_looks_and_brings_no_other():
    watcher = CheckpointWatcher(seen(weights=1, state=0))
    told = looks(watcher, *(seen(weights=2, state=n) for n in range(1, 41)))
    assert told.index("new") == 9
    assert told.count("new") == 1
    told = looks(watcher, *(seen(weights=3, state=n) for n in range(41, 61)))
    assert told.index("new") == 1, "that file is known by now"
    assert told.count("new") == 1


def test_a_file_that_has_changed_at_every_look_counts_again_when_it_holds_still():
    watcher = CheckpointWatcher(seen(weights=1, state=0))
    looks(watcher, *(seen(weights=2, state=n) for n in range(1, 21)))
    assert looks(watcher, *[seen(weights=2, state=99)] * 4).count("new") == 1


def test_weights_that_change_at_every_poll_are_never_loaded_and_are_reported():
    told = looks(CheckpointWatcher(seen(weights=0)), *(seen(weights=n) for n in range(1, 31)))
    assert [i for i, each in enumerate(told, 1) if each] == [10, 20, 30]
    assert set(told) == {"", "unstable"}


def test_files_that_come_and_go_at_every_poll_are_reported():
    told = looks(CheckpointWatcher(seen(weights=1)), *(seen(weights=2, **{f"part{n}": 1}) for n in range(1, 31)))
    assert [i for i, each in enumerate(told, 1) if each == "unstable"] == [10, 20, 30]


def test_a_file_that_changes_beside_the_known_checkpoint_is_not_reported():
    told = looks(CheckpointWatcher(seen(weights=1, state=0)), *(seen(weights=1, state=n) for n in range(1, 31)))
    assert told.count("unstable") <= 1
    assert "new" not in told


@pytest.mark.parametrize("name", ["trainer.log", "events.out.tfevents.1", ".lock", ".cache/x.json", "optimizer.pt.tmp"])
def test_what_no_reader_reads_is_no_part_of_a_checkpoint(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint([tmp_path])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert fingerprint([tmp_path]) == before != ()


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "value_head.bin", "merges.txt", "spiece.model", "templates/a.jinja"],
)
def test_what_a_reader_reads_is_a_part_of_a_checkpoint(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint([tmp_path])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert fingerprint([tmp_path]) != before


def test_a_link_that_is_moved_changes_the_fingerprint(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    link = tmp_path / "current"
    link.symlink_to("one")
    before = fingerprint([link])
    os.replace(_link_to(tmp_path, "two"), link)
    assert fingerprint([link]) not in (before, ())
    assert fingerprint([link]) == fingerprint([tmp_path / "two"])


def test_a_file_that_is_replaced_by_one_of_its_size_changes_the_fingerprint(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    before = fingerprint([tmp_path])
    draft = tmp_path.parent / "draft"
    draft.write_bytes(b"two")
    os.utime(draft, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(draft, file)
    assert fingerprint([tmp_path]) != before


def test_what_is_empty_or_not_there_has_no_fingerprint(tmp_path):
    (tmp_path / "empty").mkdir()
    assert fingerprint([tmp_path / "empty"]) == fingerprint([tmp_path / "nowhere"]) == ()


def test_a_checkpoint_that_is_being_deleted_and_written_raises_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = threading.Event()

    def write_and_delete():
        while not done.is_set():
            for i in range(20):
                (tmp_path / "shards" / str(i)).mkdir(parents=True)
                (tmp_path / "shards" / str(i) / "model.safetensors").write_text("x")
            shutil.rmtree(tmp_path / "shards")

    writer = threading.Thread(target=write_and_delete)
    writer.start()
    try:
        for _ in range(500):
            fingerprint([tmp_path])
    finally:
        done.set()
        writer.join()


class Told(list):
    def on_new_checkpoint(self):
        self.append("new")

    def on_unstable(self):
        self.append("unstable")


def test_a_new_checkpoint_is_reported_once(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    told = Told()
    files = CheckpointFiles([tmp_path], KNOWN, 60.0, told)
    for _ in range(4):
        files.poll()
    assert (files.name, files.interval_s, told) == ("checkpoint", 60.0, ["new"])


def test_a_checkpoint_that_keeps_changing_is_reported(tmp_path):
    told = Told()
    files = CheckpointFiles([tmp_path], KNOWN, 60.0, told)
    for n in range(1, 21):
        (tmp_path / "model.safetensors").write_bytes(b"x" * n)
        files.poll()
    assert told == ["unstable", "unstable"]


def _link_to(folder, target):
    draft = folder / "draft"
    draft.symlink_to(target)
    return draft
