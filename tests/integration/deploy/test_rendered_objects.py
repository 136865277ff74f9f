"""Every overlay and combination of components of k8s/README.md, rendered: of one piece; and each fault would be found."""

from __future__ import annotations

import os
import re
from copy import deepcopy
from functools import cache
from itertools import product

import pytest
import yaml

from tests.support.manifests import K8S, SERVING, build, built, needs_kubectl, of_kind, the, the_container
from tests.support.rendered import faults

pytestmark = needs_kubectl

COMPONENTS = tuple(sorted(path.name for path in (K8S / "components").iterdir() if path.is_dir()))
SCALERS = ("keda", "hpa")
GPU_ONLY = ("thresholds-gpu", "thresholds-vllm")


def included(overlay):
    """Components that an overlay has already, of those below it too."""
    kustomization = yaml.safe_load((K8S / overlay / "kustomization.yaml").read_text())
    own = [each.rpartition("/")[2] for each in kustomization.get("components", ())]
    below = [os.path.normpath(f"{overlay}/{each}") for each in kustomization["resources"]
             if each.startswith("../") and not each.endswith("/base")]  # fmt: skip
    return {*own, *(name for each in below for name in included(each))}


def combinations():
    """(overlay, components to add): with each scaler and without, no other component, each alone, and all together."""
    for overlay in SERVING:
        has = included(overlay)
        scalers = ("",) if has & {*SCALERS} else ("", *SCALERS)
        wrong = {"overlays/gpu": GPU_ONLY[1:], "overlays/vllm": GPU_ONLY[:1]}.get(overlay, GPU_ONLY)
        others = tuple(name for name in COMPONENTS if name not in (*SCALERS, *has, *wrong))
        for scaler, chosen in product(scalers, ((), *((name,) for name in others), others)):
            yield overlay, tuple(filter(None, (scaler, *chosen)))


@cache
def rendered(overlay, components, folder):
    up = os.path.relpath(K8S, folder)
    kustomization = {"namespace": "rewardserve", "resources": [f"{up}/{overlay}"],
                     "components": [f"{up}/components/{name}" for name in components]}  # fmt: skip
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("overlay", SERVING)
def test_every_combination_of_components_is_of_one_piece(overlay, tmp_path):
    found, n = {}, 0
    for base, components in combinations():
        if base == overlay:
            n += 1
            folder = tmp_path / str(n)
            folder.mkdir()
            if said := faults(rendered(base, components, folder)):
                found[components] = said
    assert n >= 1
    assert found == {}


def test_the_overlay_of_the_readme_is_of_one_piece(tmp_path):
    text = (K8S / "README.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    up = os.path.relpath(K8S, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        example.replace("../../", f"{up}/").replace("../gpu", f"{up}/overlays/gpu")
    )
    objects = build(tmp_path)
    assert faults(objects) == []
    assert the_container(objects)["image"].startswith("registry.example.org/")
    assert pod(objects)["imagePullSecrets"] == [{"name": "rewardserve-registry"}]
    assert [each["valueFrom"] for each in the_container(objects)["env"] if each["name"] == "HF_TOKEN"] == [
        {"secretKeyRef": {"name": "rewardserve-hub", "key": "token"}}
    ]


def thresholds(objects):
    """Of the queue and of the work, whichever autoscaler is there."""
    if keda := of_kind(objects, "ScaledObject"):
        return [int(each["metadata"]["threshold"]) for each in keda[0]["spec"]["triggers"][:2]]
    return [
        int(each["pods"]["target"]["averageValue"])
        for each in the(objects, "HorizontalPodAutoscaler")["spec"]["metrics"][:2]
    ]


@pytest.mark.parametrize(
    ("overlay", "component", "tokens_per_s"),
    [
        ("overlays/cpu", (), 550),
        ("overlays/gpu", ("thresholds-gpu",), 0.4 * 312e12 / (2 * 8e9)),
        ("overlays/vllm", ("thresholds-vllm",), 0.4 * 624e12 / (2 * 32e9)),
    ],
)
@pytest.mark.parametrize("scaler", SCALERS)
def test_both_autoscalers_have_the_thresholds_of_the_formula(overlay, component, tokens_per_s, scaler, tmp_path):
    found = thresholds(rendered(overlay, (scaler, *component), tmp_path))
    assert found == [round(8 * tokens_per_s), round(0.8 * tokens_per_s)]


def test_production_does_not_scale_gpus_by_the_thresholds_of_a_cpu():
    assert thresholds(built("overlays/production")) == [62_400, 6_240]


