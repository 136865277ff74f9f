"""Login, scopes and forms of the console, without a browser: what an attacker sends."""

from __future__ import annotations

import contextlib
import io
import re
import signal

import httpx
import pytest

from rewardserve.service.cli import keys
from tests.console.conftest import train
from tests.support.service_server import Server, wait_until

TOKEN = re.compile(r'name="token" value="([0-9a-f]+)"')


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Keys by name, and the file that has them."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    return file, {}


@pytest.fixture(scope="module")
def server(tmp_path_factory, made):
    file, known = made
    for name, *flags in (
        ("trainer", "--scopes=score"), ("boss", "--scopes=admin,review"), ("ops", "--scopes=admin"), ("ann", "--scopes=review"),
        ("of-a", "--scopes=admin,review", "--runs=a"),
    ):  # fmt: skip
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert keys.main([name, str(file), *flags]) == 0
        known[name] = out.getvalue().split()[-1]
    folder = tmp_path_factory.mktemp("state")
    flags = ["--backend=echo", "echo", "--capture=share:1", f"--tripwires.state-dir={folder}", f"--keys-file={file}"]
    with Server(*flags) as server:
        train(server, 1, run="b", headers={"authorization": f"Bearer {known['trainer']}"})
        reader = {"authorization": f"Bearer {known['ann']}"}
        wait_until(lambda: server.client.get("/review/samples?run=b", headers=reader).json()["samples"] != [], 20.0)
        yield server


@pytest.fixture
def log_in():
    """A client with the session of a key, and the reply to the login."""
    with contextlib.ExitStack() as stack:

        def log_in(server, key, target=""):
            client = stack.enter_context(httpx.Client(base_url=server.url, timeout=30.0))
            token = TOKEN.search(client.get("/console/login").text).group(1)
            return client, client.post("/console/login", data={"token": token, "key": key, "next": target})

        yield log_in


def form(client, path, **fields):
    """Send a form with the token of a page of this session."""
    token = TOKEN.search(client.get("/console").text).group(1)
    return client.post(f"/console{path}", data={"token": token, **fields})


def test_without_a_session_every_page_leads_to_the_login(server):
    for path in ("", "/run?run=b", "/queue", "/loop", "/models", "/sample/1", "/sample/1/response.txt"):
        reply = httpx.get(f"{server.url}/console{path}")
        assert reply.status_code == 303
        assert reply.headers["location"].startswith("/console/login?next=%2Fconsole")
    assert httpx.get(f"{server.url}/console/events").status_code == 401
    for path in ("/acknowledge", "/label", "/undo", "/models/activate", "/logout"):
        assert httpx.post(f"{server.url}/console{path}").status_code == 401


def test_the_cookie_is_for_the_console_alone_and_new_at_each_login(server, made, log_in):
    client, reply = log_in(server, made[1]["boss"])
    assert reply.status_code == 303
    cookie = reply.headers["set-cookie"]
    assert all(each in cookie for each in ("HttpOnly", "SameSite=lax", "Path=/console"))
    assert made[1]["boss"] not in cookie
    value = client.cookies["rewardserve_console"]
    assert httpx.get(f"{server.url}/review/runs", headers={"cookie": f"rewardserve_console={value}"}).status_code == 401
    again, _ = log_in(server, made[1]["boss"])
    assert again.cookies["rewardserve_console"] != value


