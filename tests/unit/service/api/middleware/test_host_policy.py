"""Which requests a web page or another site's name could have caused: they are refused where there are no keys."""

from __future__ import annotations

import socket

import pytest

from rewardserve.service.api.middleware.host_policy import HostPolicy
from rewardserve.service.errors import HostNotAllowed, OriginNotAllowed

LOCAL = HostPolicy(is_loopback=True)
OPEN = HostPolicy(
    is_loopback=False, hosts=["rm.example.org", "*.svc.cluster.local"], origins=["https://lab.example.org"]
)


def check(sites, host=None, origin=None, server=("127.0.0.1", 8000)):
    said = {b"accept": "*/*", b"host": host, b"origin": origin}
    headers = [(name, value.encode("latin-1")) for name, value in said.items() if value is not None]
    sites.check({"type": "http", "headers": headers, "server": server})


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "localhost.", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3",
                                  "[::1]:8000", "[::1]", socket.gethostname(), None])  # fmt: skip
@pytest.mark.parametrize("sites", [LOCAL, OPEN])
def test_names_and_addresses_of_this_machine_are_its_own(sites, host):
    for _ in range(2):
        check(sites, host)


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io", "evil", "",
    ":8000", "localhost@evil.example", "0.0.0.0", "0.0.0.0:8000", "[::]", "2130706433", "0x7f000001", "127.1", "[evil]",
    "[::1].evil", "[::1", "[::ffff:8.8.8.8]", "\xff", "*", "*.evil.example", "10.0.0.7",
])  # fmt: skip
def test_any_other_name_is_refused_on_loopback(host):
    for _ in range(2):
        with pytest.raises(HostNotAllowed) as refused:
            check(LOCAL, host)
        assert "evil" not in refused.value.message


def test_a_server_that_others_reach_answers_to_addresses_and_to_the_names_that_it_was_given():
    for host in (
        "10.0.0.7",
        "192.168.1.5:8000",
        "[2001:db8::1]:80",
        "rm.example.org:443",
        "RM.example.org",
        "a.svc.cluster.local",
    ):
        check(OPEN, host)
    for host in (
        "example.org",
        "evil.rm.example.org",
        "svc.cluster.local",
        "asvc.cluster.local",
        "a.svc.cluster.local.evil",
        "0.0.0.0",
    ):
        with pytest.raises(HostNotAllowed):
            check(OPEN, host)
    check(HostPolicy(is_loopback=True, hosts=["*"]), "anything")


def test_the_address_that_a_connection_came_to_is_its_own():
    check(LOCAL, "10.0.0.7:8000", server=("10.0.0.7", 8000))
    with pytest.raises(HostNotAllowed):
        check(LOCAL, "10.0.0.8:8000", server=("10.0.0.7", 8000))


@pytest.mark.parametrize("origin", [
    "https://evil.example", "null", "http://localhost:3000", "http://localhost", "https://localhost:8000.evil.example", "", "file://",
    "http://127.0.0.1:8000", "localhost:8000", "http://localhost:8000/", "chrome-extension://x",
])  # fmt: skip
def test_a_page_of_another_origin_is_refused(origin):
    with pytest.raises(OriginNotAllowed):
        check(LOCAL, "localhost:8000", origin)


def test_pages_of_this_server_and_those_that_were_named_may_ask():
    check(LOCAL, "localhost:8000", "http://localhost:8000")
    check(LOCAL, "LOCALHOST:8000", "http://localhost:8000")
    check(OPEN, "rm.example.org", "https://rm.example.org")
    check(OPEN, "10.0.0.7", "https://lab.example.org")
    with pytest.raises(OriginNotAllowed):
        check(OPEN, "10.0.0.7", "https://lab.example.org.evil")
    check(HostPolicy(is_loopback=True, origins=["*"]), "localhost", "https://evil.example")
