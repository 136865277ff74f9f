"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from rewardserve.service.storage import files
from rewardserve.service.storage.files import remove_stale_temp_files, set_aside, write_atomically
from tests.support.small_disk import SmallDisk, why_none


def test_a_file_is_replaced_as_a_whole_and_readable_by_its_owner_alone(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_a_file_of_another_is_not_replaced_where_that_is_not_wanted(tmp_path):
    (tmp_path / "state").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "state", b"ours", replaces=False)
    assert (tmp_path / "state").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "state"
    write_atomically(path, b"one")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod", "close"])
def test_a_new_file_that_cannot_be_finished_leaves_its_name_free(tmp_path, monkeypatch, call):
    path = tmp_path / "state"
    real = getattr(files.os, call)

    def fail(*given):
        if call == "close":
            real(*given)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"one", replaces=False)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    write_atomically(path, b"two", replaces=False)
    assert path.read_bytes() == b"two"


@pytest.mark.skipif(bool(why_none()), reason=why_none())
def test_a_full_disk_leaves_no_half_file(tmp_path):
    with SmallDisk(tmp_path / "disk", 1) as disk:
        write_atomically(disk.folder / "state", b"one")
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            write_atomically(disk.folder / "state", b"x" * 100_000)
        disk.empty()
        assert os.listdir(disk.folder) == ["state"]
        assert (disk.folder / "state").read_bytes() == b"one"


def test_a_damaged_file_is_kept_under_another_name(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    assert set_aside(tmp_path / "f").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["f.broken"]


def test_only_old_drafts_are_deleted(tmp_path):
    for name, age_s in ((".a.part", 7200), (".b.part", 10), ("c.part", 7200)):
        (tmp_path / name).write_bytes(b"half")
        at = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (at, at))
    remove_stale_temp_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".b.part", "c.part"]
