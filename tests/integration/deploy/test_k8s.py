"""What is shipped for Kubernetes: valid, of one piece, restricted, and of the same mind as the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from pydantic_settings import SettingsError

from k8s import rules
from rewardserve.service.api.route_policy import OPEN_PATHS
from rewardserve.service.app import _MAX_CLOSING_S
from rewardserve.service.cli.options import unknown_variables
from rewardserve.service.settings import ServeSettings
from tests.support.manifests import (
    K8S,
    ROOT,
    SERVING,
    TIMEOUT_S,
    TRAINING,
    build,
    built,
    fits,
    needs_kubectl,
    of_kind,
    pod_templates,
    settings_of,
    the,
    the_container,
)

pytestmark = needs_kubectl

EVERY = (*SERVING, *TRAINING)
VERSIONS = ("1.32", "1.37")
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule", "PyTorchJob"}
LONGEST_ANNOTATION = 262_144
"""Bytes of the annotation in which `kubectl apply` keeps a copy of the object."""


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch):
    for name in [name for name in os.environ if name.startswith("REWARD_")]:
        monkeypatch.delenv(name)


def with_hpa(folder):
    """An overlay like those that are shipped, which scales without KEDA."""
    up = os.path.relpath(K8S, folder)
    kustomization = {"namespace": "rewardserve", "resources": [f"{up}/base"], "components": [f"{up}/components/hpa"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


# -- valid --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", EVERY)
def test_every_standard_object_is_what_kubernetes_knows_and_no_field_more(folder, version):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    for each in built(folder):
        if each["kind"] not in CUSTOM:
            validate(each, version, strict=True)
        # Nobody else looks into the pods of a custom resource.
        for template in pod_templates(each) if each["kind"] in CUSTOM else ():
            validate({"apiVersion": "v1", "kind": "Pod", **template}, version, strict=True)


def test_the_autoscaler_without_keda_is_valid_too(tmp_path):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    for each in with_hpa(tmp_path):
        validate(each, VERSIONS[0], strict=True)


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("ScaledObject", "cloudcoil.models.keda.v1alpha1"),
        ("ServiceMonitor", "cloudcoil.models.prometheus_operator.v1"),
        ("PrometheusRule", "cloudcoil.models.prometheus_operator.v1"),
    ],
)
def test_custom_resources_have_the_fields_of_their_operators_and_no_others(kind, module):
    model = getattr(pytest.importorskip(module, reason=f"{module} is not installed"), kind)
    given = the(built("overlays/production"), kind)
    # These models pass over what they do not know: it is missing in what they write.
    assert json.loads(model.model_validate(given).model_dump_json(by_alias=True, exclude_unset=True)) == given


@pytest.mark.parametrize("folder", EVERY)
def test_kubectl_apply_can_keep_its_copy_of_every_object(folder):
    for each in built(folder):
        assert len(json.dumps(each)) < LONGEST_ANNOTATION, each["metadata"]["name"]


# -- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", SERVING)
def test_the_server_takes_every_variable_and_value(folder, monkeypatch):
    wanted = settings_of(built(folder))
    assert unknown_variables(ServeSettings, wanted) == []
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    settings = ServeSettings()
    for name in wanted:
        if name.startswith("REWARD_"):
            first, *rest = name.removeprefix("REWARD_").lower().split("__")
            found = getattr(settings, first)
            for step in rest:
                found = getattr(found, step)
            assert str(found) == wanted[name] or float(found) == float(wanted[name]), name


def test_a_setting_that_is_misspelt_would_be_found(monkeypatch):
    monkeypatch.setenv("REWARD_TRIPWIRES__STATE_DIRECTORY", "/tmp")
    with pytest.raises(ValueError, match="state_directory"):
        ServeSettings()


@pytest.mark.parametrize("folder", SERVING)
def test_the_server_listens_where_it_is_asked(folder):
    objects = built(folder)
    (port,) = the_container(objects)["ports"]
    assert settings_of(objects)["REWARD_PORT"] == str(port["containerPort"])
    assert settings_of(objects)["REWARD_HOST"] == "0.0.0.0"
    for service in of_kind(objects, "Service"):
        (asked,) = service["spec"]["ports"]
        assert (asked["targetPort"], asked["port"]) == (port["name"], port["containerPort"])


@pytest.mark.parametrize("folder", SERVING)
def test_probes_ask_what_is_answered_without_a_key_and_means_what_they_need(folder):
    container = the_container(built(folder))
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in asked.items()} == {
        "startup": "/readyz",  # answers once the model is there
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {get["path"] for get in asked.values()} <= OPEN_PATHS
    assert {get["port"] for get in asked.values()} == {container["ports"][0]["name"]}
    startup = container["startupProbe"]
    loading_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert loading_s < the(built(folder), "Deployment")["spec"]["progressDeadlineSeconds"]


@pytest.mark.parametrize("folder", SERVING)
def test_there_is_time_to_finish_what_was_accepted(folder):
    objects = built(folder)
    pod = the(objects, "Deployment")["spec"]["template"]["spec"]
    first = the_container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(settings_of(objects)["REWARD_DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] >= first + drain + _MAX_CLOSING_S


@pytest.mark.parametrize("folder", SERVING)
def test_no_replica_goes_before_its_successor_is_there(folder):
    strategy = the(built(folder), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("folder", SERVING)
def test_a_replica_is_one_process(folder):
    container = the_container(built(folder))
    assert not {"command", "args"} & container.keys(), "the image runs `rewardserve serve`"
    assert not any("WORKERS" in name for name in settings_of(built(folder)))


# -- of one piece -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", EVERY)
def test_selectors_choose_the_pods_that_are_there(folder):
    objects = built(folder)
    labels = [template["metadata"]["labels"] for each in objects for template in pod_templates(each)]
    chosen = [
        *(each["spec"]["selector"] for each in of_kind(objects, "Service")),
        *(each["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
          for each in of_kind(objects, kind)),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(objects, "NetworkPolicy")),
        *(spread["labelSelector"]["matchLabels"] for each in of_kind(objects, "Deployment")
          for spread in each["spec"]["template"]["spec"]["topologySpreadConstraints"]),
    ]  # fmt: skip
    assert chosen or folder == "training/pytorchjob"
    for selector in chosen:
        assert all(fits(each, selector) for each in labels), selector


@pytest.mark.parametrize("folder", EVERY)
def test_everything_that_is_mounted_or_read_exists(folder):
    objects = built(folder)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    given = {("Secret", "rewardserve-keys"), ("PersistentVolumeClaim", "rewardserve-train-data")}
    for template in [template for each in objects for template in pod_templates(each)]:
        pod = template["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        asked = {
            *(("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", ())),
            *(("ConfigMap", v["configMap"]["name"]) for v in volumes.values() if "configMap" in v),
            *(("Secret", v["secret"]["secretName"]) for v in volumes.values() if "secret" in v),
            *(("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"])
              for v in volumes.values() if "persistentVolumeClaim" in v),
        }  # fmt: skip
        if "serviceAccountName" in pod:
            asked.add(("ServiceAccount", pod["serviceAccountName"]))
        if "priorityClassName" in pod:
            asked.add(("PriorityClass", pod["priorityClassName"]))
        assert asked <= names | given


@pytest.mark.parametrize("folder", SERVING)
def test_what_the_server_reads_and_writes_lies_on_a_volume(folder):
    objects = built(folder)
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in the_container(objects)["volumeMounts"]}
    settings = settings_of(objects)
    below = {name: [read_only for path, read_only in mounts.items() if value.startswith(path + "/") or value == path]
             for name, value in settings.items() if value.startswith("/")}  # fmt: skip
    reads = {"REWARD_KEYS_FILE", "REWARD_MODEL"}
    assert {name for name, found in below.items() if True in found} == reads & settings.keys()
    assert all(False in found for name, found in below.items() if name not in reads), below


@pytest.mark.parametrize("folder", SERVING)
def test_the_key_file_is_the_one_that_the_secret_makes(folder):
    pod = the(built(folder), "Deployment")["spec"]["template"]["spec"]
    (keys,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    example = yaml.safe_load((K8S / "base/secret.example.yaml").read_text())
    assert example["metadata"]["name"] == keys["secretName"]
    (mount,) = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "keys"]
    assert settings_of(built(folder))["REWARD_KEYS_FILE"] in {f"{mount}/{name}" for name in example["stringData"]}


def test_with_the_example_instead_of_keys_the_server_does_not_start(tmp_path):
    (tmp_path / "keys").write_text(yaml.safe_load((K8S / "base/secret.example.yaml").read_text())["stringData"]["keys"])
    with pytest.raises(SettingsError, match="no key"):
        ServeSettings(keys_file=tmp_path / "keys").read_keys()


@pytest.mark.parametrize("folder", EVERY)
def test_no_secret_is_in_the_repository(folder):
    assert of_kind(built(folder), "Secret") == []


def test_at_most_one_autoscaler_sets_the_replicas_of_a_deployment_and_then_no_manifest_does(tmp_path):
    seen = []
    for objects in (*map(built, SERVING), with_hpa(tmp_path)):
        scalers = [each for each in objects if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
        deployment = the(objects, "Deployment")
        assert len(scalers) <= 1
        assert bool(scalers) != ("replicas" in deployment["spec"])
        for scaler in scalers:
            assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            seen.append(scaler["kind"])
    assert seen == ["ScaledObject", "HorizontalPodAutoscaler"]


@pytest.mark.parametrize("folder", SERVING)
def test_there_are_as_many_gpus_as_a_model_is_spread_over(folder):
    objects = built(folder)
    settings, resources = settings_of(objects), the_container(objects)["resources"]
    n = int(settings.get("REWARD_VLLM__TENSOR_PARALLEL", 1)) * int(settings.get("REWARD_VLLM__PIPELINE_PARALLEL", 1))
    wanted = n if settings["REWARD_DEVICE"] == "cuda" else 0
    assert int(resources["limits"].get("nvidia.com/gpu", 0)) == wanted
    assert resources["requests"] == resources["limits"], "what is lent to others is missing when a burst comes"


def test_the_one_liner_for_clients_lists_every_address_once_and_in_order():
    text = (K8S / "README.md").read_text()
    (code,) = re.findall(r"REWARDSERVE_URL=\"\$\(python3 -c '([^']+)'\)\"", text)
    assert "rewardserve-pods.rewardserve.svc" in code
    here = code.replace("rewardserve-pods.rewardserve.svc", "localhost")
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    urls = done.stdout.strip().split(",")
    assert "http://127.0.0.1:8000" in urls
    assert urls == sorted(set(urls))


# -- restricted ---------------------------------------------------------------------------------------------------------

HARMLESS = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def complaints(pod):
    """What the restricted profile of Kubernetes, and we, have against a pod, in words."""
    of_pod = pod.get("securityContext", {})
    said = [
        (not of_pod.get("runAsNonRoot"), "may run as root"),
        (of_pod.get("runAsUser") != 10001, "is another user than the image's"),
        (of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault", "may make any system call"),
        (pod.get("automountServiceAccountToken") is not False, "has a token for the API server"),
        (any(pod.get(each) for each in ("hostNetwork", "hostPID", "hostIPC")), "shares the node's namespaces"),
        (any(not volume.keys() & HARMLESS for volume in pod["volumes"]), "mounts something of the node"),
        (any("sizeLimit" not in v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v), "may fill the node's disk"),
    ]
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        own = container.get("securityContext", {})
        said += [
            (own.get("allowPrivilegeEscalation") is not False, "may gain privileges"),
            (not own.get("readOnlyRootFilesystem"), "may write to its image"),
            (own.get("capabilities") != {"drop": ["ALL"]}, "keeps capabilities"),
            (own.get("privileged"), "is privileged"),
            ("limits" not in container["resources"], "has no limits"),
            (any("hostPort" in port for port in container.get("ports", ())), "listens on the node"),
        ]
    return [words for is_so, words in said if is_so]


@pytest.mark.parametrize("folder", EVERY)
def test_pods_are_restricted(folder):
    pods = [template["spec"] for each in built(folder) for template in pod_templates(each)]
    assert pods
    assert [complaints(pod) for pod in pods] == [[] for _ in pods]


def test_a_pod_that_is_not_restricted_would_be_found():
    assert len(complaints({"volumes": [{"hostPath": {}}], "containers": [{"resources": {}}]})) == 9


def test_only_trainers_and_prometheus_are_let_in():
    objects = built("overlays/production")
    policy = the(objects, "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    (way_in,) = policy["ingress"]
    assert [peer["namespaceSelector"]["matchLabels"] for peer in way_in["from"]] == [
        {"rewardserve/trainer": "true"},
        {"kubernetes.io/metadata.name": "monitoring"},
    ]
    assert [port["port"] for port in way_in["ports"]] == [the_container(objects)["ports"][0]["name"]]
    ports = [{(port["protocol"], port["port"]) for port in way_out["ports"]} for way_out in policy["egress"]]
    assert ports == [{("UDP", 53), ("TCP", 53)}, {("TCP", 443)}]
    assert all(way_out["to"] for way_out in policy["egress"])


# -- monitoring ---------------------------------------------------------------------------------------------------------


def test_the_rules_are_those_of_monitoring():
    assert rules.TARGET.read_text() == rules.text(), "write them again: make k8s-rules"
    groups = [g for path in rules.SOURCES for g in yaml.safe_load(path.read_text())["groups"]]
    assert the(built("overlays/production"), "PrometheusRule")["spec"]["groups"] == groups
    assert {path.name for path in rules.SOURCES} == {path.name for path in rules.SOURCES[0].parent.glob("*.yml")}


def test_the_job_of_what_is_scraped_is_the_job_of_the_autoscaler():
    objects = built("overlays/production")
    monitor = the(objects, "ServiceMonitor")["spec"]
    chosen = [
        s for s in of_kind(objects, "Service") if fits(s["metadata"]["labels"], monitor["selector"]["matchLabels"])
    ]
    assert len(chosen) == 1, "a pod behind two of them would be counted twice"
    queries = [trigger["metadata"]["query"] for trigger in the(objects, "ScaledObject")["spec"]["triggers"]]
    asked = set(re.findall(r'job="([^"]+)"', " ".join(queries)))
    assert {chosen[0]["metadata"]["labels"][monitor["jobLabel"]]} == asked
    assert "job=" not in rules.text(), "alerts know servers by their metrics"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["path"] in OPEN_PATHS
    assert endpoint["port"] == chosen[0]["spec"]["ports"][0]["name"]


def test_the_dashboards_are_those_of_monitoring():
    maps = [each for each in of_kind(built("overlays/production"), "ConfigMap")
            if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]  # fmt: skip
    files = {path.name: path.read_text() for path in (ROOT / "monitoring/grafana/dashboards").glob("*.json")}
    assert {name: text for each in maps for name, text in each["data"].items()} == files
