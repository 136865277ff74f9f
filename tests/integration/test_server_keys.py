"""Files that a running server reads again: what they say counts, and one that hangs hangs nothing."""

from __future__ import annotations

import hashlib
import os

import pytest

from tests.support.service_server import Server, run_to_end, wait_until

AS = {"authorization": "Bearer the-key-that-has-leaked"}
LINE = f"ppo sha256:{hashlib.sha256(b'the-key-that-has-leaked').hexdigest()} score\n"


@pytest.mark.parametrize("take_back", [os.remove, lambda p: p.write_text(""), lambda p: p.write_text("# " + LINE)])
def test_the_only_key_can_be_taken_back_and_is_not_replaced_by_no_protection(tmp_path, take_back):
    path = tmp_path / "keys"
    path.write_text(LINE)
    with Server("--backend=echo", f"--keys-file={path}") as server:
        assert server.score({"text": "x"}, **AS).status_code == 200
        take_back(path)
        wait_until(lambda: server.score({"text": "x"}, **AS).status_code == 401, 20.0)
        assert server.score({"text": "x"}).status_code == 401
        assert server.client.get("/admin/models").status_code == 401
        server.wait_for("api_keys_reload_failed.*no key is valid")
        path.write_text(LINE)
        wait_until(lambda: server.score({"text": "x"}, **AS).status_code == 200, 20.0)


def test_a_file_that_hangs_hangs_no_request(tmp_path):
    path = tmp_path / "keys"
    path.write_text(LINE)
    with Server("--backend=echo", f"--keys-file={path}") as server:
        path.unlink()
        os.mkfifo(path)
        server.wait_for("api_keys_reload_failed.*no regular file")
        assert server.client.get("/livez").status_code == 200
        assert server.score({"text": "x"}, **AS).status_code == 200


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keys-file={}"], "no regular file"),
        (["--tls-cert-file={}", "--tls-key-file={}"], "no regular file"),
        (["--tripwires.config-file={}"], "no regular file"),
        (["--tripwires.honeypots-file={}", "--tripwires.honeypots-key-file={}"], "cannot be read"),
        (["--webhook-url=http://127.0.0.1:9", "--webhook-secret-file={}"], "cannot be read"),
        (["--tripwires.canaries-file={}"], "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused_at_the_start_and_not_waited_for(tmp_path, flags, words):
    os.mkfifo(tmp_path / "fifo")
    code, output = run_to_end("--backend=echo", "--port=0", *(flag.format(tmp_path / "fifo") for flag in flags))
    assert code == 2, output
    assert words in output, output
    assert "Traceback" not in output


ROUTES = [("GET", "/livez"), ("GET", "/metrics"), ("GET", "/model"), ("GET", "/docs"), ("POST", "/score"), ("POST", "/get_reward"),
          ("POST", "/tripwires/a/b/ack"), ("POST", "/admin/models"), ("GET", "/nothing"), ("OPTIONS", "/score")]  # fmt: skip
FOREIGN = [({"host": "evil.example"}, "host_not_allowed"), ({"origin": "https://evil.example"}, "origin_not_allowed"),
           ({"host": "rebound.example", "origin": "http://rebound.example"}, "host_not_allowed"),
           ({"origin": "null"}, "origin_not_allowed")]  # fmt: skip


def test_without_keys_no_page_of_another_site_and_no_other_name_is_answered(tmp_path):
    with Server("--backend=echo", "--allowed-hosts=rm.example", "--allowed-origins=https://lab.example") as server:
        for method, path in ROUTES:
            for headers, code in FOREIGN:
                reply = server.client.request(method, path, headers=headers, content=b"{}")
                assert (reply.status_code, reply.json()["error"]["code"]) == (403, code), (method, path, headers)
                assert "access-control-allow-origin" not in reply.headers
            for headers in ({}, {"host": "rm.example"}, {"origin": "https://lab.example"}, {"host": "localhost:1"}):
                reply = server.client.request(method, path, headers=headers, content=b"{}")
                assert "_not_allowed" not in reply.text.replace("method_not_allowed", "")
    (tmp_path / "keys").write_text(LINE)
    with Server("--backend=echo", f"--keys-file={tmp_path / 'keys'}") as server:
        for headers, _ in FOREIGN:
            assert server.score({"text": "x"}, **AS, **headers).status_code == 200