CHANGES = {
    "signature": lambda c: c[:-1] + ("0" if c[-1] != "0" else "1"),
    "content": lambda c: "A" + c[1:],
    "empty": lambda c: "",
    "unsigned": lambda c: c.split(".")[0],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_cookie_is_none(server, made, change, log_in):
    client, _ = log_in(server, made[1]["boss"])
    value = change(client.cookies["rewardserve_console"])
    reply = httpx.get(f"{server.url}/console", headers={"cookie": f"rewardserve_console={value}"})
    assert reply.status_code == 303


def test_a_form_needs_the_token_of_its_session(server, made, log_in):
    boss, _ = log_in(server, made[1]["boss"])
    ann, _ = log_in(server, made[1]["ann"])
    others = TOKEN.search(ann.get("/console").text).group(1)
    for token in ("", "0" * 64, others):
        for path in ("/acknowledge", "/label", "/undo", "/models/activate", "/logout"):
            assert boss.post(f"/console{path}", data={"token": token, "run": "b", "version": "1"}).status_code == 403
    assert httpx.post(f"{server.url}/console/login", data={"key": made[1]["boss"]}).status_code == 403


def test_scopes_decide_what_is_shown(server, made, log_in):
    allowed = {
        "boss": {"/run?run=b", "/queue?run=b", "/loop", "/models"},
        "ops": {"/run?run=b", "/models"},
        "ann": {"/queue?run=b"},
        "trainer": set(),
    }
    for name, paths in allowed.items():
        client, _ = log_in(server, made[1][name])
        assert client.get("/console").status_code == 200
        for path in ("/run?run=b", "/queue?run=b", "/loop", "/models"):
            assert (client.get(f"/console{path}").status_code == 200) == (path in paths), (name, path)
    ops, _ = log_in(server, made[1]["ops"])
    assert "Describe number" not in ops.get("/console/run?run=b").text + ops.get("/console").text


def test_a_key_that_is_bound_to_runs_sees_no_other(server, made, log_in):
    client, _ = log_in(server, made[1]["of-a"])
    reader = {"authorization": f"Bearer {made[1]['ann']}"}
    number = server.client.get("/review/samples?run=b", headers=reader).json()["samples"][0]["id"]
    pair = server.client.get("/review/queue?run=b", headers=reader).json()["pairs"][0]["id"]
    for path in ("/run?run=b", "/queue?run=b", f"/sample/{number}", f"/sample/{number}/response.txt"):
        assert client.get(f"/console{path}").status_code == 404, path
    assert form(client, "/label", pair=pair, verdict="tie").status_code == 404
    assert form(client, "/acknowledge", run="b", wire="repetition").status_code == 404
    assert ">b<" not in client.get("/console").text


ELSEWHERE = [
    "https://evil.example/", "//evil.example", "/console/..//evil.example", "/\\evil", "/metrics", "/console\r\nx: y",
    "javascript:alert(1)",
]  # fmt: skip


@pytest.mark.parametrize("target", ELSEWHERE)
def test_the_login_leads_to_a_page_of_the_console_only(server, made, target, log_in):
    _, reply = log_in(server, made[1]["boss"], target)
    assert reply.headers["location"] == "/console"
    _, reply = log_in(server, made[1]["boss"], "/console/run?run=b")
    assert reply.headers["location"] == "/console/run?run=b"


def test_a_removed_key_ends_its_sessions(server, made, log_in):
    file, known = made
    client, _ = log_in(server, known["ops"])
    assert client.get("/console").status_code == 200
    content = file.read_text()
    file.write_text("".join(line for line in content.splitlines(keepends=True) if not line.startswith("ops ")))
    wait_until(lambda: client.get("/console").status_code == 303, 30.0)
    file.write_text(content)
    wait_until(lambda: client.get("/console").status_code == 200, 30.0)


def test_every_reply_forbids_scripts_of_others_and_storage(server, made, log_in):
    client, _ = log_in(server, made[1]["boss"])
    for path in ("", "/login", "/run?run=b", "/run?run=nothing", "/queue", "/loop", "/models"):
        headers = client.get(f"/console{path}").headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/console/static/../routes.py").status_code in (401, 404)
    assert client.get("/console/static/console.css").headers["content-type"].startswith("text/css")


def test_failed_logins_are_limited(tmp_path, made, log_in):
    with Server("--backend=echo", "echo", f"--keys-file={made[0]}") as server:
        found = [log_in(server, f"wrong-{n}")[1].status_code for n in range(11)]
        assert found == [401] * 10 + [429]
        assert log_in(server, made[1]["boss"])[1].status_code == 429


def test_a_server_without_keys_serves_its_own_machine_only(tmp_path):
    with Server("--backend=echo", "echo") as server:
        assert httpx.get(f"{server.url}/console").status_code == 200
        other = {"origin": "https://evil.example"}
        assert httpx.post(f"{server.url}/console/models/activate", headers=other).status_code == 403
        assert httpx.get(f"{server.url}/console", headers={"host": "evil.example"}).status_code in (403, 421)
        assert httpx.get(f"{server.url}/console/queue").status_code == 409


def test_a_server_that_stops_ends_its_events(tmp_path):
    with Server("--backend=echo", "echo") as server, httpx.stream("GET", f"{server.url}/console/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "retry: 2000"
        server.process.send_signal(signal.SIGTERM)
        for _ in lines:  # to the end of the reply
            pass
        assert server.process.wait(10) == 0


def test_a_key_that_scores_sees_neither_canaries_nor_judge(server, made, log_in):
    trainer, _ = log_in(server, made[1]["trainer"])
    boss, _ = log_in(server, made[1]["boss"])
    assert "judge" in boss.get("/console").text
    assert "judge" not in trainer.get("/console").text


def test_a_key_that_is_bound_to_runs_sees_no_sums_over_all(server, made, log_in):
    boss, _ = log_in(server, made[1]["boss"])
    reader = {"authorization": f"Bearer {made[1]['ann']}"}
    pair = server.client.get("/review/queue?run=b", headers=reader).json()["pairs"][0]["id"]
    assert form(boss, "/label", pair=pair, verdict="tie", run="b").status_code == 303
    bound, _ = log_in(server, made[1]["of-a"])
    assert "pairs labelled" in boss.get("/console/loop").text
    assert "pairs labelled" not in bound.get("/console/loop").text
