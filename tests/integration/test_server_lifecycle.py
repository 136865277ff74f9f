"""How a real server starts, fills up, lets callers go and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.service.inference.batcher import FAILING_AFTER
from tests.support.command import run_command
from tests.support.service_server import ROOT, TIMEOUT_S, Server, drill, run_to_end, wait_until

GOOD = {"prompt": "hi", "response": "yes"}


def score_of(text):
    return echo_score((*text.encode(), 0))


@pytest.fixture
def gate(tmp_path):
    """A named pipe: `enter` returns when the server waits inside, `leave` lets it go on."""

    class Gate:
        path = str(tmp_path / "gate")
        _pipe = None

        def enter(self):
            self._pipe = open(self.path, "wb")  # noqa: SIM115  # closing it is what opens the gate

        def leave(self):
            if self._pipe is not None:
                self._pipe.close()

    os.mkfifo(Gate.path)
    built = Gate()
    yield built
    built.leave()


@pytest.fixture
def crowd():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def code(response):
    return response.status_code, response.json()["error"]["code"]


# -- starting -----------------------------------------------------------------------------------------------


def test_before_the_model_is_there_the_server_lives_but_is_not_ready(gate):
    with drill(f"load-waits:{gate.path}", wait_for=None) as server:
        gate.enter()
        assert server.client.get("/livez").status_code == 200
        assert code(server.client.get("/readyz")) == (503, "loading")
        refused = server.score(GOOD)
        assert code(refused) == (503, "loading")
        assert int(refused.headers["retry-after"]) >= 1
        assert code(server.client.get("/model")) == (503, "loading")
        assert server.client.get("/metrics").status_code == 200
        gate.leave()
        server.wait_for("is ready")
        assert server.client.get("/readyz").status_code == 200
        assert server.score(GOOD).status_code == 200


def test_a_server_that_gets_a_signal_while_it_loads_stops(gate):
    with drill(f"load-waits:{gate.path}", wait_for=None) as server:
        gate.enter()
        server.signal()
        assert server.ended() == 0
        gate.leave()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "start", [["-m", "rewardserve", "serve"], ["-c", "from rewardserve.cli import main; main(['serve'])"]]
)
def test_a_process_that_is_told_to_stop_while_it_still_imports_ends_with_exit_code_0(gate, tmp_path, start, number):
    (tmp_path / "uvloop.py").write_text(f"open({gate.path!r}, 'rb').read()")  # found before the real one
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, *start], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    gate.enter()
    process.send_signal(number)
    _, output = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (0, b"")


def test_a_model_that_cannot_be_loaded_is_said_in_words_and_ends_the_process():
    exit_code, output = run_to_end(
        "--port=0", "--backend=drill", "load-fails:the head is missing. Export it again.",
        module="tests.support.service_backends",
    )  # fmt: skip
    assert exit_code == 1
    assert "the head is missing. Export it again." in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (["--no-such-flag=1"], {}, "unrecognized arguments"),
        (["--port=hundred"], {}, "--port: must be a whole number"),
        (["--backend=nonsense"], {}, "--backend: must be one of"),
        (["--shape=banana"], {}, "--shape: must be one of"),
        (["--batching.max-tokens=0"], {}, "--batching.max-tokens: must be above 0"),
        ([], {"REWARD_BATCHING__MAX_TOKENS": "many"}, "REWARD_BATCHING__MAX_TOKENS: must be a whole number"),
        (["--max-input-tokens=4096", "--batching.max-tokens=1024"], {}, "--max-input-tokens=4096 exceeds"),
        (["--host=0.0.0.0"], {}, "--allow-unauthenticated=1"),
        (["--keys-file=/no/such/file"], {}, "--keys-file=/no/such/file"),
        (["--cap-low=2", "--cap-high=1"], {}, "is not below"),
        (["--overload-status=500"], {}, "--overload-status: must be one of 503, 429"),
    ],
)
def test_settings_that_make_no_sense_are_said_in_words_with_exit_code_2(flags, env, words):
    exit_code, _, output = run_command("serve", "--backend=echo", *flags, env=env)
    assert exit_code == 2
    assert words in output
    assert "Traceback" not in output


def test_a_shape_that_the_calibration_cannot_support_is_refused_at_start():
    exit_code, _, output = run_command("serve", "--backend=echo", "--port=0", "echo:speed=9")
    assert (exit_code, "unknown echo option" in output, "Traceback" in output) == (1, True, False)


@pytest.mark.parametrize(("model", "rows"), [("noisy:", 8), ("noisy-without-probes:", 16)])
def test_how_much_scores_depend_on_their_batch_is_measured_and_reported(model, rows):
    most = 0.25 * (rows - 1)
    with drill(model) as server:
        assert server.client.get("/model").json()["numeric_noise"] == {"max": most, "p99": most, "rows": rows}


BROKEN_PROMISE = "--deterministic=1, but a score depends on what else is in its batch, by up to 1.8e+00"


def test_a_promise_of_equal_bits_that_is_broken_ends_the_process_in_words():
    flags = "--port=0", "--backend=drill", "noisy:", "--deterministic=1"
    exit_code, output = run_to_end(*flags, module="tests.support.service_backends")
    assert (exit_code, BROKEN_PROMISE in output, "Traceback" in output) == (1, True, False)


def test_a_port_that_is_taken_is_said_in_words():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        exit_code, output = run_to_end("--backend=echo", f"--port={taken.getsockname()[1]}")
    assert (exit_code, "cannot listen on 127.0.0.1" in output, "Traceback" in output) == (1, True, False)


def test_settings_of_the_environment_arrive_and_misspelt_ones_are_named():
    env = {"REWARD_MAX_INPUT_TOKENS": "77", "REWARD_NORMALIZE": "off", "REWARD_SHAPE": "none",
           "REWARD_BATCHING__LINGER_MS": "0", "REWARD_MAX_INPUT_TOKEN": "3"}  # fmt: skip
    with Server("--backend=echo", env=env) as server:
        model = server.client.get("/model").json()
        assert model["limits"]["max_input_tokens"] == 77
        assert (model["pipeline"]["normalizes"], model["pipeline"]["shape"]) == (False, "none")
        assert "REWARD_MAX_INPUT_TOKEN is not a setting" in server.log
        (result,) = server.score(GOOD).json()["results"]
        assert result["reward"] == result["raw"]
        assert result["normalized"] is None


# -- keys ---------------------------------------------------------------------------------------------------


def test_with_keys_only_who_has_one_is_answered(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# team a\nfirst-key\n\nsecond-key\n")
    with Server("--backend=echo", f"--keys-file={keys}", "--host=127.0.0.1") as server:
        for key in ("first-key", "second-key"):
            assert server.score(GOOD, authorization=f"Bearer {key}").status_code == 200
            for pair in (f":{key}", f"{key}:", f"anybody:{key}"):  # http://:KEY@host/, http://KEY@host/
                basic = b64encode(pair.encode()).decode()
                assert server.score(GOOD, authorization=f"Basic {basic}").status_code == 200
        for wrong in (
            "Bearer third-key",
            "Bearer first-key x",
            "Basic first-key",
            "Basic Og==",
            "Basic !",
            "first-key",
            "Bearer",
            "# team a",
        ):
            refused = server.score(GOOD, authorization=wrong)
            assert code(refused) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert code(server.score(GOOD)) == (401, "unauthorized")
        assert code(server.client.get("/model")) == (401, "unauthorized")
        assert server.client.get("/docs").status_code == 401
        for path in ("/livez", "/readyz", "/metrics"):
            assert server.client.get(path).status_code == 200
        server.signal()
        assert server.ended() == 0
        assert "first-key" not in server.log
        assert "third-key" not in server.log


def test_keys_change_while_the_server_runs_and_the_log_names_them(tmp_path):
    path = tmp_path / "keys"

    def made(name, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "rewardserve", "keys", name, str(path), *arguments],
            capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        return {"authorization": f"Bearer {done.stdout.strip()}"}

    trainer, operator = made("ppo-7", "--requests-per-s=0.001", "--burst-s=1"), made("ops", "--scopes=admin")
    ack = "/tripwires/ppo-7/judge/ack"
    with Server("--backend=echo", f"--keys-file={path}", "--log-format=json") as server:
        assert server.score(GOOD, **trainer).status_code == 200
        limited = server.score(GOOD, **trainer)
        assert code(limited) == (429, "rate_limited")
        assert int(limited.headers["retry-after"]) > 900
        assert code(server.score(GOOD, **operator)) == (403, "forbidden")
        assert code(server.client.post(ack, headers=trainer)) == (403, "forbidden")
        assert code(server.client.post(ack, headers=operator)) == (404, "no_such_alert")
        new = made("ppo-8")
        wait_until(lambda: server.score(GOOD, **new).status_code == 200)
        path.write_text("broken sha256:nothing score\n")
        wait_until(lambda: server.score(GOOD, **new).status_code == 401 and "api_keys_reload_failed" in server.log)
        server.signal()
        assert server.ended() == 0
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    named = [(line.get("key"), line["status"]) for line in lines if line.get("route") == "/score"]
    assert named[:3] == [("ppo-7", 200), ("ppo-7", 429), ("ops", 403)]
    assert all(key["authorization"].split()[1] not in server.log for key in (trainer, operator, new))


# -- full houses, late callers, callers who leave -----------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
def test_an_overloaded_server_refuses_at_once_with_a_time_to_retry(gate, crowd, status):
    flags = ["--admission.max-samples=2", "--max-samples-per-request=2", f"--overload-status={status}"]
    with drill(f"forward-waits:{gate.path}", *flags) as server:
        inside = crowd.submit(server.score, GOOD, GOOD)
        gate.enter()
        refused = server.score(GOOD)
        assert code(refused) == (status, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["samples_in_flight"] == 2
        gate.leave()
        assert inside.result().status_code == 200
        assert server.score(GOOD).status_code == 200


def test_a_request_larger_than_the_capacity_is_refused_for_good():
    with Server("--backend=echo", "--admission.max-tokens=100", "--max-input-tokens=60") as server:
        refused = server.score(*[{"text": "x" * 1000}] * 2)
        assert code(refused) == (413, "request_too_large")
        assert "retry-after" not in refused.headers
        assert refused.json()["error"]["n_tokens"] == 120


def test_who_is_late_gets_504_while_the_forward_is_still_held(gate, crowd):
    with drill(f"forward-waits:{gate.path}") as server:
        inside = crowd.submit(server.score, GOOD)
        gate.enter()
        assert code(server.score(GOOD, x_deadline_ms="50")) == (504, "deadline_exceeded")
        assert server.metric("rewardserve_queue_samples") == 0
        gate.leave()
        assert inside.result().status_code == 200


def test_a_client_that_disconnects_leaves_the_queue_and_frees_its_capacity(gate, crowd):
    with drill(f"forward-waits:{gate.path}", "--admission.max-samples=2", "--max-samples-per-request=2") as server:
        inside = crowd.submit(server.score, GOOD)
        gate.enter()
        body = json.dumps({"samples": [{"text": "leaving"}]}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        leaver = socket.create_connection((host, int(port)))
        leaver.sendall(b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: server.metric("rewardserve_queue_samples") == 1)
        assert code(server.score({"text": "more"})) == (503, "overloaded")
        leaver.close()
        wait_until(lambda: server.metric("rewardserve_queue_samples") == 0)
        assert server.metric("rewardserve_requests_total", route="/score", code="499") == 1
        after = crowd.submit(server.score, {"text": "staying"})
        wait_until(lambda: server.metric("rewardserve_queue_samples") == 1)
        gate.leave()
        assert [inside.result().status_code, after.result().status_code] == [200, 200]


# -- ending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_under_load_everything_accepted_is_answered(gate, crowd, number):
    with drill(f"forward-waits:{gate.path}", "--batching.max-tokens=64") as server:
        asked = {i: [{"id": f"{i}/{k}", "text": f"text {i} {k}"} for k in range(5)] for i in range(12)}
        first = crowd.submit(server.score, *asked[0])
        gate.enter()
        answers = {0: first} | {i: crowd.submit(server.score, *asked[i]) for i in range(1, 12)}
        wait_until(lambda: server.metric("rewardserve_queue_samples") == 55)
        server.signal(number)
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        assert code(server.client.get("/readyz")) == (503, "shutting_down")
        assert code(server.score(GOOD)) == (503, "shutting_down")
        assert server.client.get("/livez").status_code == 200
        gate.leave()
        for i, answer in answers.items():
            response = answer.result()
            assert response.status_code == 200
            assert [r["id"] for r in response.json()["results"]] == [s["id"] for s in asked[i]]
            assert [r["raw"] for r in response.json()["results"]] == [score_of(s["text"]) for s in asked[i]]
        assert server.ended() == 0


def test_who_is_still_being_encoded_when_the_server_is_told_to_stop_is_answered_too(gate, crowd):
    with drill(f"encoder-waits:{gate.path}", "--encoder-threads=1") as server:
        accepted = crowd.submit(server.score, *[GOOD] * 40)
        gate.enter()
        server.signal()
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        gate.leave()
        assert [r["raw"] for r in accepted.result().json()["results"]] == [score_of("hi\nyes")] * 40
        assert server.ended() == 0


def test_when_the_batcher_has_ended_the_server_reports_it_and_is_to_be_restarted():
    with drill("bad-cost:") as server:
        assert server.client.get("/livez").status_code == 200
        assert code(server.score(GOOD)) == (500, "batcher_stopped")
        assert code(server.score(GOOD)) == (500, "batcher_stopped")
        assert code(server.client.get("/livez")) == (500, "batcher_stopped")
        server.signal()
        assert server.ended() == 0


def test_when_the_scorer_is_lost_the_server_reports_it_and_is_to_be_restarted():
    with drill("dies-after:1", "--cache.scores=0") as server:
        assert server.client.get("/readyz").status_code == server.client.get("/livez").status_code == 200
        (result,) = server.score(GOOD).json()["results"]
        assert result["raw"] == score_of("hi\nyes")
        assert code(server.client.get("/livez")) == (500, "scorer_dead")
        assert code(server.client.get("/readyz")) == (503, "scorer_failing")
        (result,) = server.score(GOOD).json()["results"]
        assert (result["reward"], result["error"]["code"]) == (None, "scorer_failed")
        server.signal()
        assert server.ended() == 0


def test_a_scorer_that_fails_every_batch_is_not_ready_and_still_answers():
    with drill("raises:ScorerError") as server:
        for _ in range(FAILING_AFTER):
            assert server.client.get("/readyz").status_code == 200
            (result,) = server.score(GOOD).json()["results"]
            assert result["error"]["code"] == "scorer_failed"
        refused = server.client.get("/readyz")
        assert code(refused) == (503, "scorer_failing")
        assert refused.json()["error"]["failed_batches"] == FAILING_AFTER
        assert server.client.get("/livez").status_code == 200
        assert server.score(GOOD).status_code == 200
        assert server.metric("rewardserve_batch_failures_total", reason="failed") == FAILING_AFTER + 1


def test_a_forward_that_hangs_keeps_no_request_waiting_and_the_server_recovers_when_it_ends(gate, crowd):
    with drill(f"forward-waits:{gate.path}", "--scorer-timeout-s=0.5") as server:
        waiting = [crowd.submit(server.score, GOOD), crowd.submit(server.score, {"text": "another"})]
        gate.enter()
        for answer in waiting:
            refused = answer.result()
            assert code(refused) == (503, "scorer_hanging")
            assert int(refused.headers["retry-after"]) >= 1
        assert code(server.client.get("/readyz")) == (503, "scorer_hanging")
        assert code(server.score(GOOD)) == (503, "scorer_hanging")
        assert server.metric("rewardserve_scorer_hanging") == 1
        wait_until(lambda: server.client.get("/livez").status_code == 500)
        assert code(server.client.get("/livez")) == (500, "scorer_dead")
        gate.leave()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.get("/livez").status_code == 200
        assert server.metric("rewardserve_scorer_hanging") == 0
        (result,) = server.score(GOOD).json()["results"]
        assert result["raw"] == score_of("hi\nyes")
        states = [line.split("state=")[1].split()[0] for line in server.lines if "scorer_state" in line]
        assert states == ["hanging", "lost", "healthy"]


def test_a_server_whose_scorer_hangs_still_ends_when_it_is_told_to(gate, crowd):
    with drill(f"forward-waits:{gate.path}", "--scorer-timeout-s=0.5", "--drain-timeout-s=30") as server:
        held = crowd.submit(server.score, GOOD)
        gate.enter()
        server.signal()
        assert code(held.result()) == (503, "scorer_hanging")
        assert server.ended() == 0
        gate.leave()


def test_what_is_not_finished_in_time_is_given_up_with_exit_code_1(gate, crowd):
    with drill(f"forward-waits:{gate.path}", "--drain-timeout-s=0.2") as server:
        held = crowd.submit(server.score, GOOD)
        gate.enter()
        server.signal()
        assert server.ended() == 1
        assert "--drain-timeout-s=0.2" in server.log
        assert code(held.result()) == (503, "shutting_down")
        gate.leave()


def test_an_idle_server_ends_at_once_with_exit_code_0():
    with Server("--backend=echo") as server:
        server.score(GOOD)
        server.signal()
        assert server.ended() == 0
        with pytest.raises(httpx.ConnectError):
            server.client.get("/livez")
