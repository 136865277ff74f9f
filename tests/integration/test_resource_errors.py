"""A machine that gives too little ends a program in words: an exit code, the remedy, and no traceback."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from tests.support.service_server import ROOT

PATIENCE_S = 110.0
SERVE = ["-m", "rewardserve", "serve", "--port=0"]


def run(arguments, *, limits=(), env=None):
    """Exit code and what was said, under these limits. It runs until it ends by itself."""

    def limit():
        for kind, value in limits:
            resource.setrlimit(kind, (value, value))

    clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=clean | {"OMP_NUM_THREADS": "1"} | (env or {}), capture_output=True,
        text=True, timeout=PATIENCE_S, check=False, preexec_fn=limit,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    (tmp_path / "recipe.yaml").write_text("{}")
    return tmp_path


def program(name, files):
    return {
        "serve": [*SERVE, "--device=cpu"],
        "score": ["-m", "rewardserve", "score", str(files / "in.jsonl"), str(files / "out.jsonl")],
        "check": ["-m", "rewardserve", "check"],
        "train": ["-m", "rewardserve", "train", "--config", str(files / "recipe.yaml")],
    }[name]


@pytest.mark.sweep(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["serve", "score", "check"])
@pytest.mark.parametrize("kib", [100_000, 1_000_000])
def test_too_little_address_space(files, name, kib):
    code, output = run(program(name, files), limits=[(resource.RLIMIT_AS, kib * 1024)])
    assert (code, "Traceback" in output) == (1, False), output
    assert "ulimit -v" in output or "annot allocate memory" in output


@pytest.mark.parametrize("name", ["serve", "train"])
def test_far_too_little_address_space_is_said_before_anything_is_imported(files, name):
    code, output = run(program(name, files), limits=[(resource.RLIMIT_AS, 200 * 2**20)])
    assert code == 1
    assert "the address space is limited to 200 MiB" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("n", [6, 10, 16, 63])
def test_too_few_descriptors(files, n):
    code, output = run(program("serve", files), limits=[(resource.RLIMIT_NOFILE, n)])
    assert (code, "Traceback" in output) == (1, False), output
    assert "ulimit -n" in output


def test_a_port_that_is_taken_and_one_that_is_not_allowed():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, output = run(["-m", "rewardserve", "serve", f"--port={taken.getsockname()[1]}", "--backend=echo"])
    assert (code, "Set --port to a free port" in output, "Traceback" in output) == (1, True, False)


THREADLESS = """
import sys, threading
def start(self): raise RuntimeError("can't start new thread")
sys.argv = ["x", *sys.argv[1:]]
import runpy
threading.Thread.start = start
runpy.run_module("rewardserve", run_name="__main__")
"""


@pytest.mark.parametrize(
    "arguments", [["serve", "--port=0", "--backend=echo"], ["score", "IN", "OUT", "--backend=echo"]]
)
def test_no_thread_to_be_had(files, arguments):
    """As `ulimit -u` does to whoever is not root."""
    named = [str(files / {"IN": "in.jsonl", "OUT": "out.jsonl"}[a]) if a in ("IN", "OUT") else a for a in arguments]
    code, output = run(["-c", THREADLESS, *named])
    assert (code, "Traceback" in output) == (1, False), output
    assert "ulimit -u" in output


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fdinfo"), reason="there is no folder here that nothing can be written into"
)
@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["serve", "score", "check"])
def test_nowhere_to_write(files, name):
    arguments = program(name, files)
    if name == "score":
        arguments[-1] = "/proc/self/fdinfo/out"
    code, output = run(arguments, env={"XDG_CACHE_HOME": "/proc/self/fdinfo"})
    assert (code in (1, 2), "Traceback" in output) == (True, False), output
    assert "/proc/self/fdinfo" in output
