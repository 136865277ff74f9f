"""The folder of a run, the lines of its console, and what the errors of a machine are in words."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rewardserve.training import console, errors, run_folder
from rewardserve.training.dataset import hub
from rewardserve.training.settings.validation import ConfigError

ROOT = Path(__file__).parents[3]


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    code = f"from rewardserve.training import run_folder; import sys\nwith run_folder.lock_folder(__import__('pathlib').Path({str(tmp_path)!r})):\n print('held', flush=True); sys.stdin.read()"  # noqa: E501
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=f"another rewardserve train writes into .*process {holder.pid} on"),
            run_folder.lock_folder(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run_folder.lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("folder", ["file/inside", "file"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), run_folder.lock_folder(tmp_path / folder):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    with run_folder.lock_folder(tmp_path):
        assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("name", run_folder.RESULTS)
def test_each_result_of_a_finished_run_keeps_another_out(tmp_path, name):
    run_folder.refuse_finished(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=name):
        run_folder.refuse_finished(tmp_path)


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    out = tmp_path / "checkpoint"
    with run_folder.replace_folder(out) as new:
        (new / "a").write_text("1")
    with pytest.raises(IsADirectoryError), run_folder.replace_folder(out) as new:
        new.write_text("a file in the place of a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert [p.name for p in out.iterdir()] == ["a"]
    out.rename(tmp_path / "checkpoint.old")  # as a crash between the two renames leaves it
    with pytest.raises(IsADirectoryError), run_folder.replace_folder(out) as new:
        new.write_text("")
    assert [p.name for p in out.iterdir()] == ["a"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    run_folder.write_text(path, "old")

    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        run_folder.write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def lines_of(n, seconds, end=""):
    now, said = [0.0], []
    lines = console.ProgressLines("encoding", n, " pairs", clock=lambda: now[0], say=said.append)
    for _ in range(n):
        now[0] += seconds
        lines.advance()
    lines.end(end)
    return said


@pytest.mark.parametrize(
    ("files", "lacks"),
    [(["recipe.json"], True), (["recipe.json", "report.html"], False), (["calibration.html"], False), ([], False)],
)
def test_a_report_is_missing_only_beside_a_checkpoint_of_training(tmp_path, files, lacks):
    assert not run_folder.lacks_report(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    for name in files:
        (tmp_path / name).touch()
    assert run_folder.lacks_report(tmp_path) is lacks


def test_without_a_terminal_a_phase_has_a_line_at_its_start_and_now_and_then():
    assert lines_of(3, 1) == ["encoding: 3 pairs"]
    said = lines_of(10, 4)
    assert said == ["encoding: 10 pairs", "encoding: 4 of 10 pairs (40%), 16 s", "encoding: 8 of 10 pairs (80%), 32 s",
                    "encoding: 10 of 10 pairs (100%), 40 s"]  # fmt: skip
    assert lines_of(2, 1, ": loss 0.5")[-1] == "encoding: 2 of 2 pairs (100%), 2 s: loss 0.5"
    assert lines_of(0, 1) == []


@pytest.mark.parametrize("end", ["", " "])
def test_the_last_line_of_a_phase_is_printed_once(end):
    """The last unit is counted when a line is due: 328 of 328 was printed twice."""
    assert lines_of(2, 8, end) == ["encoding: 2 pairs", "encoding: 2 of 2 pairs (100%), 16 s"]
    assert lines_of(1, 16, ": loss 0.5")[1:] == [
        "encoding: 1 of 1 pairs (100%), 16 s", "encoding: 1 of 1 pairs (100%), 16 s: loss 0.5"
    ]  # fmt: skip


def test_only_the_first_process_says_anything(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    console.say("a")
    console.show("b")
    assert capsys.readouterr() == ("", "")


EXPLAINED = {
    "/x: the disk is full": OSError(errno.ENOSPC, "No space left on device", "/x"),
    "/x: permission is denied": PermissionError(errno.EACCES, "Permission denied", "/x"),
    "could not be read or written at /x: Input": OSError(errno.EIO, "Input/output error", "/x"),
    "most likely because the disk is full": RuntimeError(
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
    ),
    "most likely because": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    "the disk is full: Error": RuntimeError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "out of memory. Lower": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "optim.batch_pairs": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    "gradient_checkpointing": MemoryError(),
    "a package is missing": ImportError("No module named 'datasets'"),
    "is damaged or cut off: PytorchStreamReader": RuntimeError(
        "PytorchStreamReader failed reading zip archive: failed finding"
    ),
    "is damaged or cut off": RuntimeError(
        "Error while deserializing header: incomplete metadata, file not fully covered"
    ),
}


@pytest.mark.parametrize("says", EXPLAINED)
def test_what_the_machine_lacks_is_said_in_one_line(says):
    text = errors.explain(EXPLAINED[says])
    assert says in text
    assert "\n" not in text


def test_a_bug_is_no_error_of_the_machine():
    assert errors.explain(KeyError("x")) is None
    assert errors.explain(RuntimeError("shape mismatch")) is None


def test_a_silent_hub_is_not_waited_for():
    """A server that takes the connection and says nothing, and one that answers with an error."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not hub.answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        assert hub.answers(f"http://127.0.0.1:{server.getsockname()[1]}", 20)
        thread.join()
    assert not hub.answers("http://name.invalid", 20)


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [("org/model", True), ("./a/b", False), ("/a/b", False), ("~/b", False), ("a", False), ("a/b/c", False),
     ("smollm2-135m-instruct:14", False)],
)  # fmt: skip
def test_which_names_lead_to_the_hub(name, is_hub):
    assert hub.is_hub_model(name) is is_hub


def test_an_offline_process_says_that_the_cache_is_all_there_is(monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.announce("model", "org/model")
    assert "alone (offline)" in capsys.readouterr().err
    assert os.environ.get("HF_HUB_OFFLINE") is None
