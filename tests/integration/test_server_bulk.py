"""`reward-score`: a file in, a file out, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from model.backends.echo import echo_score
from service import bulk
from tests.support.service_server import PATIENCE_S, ROOT

N_LINES = 1300


def score_of(text):
    return echo_score((*text.encode(), 0))


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": "x" * (i % 97) + str(i)}) + "\n" for i in range(N_LINES)))
    return source, tmp_path / "out.jsonl"


def command(source, target, *flags, backend="echo"):
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from model.backends import BACKENDS; BACKENDS['drill'] = 'tests.support.service_backends:load'; "
    program += "from service.bulk import main; main()"
    return [sys.executable, "-c", program, str(source), str(target), f"--backend={backend}", *flags]


def score_file(source, target, *flags, **kwargs):
    done = subprocess.run(
        command(source, target, *flags, **kwargs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_answered_in_order(files):
    source, target = files
    assert score_file(source, target)[0] == 0
    out = rows(target)
    assert [r["id"] for r in out] == [str(i) for i in range(N_LINES)]
    assert [r["raw"] for r in out] == [score_of("x" * (i % 97) + str(i)) for i in range(N_LINES)]
    assert {json.dumps(r["scored_by"]) for r in out} == {json.dumps(out[0]["scored_by"])}


def test_a_bad_line_is_an_error_in_its_place(files):
    source, target = files
    source.write_text(
        '{"id": "a", "text": "x"}\nnonsense\n\n{"text": 5}\n{"input_ids": [999]}\n{"text": "\\ud800"}\n{"text": "y"}'
    )
    assert score_file(source, target)[0] == 0
    assert [(r["id"], r["error"] and r["error"]["code"]) for r in rows(target)] == [
        ("a", None), ("1", "invalid_json"), ("2", "invalid_json"), ("3", "invalid_request"),
        ("4", "token_out_of_vocabulary"), ("5", "invalid_text"), ("6", None),
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [0, 1, 500, 777.5, N_LINES])
def test_what_was_interrupted_is_continued_to_the_same_file(files, keep):
    source, target = files
    score_file(source, target)
    whole = target.read_bytes()
    lines = whole.splitlines(keepends=True)
    half = lines[int(keep)][: len(lines[int(keep)]) // 2] if keep % 1 else b""
    target.write_bytes(b"".join(lines[: int(keep)]) + half)
    assert score_file(source, target)[0] == 0
    assert target.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_file_that_can_be_continued(files, tmp_path, number):
    source, target = files
    score_file(source, tmp_path / "undisturbed")
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    running = subprocess.Popen(
        command(source, target, f"--model=forward-waits:{fifo}", backend="drill"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(fifo, "wb"):
        running.send_signal(number)
        _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "continue" in said
    assert "Traceback" not in said
    assert score_file(source, target)[0] == 0
    assert target.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_a_file_is_never_continued_with_other_settings_or_another_input(files):
    source, target = files
    score_file(source, target)
    before = target.read_bytes()
    exit_code, said = score_file(source, target, "--shape=none")
    assert (exit_code, "another model or other settings" in said) == (2, True)
    source.write_text('{"id": "other", "text": "x"}\n' * N_LINES)
    exit_code, said = score_file(source, target)
    assert (exit_code, "another input" in said) == (2, True)
    target.write_text("dear diary\n")
    assert score_file(source, target)[0] == 2
    assert target.read_text() == "dear diary\n"
    target.write_bytes(before)


def test_a_foreign_file_without_a_line_ending_is_not_eaten(files):
    source, target = files
    target.write_text("dear diary")
    exit_code, said = score_file(source, target)
    assert (exit_code, target.read_text()) == (2, "dear diary"), said


def test_files_that_are_not_there_are_said_in_words(tmp_path):
    exit_code, said = score_file(tmp_path / "nowhere", tmp_path / "out")
    assert (exit_code, "nowhere" in said, "Traceback" in said) == (2, True, False)


def test_a_line_has_its_number_as_id_and_keeps_its_own():
    assert bulk.read_line(7, b'{"text": "x"}').sample_id == "7"
    assert bulk.read_line(7, b'{"id": "mine", "text": "x"}').sample_id == "mine"


def test_a_promise_of_equal_bits_that_is_broken_scores_nothing(files):
    source, target = files
    exit_code, said = score_file(source, target, "--model=noisy:", "--deterministic=1", backend="drill")
    assert (exit_code, "REWARD_DETERMINISTIC=1, but" in said, target.exists()) == (1, True, False)
