"""`rewardserve score`: a file in, a file out, whatever happens in between."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.service.offline.input_file import InputDigest, NotContinuable, read_line
from rewardserve.service.offline.output_file import Marks, Output
from tests.support.command import run_command
from tests.support.service_server import ROOT, TIMEOUT_S
from tests.support.small_disk import SmallDisk, why_none

N_LINES = 1300


def score_of(text):
    return echo_score((*text.encode(), 0))


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": "x" * (i % 97) + str(i)}) + "\n" for i in range(N_LINES)))
    return source, tmp_path / "out.jsonl"


def command(source, target, *flags, backend="echo"):
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += (
        "from rewardserve.model.backends import BACKENDS; BACKENDS['drill'] = 'tests.support.service_backends:load'; "
    )
    program += "import sys; from rewardserve.cli import main; sys.exit(main(['score', *sys.argv[1:]]))"
    return [sys.executable, "-c", program, str(source), str(target), f"--backend={backend}", *flags]


def score_file(source, target, *flags, backend="echo"):
    """The exit code and stderr of `rewardserve score`, run in this process."""
    code, _, output = run_command("score", source, target, f"--backend={backend}", *flags)
    return code, output


def score_file_in_a_process(source, target, *flags, **kwargs):
    done = subprocess.run(
        command(source, target, *flags, **kwargs),
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_answered_in_order(files):
    source, target = files
    assert score_file_in_a_process(source, target)[0] == 0
    out = rows(target)
    assert [r["id"] for r in out] == [str(i) for i in range(N_LINES)]
    assert [r["raw"] for r in out] == [score_of("x" * (i % 97) + str(i)) for i in range(N_LINES)]
    assert {json.dumps(r["scored_by"]) for r in out} == {json.dumps(out[0]["scored_by"])}


def test_a_bad_line_is_an_error_in_its_place(files):
    source, target = files
    source.write_text(
        '{"id": "a", "text": "x"}\nnonsense\n\n{"text": 5}\n{"input_ids": [999]}\n{"text": "\\ud800"}\n{"text": "y"}'
    )
    exit_code, output = score_file(source, target)
    assert exit_code == 3
    assert "7 lines: 2 scored, 5 without a score (invalid_json 2, invalid_request 1, invalid_text 1" in output
    assert [(r["id"], r["error"] and r["error"]["code"]) for r in rows(target)] == [
        ("a", None), ("1", "invalid_json"), ("2", "invalid_json"), ("3", "invalid_request"),
        ("4", "token_out_of_vocabulary"), ("5", "invalid_text"), ("6", None),
    ]  # fmt: skip


def test_a_file_of_pairs_is_refused_with_the_command_that_reads_it(files):
    source, target = files
    source.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    code, output = score_file(source, target)
    assert (code, f"rewardserve compare MODEL_A MODEL_B {source} scores both sides" in output) == (2, True)
    assert not target.exists()


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
        _, output = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 130
    assert "continue" in output
    assert "Traceback" not in output
    assert score_file(source, target)[0] == 0
    assert target.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_a_file_is_never_continued_with_other_settings_or_another_input(files):
    source, target = files
    score_file(source, target)
    before = target.read_bytes()
    exit_code, output = score_file(source, target, "--shape=none")
    assert (exit_code, "another model or other settings (pipeline)" in output) == (2, True)
    exit_code, output = score_file(source, target, "--max-input-tokens=50")
    assert (exit_code, "another model or other settings" in output) == (2, True)
    source.write_text('{"id": "other", "text": "x"}\n' * N_LINES)
    exit_code, output = score_file(source, target)
    assert (exit_code, "another input" in output) == (2, True)
    target.write_text("dear diary\n")
    assert score_file(source, target)[0] == 2
    assert target.read_text() == "dear diary\n"
    target.write_bytes(before)


@pytest.mark.parametrize("changed", [0, 600, N_LINES - 1])
def test_a_file_is_not_continued_when_a_line_of_its_input_has_changed(files, changed):
    source, target = files
    score_file(source, target)
    before = target.read_bytes()
    lines = source.read_bytes().splitlines(keepends=True)
    lines[changed] = b'{"text": "another"}\n'
    source.write_bytes(b"".join(lines))
    exit_code, output = score_file(source, target)
    assert (exit_code, f"line {changed + 1} of " in output) == (2, True)
    assert target.read_bytes() == before


def test_an_input_that_is_shorter_than_what_was_scored_is_refused_with_both_numbers(files):
    source, target = files
    score_file(source, target)
    before, whole = target.read_bytes(), source.read_bytes()
    source.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    exit_code, output = score_file(source, target)
    assert exit_code == 2
    assert f"{source} has 5 lines, but more were scored: lines were removed" in output
    source.write_bytes(whole[: whole.index(b"\n", 2000) - 3])
    exit_code, output = score_file(source, target)
    assert (exit_code, "is not the one that was scored" in output) == (2, True), "a line that is cut is another line"
    assert target.read_bytes() == before


def test_an_input_may_lose_lines_that_were_not_scored_yet(files):
    source, target = files
    score_file(source, target)
    lines, scored = source.read_bytes().splitlines(keepends=True), target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(scored[:600]))
    source.write_bytes(b"".join(lines[:900]))
    exit_code, output = score_file(source, target)
    assert (exit_code, "900 lines: 900 scored" in output) == (0, True)
    assert target.read_bytes() == b"".join(scored[:900])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('{"text": "x"}\n'.encode("utf-16"), "is UTF-16; convert it to UTF-8 (iconv -f utf-16 -t utf-8)"),
        ('{"text": "x"}\n'.encode("utf-32"), "is UTF-32; convert it to UTF-8 (iconv -f utf-32 -t utf-8)"),
        (gzip.compress(b'{"text": "x"}\n'), "is gzipped; decompress it first"),
    ],
    ids=["UTF-16", "UTF-32", "gzip"],  # gzip writes the time: a name made of these bytes differs between workers
)
def test_an_input_that_is_no_text_of_lines_is_refused_and_nothing_is_written(files, data, says):
    source, target = files
    source.write_bytes(data)
    exit_code, output = score_file(source, target)
    assert (exit_code, says in output, target.exists()) == (2, True, False)


@pytest.mark.parametrize(
    "data",
    [
        "# A page\n\nof text\n",
        "prompt,response\na,b\n",
        '[\n{"text": "x"},\n{"text": "y"},\n]\n',
        "\n\n",
        '[{"text": "x"}]\n',
    ],
    ids=["page", "table", "list", "empty lines", "list in one line"],
)
def test_a_file_that_is_not_jsonl_is_refused_before_the_model_is_loaded(files, data):
    source, target = files
    source.write_text(data)
    exit_code, output = score_file(source, target, "--model=/no/such/model", backend="torch")
    assert (exit_code, target.exists()) == (2, False)
    assert f"{source} is not JSONL: none of its " in output
    assert "cannot be served" not in output


def test_an_empty_file_is_refused_and_nothing_is_written(files):
    source, target = files
    source.write_bytes(b"")
    code, output = score_file(source, target)
    assert (code, f"{source} is empty" in output) == (2, True)
    assert not target.exists()


def test_an_error_names_the_line_of_the_file():
    broken = read_line(2, b'{"prompt": "p",\n').failure
    assert (broken.message.partition(":")[0], broken.details["line"], broken.details["column"]) == ("line 3", 3, 16)
    assert "body" not in broken.message
    misspelt = read_line(4, b'{"promt": "p", "response": "r"}').failure
    assert misspelt.message == "line 5: promt: this field is unknown; did you mean `prompt`?"
    unknown = read_line(0, b'{"question": "p"}').failure
    assert "it has prompt and response" in unknown.message


def test_one_object_is_enough_for_jsonl_and_other_lines_fail_alone(files):
    source, target = files
    source.write_text('a note\n{"text": "x"}\n')
    assert score_file(source, target)[0] == 3
    assert [(row.get("error") or {}).get("code") for row in rows(target)] == ["invalid_json", None]


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(files):
    source, target = files
    source.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": "y"}\n')
    assert score_file(source, target)[0] == 0
    assert [row["raw"] for row in rows(target)] == [score_of("x"), score_of("y")]


def test_an_input_that_has_grown_is_gone_on_with(files):
    source, target = files
    whole = source.read_bytes()
    source.write_bytes(whole.rstrip(b"\n"))
    score_file(source, target)
    source.write_bytes(whole + b'{"text": "one more"}\n')
    exit_code, output = score_file(source, target)
    assert (exit_code, f"{N_LINES + 1} lines: {N_LINES + 1} scored, 0 without" in output) == (0, True)
    assert rows(target)[-1]["raw"] == score_of("one more")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("reward"),
        lambda row: row.update(score=row.pop("reward")),
        lambda row: row.update(reward=None),
        lambda row: row.update(reward="0.5"),
        lambda row: row.update(reward=True),
        lambda row: row.update(error={"code": "x"}),
        lambda row: row.update(reward=None, error={"code": ["x"]}),
        lambda row: row.update(reward=None, error="x"),
        lambda row: row.pop("error"),
        lambda row: row.pop("id"),
        lambda row: row.update(scored_by=None),
    ],
)
def test_a_line_without_a_reward_or_an_error_is_not_counted_as_scored(tmp_path, change):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text":"a"}\n{"text":"b"}\n')
    marks, digest = Marks("m", "c", None, "p", "s"), InputDigest()
    digest.add(b'{"text":"a"}')
    row = {"id": "0", "reward": 0.5, "error": None, "scored_by": marks.as_json(), "input_digest": digest.hex}
    whole = json.dumps(row) + "\n"
    target.write_text(whole)
    with closing(Output(target)) as out:
        out.resume(marks, source)
        assert out.n_done == 1
    change(row)
    target.write_text(changed := json.dumps(row) + "\n")
    with closing(Output(target)) as out, pytest.raises(NotContinuable, match="line 1 of"):
        out.resume(marks, source)
    assert target.read_text() == changed


def test_lines_that_failed_before_are_counted_when_a_file_is_continued(files):
    source, target = files
    source.write_text('nonsense\n{"text": "x"}\n{"text": "y"}\n')
    score_file(source, target)
    lines = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:2]))
    exit_code, output = score_file(source, target)
    assert (exit_code, "3 lines: 2 scored, 1 without a score (invalid_json 1)" in output) == (3, True)


def test_a_second_process_on_the_same_output_is_refused_and_a_killed_one_leaves_no_lock(files, tmp_path):
    source, target = files
    score_file(source, tmp_path / "undisturbed")
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    first = subprocess.Popen(command(source, target, f"--model=forward-waits:{fifo}", backend="drill"), cwd=ROOT)
    with open(fifo, "wb"):  # opened once the first one is computing
        link = tmp_path / "link"
        link.symlink_to(target)
        for name in (target, link):
            exit_code, output = score_file(source, name)
            assert (exit_code, "being written by another" in output) == (2, True)
        first.kill()
        first.wait(TIMEOUT_S)
    assert score_file(source, target)[0] == 0
    assert target.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_an_input_cannot_be_its_own_output_and_a_pipe_is_no_file(files, tmp_path):
    source, _ = files
    before = source.read_bytes()
    exit_code, output = score_file(source, source)
    assert (exit_code, "both INPUT and OUTPUT" in output) == (2, True)
    assert source.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    exit_code, output = score_file(tmp_path / "pipe", tmp_path / "out")
    assert (exit_code, "pipe is no regular file, and INPUT is read twice: write it to a file first" in output) == (
        2,
        True,
    )
    exit_code, output = score_file("/dev/stdin", tmp_path / "out")
    assert (exit_code, "is no regular file, and INPUT is read twice" in output) == (2, True)
    assert score_file(source, tmp_path / "pipe")[0] == 2
    assert not (tmp_path / "out").exists()


def test_help_says_what_may_change_between_two_runs():
    _, out, _ = run_command("score", "--help")
    said = " ".join(out.split())
    assert "An existing file is continued if its lines of INPUT are unchanged (by digest)" in said
    assert "Complete lines may be appended between two runs" in said


def test_standard_input_and_output_are_no_files(files, tmp_path):
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    source, target = files
    for arguments, name in (((source, "-"), "OUTPUT"), (("-", target), "INPUT")):
        done = subprocess.run(command(*arguments), timeout=TIMEOUT_S, check=False, **settings)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{name} is -" in done.stderr, done.stderr
        assert "name a file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_help_calls_the_two_files_by_one_name_each():
    _, out, _ = run_command("score", "--help")
    assert not re.search(r"\b(IN|OUT)\b", out)
    assert {"INPUT", "OUTPUT"} <= set(re.findall(r"\b[A-Z]+\b", out))


@pytest.mark.skipif(bool(why_none()), reason=why_none())
def test_a_full_disk_leaves_complete_lines_and_says_how_to_go_on(files, tmp_path):
    source, target = files
    score_file(source, target)
    with SmallDisk(tmp_path / "disk", 0.25) as disk:
        out = disk.folder / "out.jsonl"
        exit_code, output = score_file(source, out)
        assert (exit_code, "No space left" in output, "again to continue" in output, "Traceback" in output) == (
            2,
            True,
            True,
            False,
        )
        part = out.read_bytes()
        assert part.endswith(b"\n")
        assert target.read_bytes().startswith(part)
        (tmp_path / "moved").write_bytes(part)
    assert score_file(source, tmp_path / "moved")[0] == 0
    assert (tmp_path / "moved").read_bytes() == target.read_bytes()


def test_a_foreign_file_without_a_line_ending_is_not_eaten(files):
    source, target = files
    target.write_text("dear diary")
    exit_code, output = score_file(source, target)
    assert (exit_code, target.read_text()) == (2, "dear diary"), output


def test_files_that_are_not_there_are_said_in_words(tmp_path):
    exit_code, output = score_file(tmp_path / "nowhere", tmp_path / "out")
    assert (exit_code, "nowhere" in output, "Traceback" in output) == (2, True, False)


def test_a_line_has_its_number_as_id_and_keeps_its_own():
    assert read_line(7, b'{"text": "x"}').sample_id == "7"
    assert read_line(7, b'{"text": "x", "text": "y"}').failure.code == "invalid_json"
    assert read_line(7, b'{"id": "mine", "text": "x"}').sample_id == "mine"


def test_a_promise_of_equal_bits_that_is_broken_scores_nothing(files):
    source, target = files
    exit_code, output = score_file_in_a_process(source, target, "--model=noisy:", "--deterministic=1", backend="drill")
    assert (exit_code, "--deterministic=1, but" in output, target.read_bytes()) == (1, True, b"")