def test_the_readme_names_every_component_and_overlay():
    text = (K8S / "README.md").read_text()
    for name in (*COMPONENTS, *[each.name for each in (K8S / "overlays").iterdir()]):
        assert re.search(rf"\b{re.escape(name)}\b", text), name


# -- each fault is found --------------------------------------------------------------------------------------------------


def pod(objects):
    return the(objects, "Deployment")["spec"]["template"]["spec"]


def volume(objects, name):
    (found,) = [each for each in pod(objects)["volumes"] if each["name"] == name]
    return found


def settings_map(objects):
    (found,) = [each for each in of_kind(objects, "ConfigMap") if "REWARD_PORT" in each.get("data", {})]
    return found["data"]


def an_empty_volume_for_the_models(objects):
    """As a `$patch: replace` inside the list renders it."""
    source = volume(objects, "models")
    del source["persistentVolumeClaim"]
    source["emptyDir"] = {"sizeLimit": "1Mi"}


def two_sources(objects):
    volume(objects, "models")["emptyDir"] = {}


def without(kind):
    def mutate(objects):
        objects[:] = [each for each in objects if each["kind"] != kind]

    return mutate


def set_in(find, *path, to):
    def mutate(objects):
        place = find(objects)
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return mutate


def of(kind):
    return lambda objects: of_kind(objects, kind)[0]


def trigger(objects):
    return the(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]


