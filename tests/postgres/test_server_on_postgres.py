"""A server that captures to a Postgres, also while that is down."""

from __future__ import annotations

import pytest

from tests.integration.test_server_review import FLAGS, captured, send
from tests.support.service_server import Server, wait_until

pytest.importorskip("psycopg", reason="psycopg is not installed: make test-postgres")

from tests.postgres.cluster import Cluster


def test_scoring_goes_on_while_postgres_is_down_and_nothing_is_lost():
    with Cluster() as cluster, Server(*FLAGS, "--capture=share:1", f"--review.database={cluster.url}") as server:
        send(server)
        wait_until(lambda: len(captured(server)) == 64, 30.0)
        cluster.stop()
        results = send(server, 4, first=1)
        assert all(each["reward"] is not None for each in results.values())
        server.wait_for("capture_failed")
        assert server.client.get("/review/samples").json()["error"]["code"] == "review_unavailable"
        assert "rewardserve@" not in server.client.get("/review/samples").text
        cluster.start()
        server.wait_for("capture_recovered.*dropped=0")
        wait_until(lambda: len(captured(server)) == 320, 30.0)


def test_a_server_starts_and_scores_without_its_postgres():
    with Cluster() as cluster:
        cluster.stop()
        with Server(*FLAGS, "--capture=share:1", f"--review.database={cluster.url}") as server:
            assert len(send(server)) == 64
            cluster.start()
            wait_until(lambda: server.client.get("/review/runs").status_code == 200, 60.0)
            wait_until(lambda: len(captured(server)) == 64, 60.0)


def test_two_servers_share_one_postgres():
    with Cluster() as cluster:
        flags = [*FLAGS, "--capture=share:1", f"--review.database={cluster.url}"]
        with Server(*flags) as one, Server(*flags) as other:
            send(one, run="a")
            send(other, run="b")
            for server in (one, other):
                wait_until(lambda server=server: len(server.client.get("/review/runs").json()["runs"]) == 2, 30.0)
                wait_until(lambda server=server: len(captured(server, "a")) == len(captured(server, "b")) == 64, 30.0)
