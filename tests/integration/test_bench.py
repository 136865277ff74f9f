"""`rewardserve bench` against real servers: one that it starts, one that runs, and ones that refuse."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import run_command
from tests.support.refusing_server import RefusingServer
from tests.support.service_server import ROOT, TIMEOUT_S, Server, wait_until

SAMPLE = '{"id": "a", "prompt": "p", "response": "r"}\n'


def start(*arguments, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REWARD_")}
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import sys; "
    program += "from rewardserve.cli import main; sys.exit(main(['bench', *sys.argv[1:]]))"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=clean | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def bench(*arguments, **env):
    return run_command("bench", *arguments, env=env)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo") as running:
        yield running


def test_a_server_is_started_measured_and_ended(tmp_path):
    out = tmp_path / "out.json"
    folder = tmp_path / "state"
    code, text, said = bench(
        "echo", "--samples=200", "--concurrency=3", "--per-request=8", f"--json={out}",
        REWARD_BACKEND="echo", REWARD_PORT="1", REWARD_KEYS_FILE="/no/such/file", REWARD_TRIPWIRES__STATE_DIR=str(folder),
        REWARD_SHARED_PORT="1",
    )  # fmt: skip
    assert code == 0, said
    record = json.loads(out.read_text())
    assert record["samples"] == {"scored": 200, "from_cache": 0, "failed": {}}
    assert record["requests"] == {"sent": 25, "answered": 25, "refused": {}, "retry_after_s": None, "failed": {}}
    assert record["server"]["started_here"]
    assert record["server"]["model"]["model"] == "echo"
    assert record["cpu"]["server_s"] > 0
    assert record["samples_per_s"] == pytest.approx(200 / record["seconds"], rel=0.01)
    assert record["tokens_per_s"] > 100 * record["samples_per_s"]
    assert "(200 scored in " in text
    assert not folder.exists(), "the folders of a production server are left alone"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(record["server"]["url"].rpartition(":")[2])), 1.0)


def test_a_running_server_is_measured_and_left_running(server, tmp_path):
    path, out = tmp_path / "samples.jsonl", tmp_path / "out.json"
    path.write_text(SAMPLE + "nonsense\n" + '{"input_ids": [999999]}\n')
    code, text, said = bench("--url", server.url, "--file", path, "--samples=8", f"--json={out}", "--run=b-1")
    assert code == 3, said
    record = json.loads(out.read_text())
    assert record["samples"]["scored"] == 4
    assert record["samples"]["failed"] == {"token_out_of_vocabulary": 4}
    assert "no score      4 of 8 samples: token_out_of_vocabulary 4" in text
    assert "left out      lines of the file that are no samples: invalid_json 1" in text
    assert record["cpu"]["server_s"] is None
    assert "b-1" in json.dumps(server.client.get("/tripwires").json())


def test_a_server_that_refuses_is_reported_as_such(tmp_path):
    out = tmp_path / "out.json"
    with Server(
        "--backend=echo", "echo:delay_ms=50", "--admission.max-samples=16", "--max-samples-per-request=16"
    ) as small:
        code, text, _ = bench("--url", small.url, "--seconds=1", "--concurrency=8", "--per-request=16", f"--json={out}")
    record = json.loads(out.read_text())
    assert code == 3
    assert record["requests"]["refused"]["503 overloaded"] > 0
    assert record["requests"]["answered"] > 0
    assert record["requests"]["failed"] == {}
    assert record["requests"]["retry_after_s"][0] >= 1
    assert "503 overloaded" in text
    assert "Retry-After" in text


def test_a_key_is_sent_from_its_file_and_its_lack_is_named(tmp_path):
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("a-key-of-a-test-server\n")
    key.write_text("a-key-of-a-test-server\n")
    with Server("--backend=echo", "echo", f"--keys-file={keys}") as closed:
        code, text, said = bench("--url", closed.url, "--samples=4")
        assert (code, text) == (1, "")
        assert "/model: 401 unauthorized: " in said
        code, text, said = bench("--url", closed.url, "--samples=4", f"--key-file={key}")
    assert code == 0, said
    assert "a-key-of-a-test-server" not in text + said


async def test_a_server_of_another_kind_is_not_measured():
    async with RefusingServer(404) as other:
        process = start("--url", other.url)
        _, said = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "404, which is no reply of RewardServe" in said


def test_a_model_that_cannot_be_served_ends_with_the_words_of_the_server():
    code, _, said = bench("/no/such/folder")
    assert code == 1
    assert "'/no/such/folder' is not a folder" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("phase", "printed"), [("starting", ""), ("measuring", "interrupted)")])
def test_a_signal_ends_the_server_and_prints_the_figures_so_far(number, phase, printed):
    process = start("echo", "--backend=echo", "--seconds=60")
    while phase not in process.stderr.readline():
        assert process.poll() is None
    servers = []
    while not servers:
        servers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert printed in text
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers), 20.0)


def test_a_server_does_not_outlive_a_killed_measurement():
    process = start("echo", "--backend=echo", "--seconds=60")
    while "measuring" not in process.stderr.readline():
        assert process.poll() is None
    (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: not Path(f"/proc/{server}").exists(), 20.0)