MUTATIONS = {
    "an empty volume under REWARD_MODEL": (an_empty_volume_for_the_models, "not on a claim"),
    "a volume with two sources": (two_sources, "has sources"),
    "no claim": (without("PersistentVolumeClaim"), "neither exists nor is documented"),
    "another claim": (
        set_in(lambda o: volume(o, "models"), "persistentVolumeClaim", "claimName", to="others"),
        "others",
    ),
    "no priority class": (without("PriorityClass"), "PriorityClass"),
    "no service account": (without("ServiceAccount"), "ServiceAccount"),
    "a secret of no document": (
        set_in(lambda o: volume(o, "keys"), "secret", "secretName", to="who-knows"),
        "who-knows",
    ),
    "an entry of a secret of no document": (
        set_in(settings_map, "REWARD_KEYS_FILE", to="/etc/rewardserve/nokeys"),
        "nokeys",
    ),
    "a mount without a volume": (
        lambda o: the_container(o)["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
        "mounted without",
    ),
    "a volume that nothing mounts": (
        lambda o: pod(o)["volumes"].append({"name": "x", "emptyDir": {}}),
        "without being mounted",
    ),
    "a setting that there is not": (set_in(settings_map, "REWARD_ADMISION__MAX_TOKENS", to="1"), "no settings"),
    "a value that does not parse": (
        set_in(settings_map, "REWARD_DRAIN_TIMEOUT_S", to="a minute"),
        "refuses its settings",
    ),
    "a value that contradicts another": (
        set_in(settings_map, "REWARD_MAX_BODY_BYTES", to="999999999999"),
        "refuses its settings",
    ),
    "a model that is no folder": (
        set_in(settings_map, "REWARD_MODEL", to="org/model"),
        "no folder that could be watched",
    ),
    "a state folder on the image": (
        set_in(settings_map, "REWARD_TRIPWIRES__STATE_DIR", to="/var/lib/state"),
        "lies on no volume",
    ),
    "a state folder on a read-only mount": (
        set_in(settings_map, "REWARD_TRIPWIRES__STATE_DIR", to="/models/state"),
        "read-only mount",
    ),
    "no place for temporary files": (
        lambda o: the_container(o)["volumeMounts"].remove({"name": "tmp", "mountPath": "/tmp"}),
        "/tmp cannot be written",
    ),
    "another port": (set_in(settings_map, "REWARD_PORT", to="8001"), "listens on 8001"),
    "another name of the port": (set_in(the_container, "ports", 0, "name", to="web"), "asks port http"),
    "a probe of no route": (set_in(the_container, "livenessProbe", "httpGet", "path", to="/healthz"), "/healthz"),
    "a probe that needs a key": (
        set_in(the_container, "readinessProbe", "httpGet", "path", to="/model"),
        "without a key",
    ),
    "no time to drain": (set_in(pod, "terminationGracePeriodSeconds", to=30), "are needed"),
    "a rollout that fails while a model loads": (
        set_in(of("Deployment"), "spec", "progressDeadlineSeconds", to=60),
        "failed rollout",
    ),
    "requests below limits": (
        set_in(the_container, "resources", "requests", to={"cpu": "1", "memory": "1Gi"}),
        "are not limits",
    ),
    "no GPU": (
        lambda o: [the_container(o)["resources"][each].pop("nvidia.com/gpu") for each in ("limits", "requests")],
        "GPUs",
    ),
    "a volume in memory beyond the limit": (
        set_in(lambda o: volume(o, "tmp"), "emptyDir", to={"medium": "Memory", "sizeLimit": "20Gi"}),
        "volumes in memory",
    ),
    "a cache too small for a model": (
        set_in(lambda o: volume(o, "cache"), "emptyDir", "sizeLimit", to="1Gi"),
        "does not fit",
    ),
    "another group than the volumes'": (set_in(pod, "securityContext", "fsGroup", to=0), "fsGroup"),
    "a service of no pod": (
        set_in(of("Service"), "spec", "selector", to={"app.kubernetes.io/name": "x"}),
        "chooses no pod",
    ),
    "a service of no port": (set_in(of("Service"), "spec", "ports", 0, "targetPort", to="grpc"), "sends to port grpc"),
    "Prometheus kept out": (
        lambda o: the(o, "NetworkPolicy")["spec"]["ingress"][0]["from"].pop(),
        "keeps Prometheus out",
    ),
    "trainers kept out": (lambda o: the(o, "NetworkPolicy")["spec"]["ingress"][0]["from"].pop(0), "keeps trainers out"),
    "another port let in": (
        set_in(of("NetworkPolicy"), "spec", "ingress", 0, "ports", 0, "port", to=9000),
        "keeps Prometheus out",
    ),
    "no names": (lambda o: the(o, "NetworkPolicy")["spec"]["egress"].pop(0), "out of reach"),
    "a policy of other pods": (
        set_in(of("NetworkPolicy"), "spec", "podSelector", "matchLabels", to={"app": "x"}),
        "chooses the server's pods",
    ),
    "a monitor of both services": (
        lambda o: the(o, "ServiceMonitor")["spec"]["selector"]["matchLabels"].pop("app.kubernetes.io/component"),
        "chooses 2 Services",
    ),
    "a monitor of another port": (
        set_in(of("ServiceMonitor"), "spec", "endpoints", 0, "port", to="metrics"),
        "asks port metrics",
    ),
    "a monitor of another path": (
        set_in(of("ServiceMonitor"), "spec", "endpoints", 0, "path", to="/prometheus"),
        "no route",
    ),
    "metrics that need a key": (set_in(settings_map, "REWARD_METRICS_KEY_REQUIRED", to="1"), "brings none"),
    "a count beside the autoscaler": (
        set_in(of("Deployment"), "spec", "replicas", to=2),
        "by the manifest and by an autoscaler",
    ),
    "an autoscaler of nothing": (set_in(of("ScaledObject"), "spec", "scaleTargetRef", "name", to="x"), "autoscalers"),
    "a budget for all replicas": (set_in(of("ScaledObject"), "spec", "minReplicaCount", to=1), "a drained node"),
    "a budget of other pods": (
        set_in(of("PodDisruptionBudget"), "spec", "selector", "matchLabels", to={"a": "b"}),
        "0 disruption budgets",
    ),
    "a query of no metric": (
        set_in(trigger, "query", to='sum(reward_queue_length{namespace="rewardserve"})'),
        "no metric",
    ),
    "a query of no label": (
        set_in(trigger, "query", to='sum(rewardserve_queue_tokens{kind="x",namespace="rewardserve"})'),
        "for labels ['kind']",
    ),
    "a query of another namespace": (
        set_in(trigger, "query", to='sum(rewardserve_queue_tokens{namespace="x"})'),
        "another namespace",
    ),
    "an object in another namespace": (set_in(of("Deployment"), "metadata", "namespace", to="default"), "namespaces"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_of_the_production_overlay_is_found(name):
    mutate, words = MUTATIONS[name]
    objects = deepcopy(built("overlays/production"))
    assert faults(objects) == []
    mutate(objects)
    found = faults(objects)
    assert any(words in said for said in found), found


def test_a_small_shared_memory_is_found_where_a_model_is_spread_over_gpus():
    objects = deepcopy(built("overlays/vllm"))
    volume(objects, "shm")["emptyDir"]["sizeLimit"] = "64Mi"
    assert any("/dev/shm" in said for said in faults(objects))


def test_a_metric_that_the_adapter_does_not_make_is_found(tmp_path):
    objects = deepcopy(rendered("overlays/cpu", ("hpa",), tmp_path))
    the(objects, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"] = "queue"
    assert any("the adapter does not make" in said for said in faults(objects))
