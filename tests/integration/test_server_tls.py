"""TLS against a real server: what is spoken, who is let in, how a certificate is renewed; certificates come from openssl."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess

import httpx
import pytest

from tests.support.service_server import Server, run_to_end, wait_until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")

GOOD = {"prompt": "hi", "response": "yes"}
LARGE = [{"id": str(i), "prompt": "hi", "response": "yes " * 50} for i in range(1000)]


def openssl(*arguments, cwd):
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def authority(folder, name):
    """A certificate that signs others."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.pem", cwd=folder)  # fmt: skip


def certificate(folder, name, signer, serial):
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", "request",
            cwd=folder)  # fmt: skip
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl("x509", "-req", "-in", "request", "-CA", f"{signer}.pem", "-CAkey", f"{signer}.key", "-set_serial", str(serial),
            "-days", "2", "-extfile", "san", "-out", f"{name}.pem", cwd=folder)  # fmt: skip


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    for name in ("house", "clients", "strangers"):
        authority(folder, name)
    signed = (("server", "house", 7), ("client", "clients", 8), ("stranger", "strangers", 9), ("next", "house", 77))
    for name, signer, serial in signed:
        certificate(folder, name, signer, serial)
    return folder


def trusting(pki, name=None):
    context = ssl.create_default_context(cafile=pki / "house.pem")
    if name is not None:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def flags(folder, *more):
    return [
        "--backend=echo",
        f"--tls-cert-file={folder / 'server.pem'}",
        f"--tls-key-file={folder / 'server.key'}",
        *more,
    ]


def handshake(server, context, version=None):
    """The version that was agreed on, and the serial number of the certificate."""
    if version is not None:
        context.maximum_version = version
    address = (httpx.URL(server.url).host, httpx.URL(server.url).port)
    with (
        socket.create_connection(address, timeout=30) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
    ):
        return wrapped.version(), int(wrapped.getpeercert()["serialNumber"], 16)


def test_a_server_with_a_certificate_is_spoken_to_over_tls_alone(pki):
    with Server(*flags(pki), tls=trusting(pki)) as server:
        assert server.url.startswith("https://")
        assert server.score(GOOD).status_code == 200
        # Answers of many records, several on one connection: the transport that keeps the head of an answer is below.
        for _ in range(3):
            assert len(server.score(*LARGE).json()["rewards"]) == len(LARGE)
        assert (
            server.client.post("/score", content=b"{", headers={"content-type": "application/json"}).status_code == 400
        )
        assert handshake(server, trusting(pki)) == ("TLSv1.3", 7)
        assert handshake(server, trusting(pki), ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", 7)
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/livez")
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/livez", verify=ssl.create_default_context(cafile=pki / "strangers.pem"))
        server.signal()
        assert server.ended() == 0


def test_older_versions_are_not_spoken(pki):
    with Server(*flags(pki), tls=trusting(pki)) as server:
        host = f"127.0.0.1:{httpx.URL(server.url).port}"

        def succeeds(version):
            command = ["openssl", "s_client", "-connect", host, version, "-cipher", "ALL:@SECLEVEL=0"]
            return subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False).returncode == 0

        assert [succeeds(version) for version in ("-tls1", "-tls1_1", "-tls1_2")] == [False, False, True]


def test_with_a_client_authority_only_its_clients_are_talked_to(pki):
    more = f"--tls-client-ca-file={pki / 'clients.pem'}"
    with Server(*flags(pki, more), tls=trusting(pki, "client")) as server:
        assert server.score(GOOD).status_code == 200
        for name in (None, "stranger"):
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url + "/livez", verify=trusting(pki, name), timeout=30)
        assert server.score(GOOD).status_code == 200


def test_a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(pki, tmp_path):
    for name in ("server.pem", "server.key"):
        shutil.copy(pki / name, tmp_path / name)
    with Server(*flags(tmp_path, "--log-format=json"), tls=trusting(pki)) as server:
        assert server.score(GOOD).status_code == 200
        assert handshake(server, trusting(pki))[1] == 7
        (tmp_path / "server.key").write_text("half of a ke")
        wait_until(lambda: handshake(server, trusting(pki))[1] == 7 and "tls_reload_failed" in server.log)
        shutil.copy(pki / "next.pem", tmp_path / "server.pem")
        shutil.copy(pki / "next.key", tmp_path / "server.key")
        wait_until(lambda: handshake(server, trusting(pki))[1] == 77)
        assert server.score(GOOD).status_code == 200, "an open connection goes on"
        server.signal()
        assert server.ended() == 0
    events = [json.loads(line)["event"] for line in server.lines if line.startswith("{")]
    assert events.count("tls_reload_failed") >= 1
    assert "certificate_read" in events


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--tls-cert-file=server.pem"], "--tls-key-file"),
        (["--tls-client-ca-file=clients.pem"], "--tls-cert-file"),
        (["--tls-cert-file=server.pem", "--tls-key-file=client.key"], "and its key"),
        (["--tls-cert-file=no-such.pem", "--tls-key-file=client.key"], "no-such.pem cannot be read"),
        (
            ["--tls-cert-file=server.pem", "--tls-key-file=server.key", "--tls-client-ca-file=server.key"],
            "no certificate",
        ),
    ],
)
def test_files_that_make_no_tls_are_refused_at_the_start(pki, wrong, words):
    there = [f"{flag.partition('=')[0]}={pki / flag.partition('=')[2]}" for flag in wrong]
    code, output = run_to_end("--backend=echo", "--port=0", *there)
    assert code == 2
    assert words in output
