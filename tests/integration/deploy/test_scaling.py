"""What an autoscaler asks: a real Prometheus answers it about a real server, and the answers follow the load."""

from __future__ import annotations

import math
import os
import re
import shutil
import threading

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.manifests import K8S, built, needs_kubectl, the
from tests.support.prometheus import Prometheus
from tests.support.service_server import TIMEOUT_S, drill

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")

NAMESPACE, POD = "rewardserve", "rewardserve-1"
N_QUICK, N_SLOW = 16, 8
HELD = "count_over_time((rewardserve_queue_tokens > 0)[30s:250ms]) >= 8"


def keda():
    """Queries by the name of their trigger."""
    triggers = the(built("overlays/production"), "ScaledObject")["spec"]["triggers"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}


def adapter():
    """What prometheus-adapter makes of its rules when it is asked about one pod, by the name of the metric."""
    filled = {"<<.LabelMatchers>>": f'namespace="{NAMESPACE}",pod=~"{POD}"', "<<.GroupBy>>": "pod"}
    queries = {}
    for rule in yaml.safe_load((K8S / "components/hpa/adapter-rules.yaml").read_text()):
        series = {"<<.Series>>": rule["seriesQuery"].partition("{")[0], **filled}
        query = rule["metricsQuery"]
        for name, value in series.items():
            query = query.replace(name, value)
        assert "<<" not in query
        queries[rule["name"]["as"]] = query
    return queries


@needs_kubectl
def test_every_query_asks_about_the_namespace_that_is_deployed():
    objects = built("overlays/production")
    for query in keda().values():
        assert set(re.findall(r'namespace="([^"]*)"', query)) == {the(objects, "Deployment")["metadata"]["namespace"]}


def test_the_autoscaler_without_keda_asks_for_what_the_adapter_has_with_the_same_thresholds():
    hpa = yaml.safe_load((K8S / "components/hpa/horizontalpodautoscaler.yaml").read_text())["spec"]
    scaled = yaml.safe_load((K8S / "components/keda/scaledobject.yaml").read_text())["spec"]
    assert [metric["pods"]["metric"]["name"] for metric in hpa["metrics"]] == list(adapter())
    wanted = [trigger["metadata"]["threshold"] for trigger in scaled["triggers"]]
    assert [metric["pods"]["target"]["averageValue"] for metric in hpa["metrics"]] == wanted
    assert hpa["behavior"] == scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (scaled["minReplicaCount"], scaled["maxReplicaCount"])


def score(url, prompt):
    made = [{"prompt": prompt, "response": f"{prompt} {i}"} for i in range(4)]
    reply = httpx.post(f"{url}/score", json={"samples": made}, timeout=TIMEOUT_S)
    assert reply.status_code == 200, reply.text


def at_the_same_time(url, n):
    """So many requests, of which nobody waits for another; they are over when their threads are."""
    threads = [threading.Thread(target=score, args=(url, f"slow {i}"), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    return threads


def answers(prometheus, queries):
    """One number for each query."""
    found = {name: prometheus.instant(query) for name, query in queries.items()}
    assert {name: len(series) for name, series in found.items()} == dict.fromkeys(queries, 1)
    values = {name: series[0][1][0] for name, series in found.items()}
    assert not any(math.isnan(value) for value in values.values()), values
    return values


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server whose forwards wait while there is a gate, Prometheus, and what the queries said: quick, waiting, slow."""
    folder = tmp_path_factory.mktemp("scaling")
    gate = folder / "gate"
    queries = {**keda(), **adapter()}
    with (
        drill(f"waits-while-there-is:{gate}") as server,
        Prometheus(folder, [server.url], [], labels={"namespace": NAMESPACE, "pod": POD}) as prometheus,
    ):
        # Of a series that begins with its first value nobody sees it rise.
        score(server.url, "first")
        prometheus.wait_for('rewardserve_request_seconds_count{route="/score"}', TIMEOUT_S)
        for i in range(N_QUICK):
            score(server.url, f"quick {i}")
        prometheus.wait_for(f'rewardserve_request_seconds_count{{route="/score"}} > {N_QUICK}', TIMEOUT_S)
        seen = [answers(prometheus, queries)]
        os.mkfifo(gate)
        slow = at_the_same_time(server.url, N_SLOW)
        prometheus.wait_for(HELD, TIMEOUT_S)
        seen.append(answers(prometheus, queries))
        descriptor = os.open(gate, os.O_WRONLY)  # the first forward is inside; whoever comes after it finds no gate
        gate.unlink()
        os.close(descriptor)
        for thread in slow:
            thread.join(TIMEOUT_S)
        prometheus.wait_for(f'rewardserve_request_seconds_count{{route="/score"}} > {N_QUICK + N_SLOW}', TIMEOUT_S)
        seen.append(answers(prometheus, queries))
        yield server, seen


@needs_kubectl
@needs_prometheus
@pytest.mark.parametrize("name", ["queue", "rewardserve_queue_tokens"])
def test_what_waits_is_seen(world, name):
    _, (quick, waiting, _) = world
    assert quick[name] < 1 < waiting[name]


@needs_kubectl
@needs_prometheus
@pytest.mark.parametrize("name", ["work", "rewardserve_computed_tokens_per_second"])
def test_what_is_worked_off_is_seen_also_while_nothing_waits(world, name):
    _, (quick, _, _) = world
    assert quick[name] > 0


@needs_kubectl
@needs_prometheus
@pytest.mark.parametrize("name", ["p95", "rewardserve_p95_seconds"])
def test_the_guard_rises_when_requests_take_long_because_others_wait(world, name):
    _, (quick, _, slow) = world
    assert quick[name] < 1 < slow[name]


@needs_kubectl
@needs_prometheus
@pytest.mark.parametrize("name", ["p95", "rewardserve_p95_seconds"])
def test_the_guard_looks_at_every_route_that_scores_and_at_no_other(world, name):
    """By the label that the server gives to them: quick and slow requests here, and probes and scrapes beside them."""
    server, _ = world
    query = {**keda(), **adapter()}[name]
    assert re.findall(r'(?:kind|route)[!=~]+"[^"]*"', query) == ['kind="scoring"']
    server.client.get("/model")
    counted = {
        sample.labels["route"]: sample.labels["kind"]
        for family in text_string_to_metric_families(server.client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "rewardserve_requests_total"
    }
    assert counted["/score"] == "scoring"
    assert {kind for route, kind in counted.items() if route != "/score"} == {"other"}
