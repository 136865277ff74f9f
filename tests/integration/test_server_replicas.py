"""Several servers on one machine share a port: the kernel gives each connection to one that has a model."""

from __future__ import annotations

import os
import socket

import httpx
import pytest

from tests.support.service_server import Server, drill, run_to_end

ASKED = {"samples": [{"text": "a"}]}


@pytest.fixture
def port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def replica(port, model="echo"):
    return drill(model, f"--shared-port={port}")


def answered(url):
    """The answer of whoever the kernel chooses: a connection of its own."""
    return httpx.post(f"{url}/score", json=ASKED, timeout=30.0)


def n_scored(server):
    return server.metric("rewardserve_samples_total", outcome="ok")


def test_every_replica_gets_its_share_and_has_a_port_of_its_own(port):
    with replica(port) as one, replica(port) as two:
        for _ in range(64):
            assert answered(f"http://127.0.0.1:{port}").status_code == 200
        assert n_scored(one) + n_scored(two) == 64
        assert min(n_scored(one), n_scored(two)) > 8  # 32 expected, by a hash of the client's port


def test_who_still_loads_and_who_shuts_down_is_not_chosen(port, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with (
        replica(port) as one,
        Server("--backend=drill", f"load-waits:{gate}", f"--shared-port={port}",
               module="tests.support.service_backends", wait_for=None) as two,
    ):  # fmt: skip
        assert [answered(f"http://127.0.0.1:{port}").status_code for _ in range(32)] == [200] * 32
        gate.write_bytes(b"")
        two.wait_for("is ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as kept:
            kept.get("/livez")
            one.signal()
            assert one.ended() == 0
            assert [answered(f"http://127.0.0.1:{port}").status_code for _ in range(32)] == [200] * 32
        assert n_scored(two) == 32


def test_whoever_is_refused_by_a_server_that_shuts_down_is_told_to_connect_anew(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with drill(f"forward-waits:{gate}") as server, httpx.Client(base_url=server.url, timeout=1.0) as leaves:
        pipe = None
        try:
            with pytest.raises(httpx.ReadTimeout):
                leaves.post("/compare", json={"comparisons": [{"prompt": "a", "responses": ["b", "c"]}]})
            pipe = open(gate, "wb")  # noqa: SIM115  # closing it is what opens the gate
            server.signal()
            server.wait_for("draining")
            refused = server.client.post("/score", json=ASKED)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert refused.headers["connection"] == "close"
        finally:
            if pipe is not None:
                pipe.close()
        assert server.ended() == 0


def test_a_port_that_another_process_does_not_share_is_refused(port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        code, output = run_to_end("--backend=echo", "echo", "--port=0", f"--shared-port={port}")
    assert code == 1
    assert str(port) in output
    assert "Traceback" not in output
