"""Faults of a rendered set of Kubernetes objects, in words: references, mounts, settings, ports, sizes, network, autoscaling.

Each check is a function of the objects alone. It reads the server's own tables (routes, settings, metrics) and nothing that is
written beside the manifests, so it holds for any overlay.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import PurePosixPath
from unittest import mock

from pydantic import ValidationError
from pydantic_settings import SettingsError

from rewardserve.service.api.route_policy import OPEN_PATHS
from rewardserve.service.api.routes.health import health_routes
from rewardserve.service.app import _MAX_CLOSING_S
from rewardserve.service.cli.options import unknown_variables
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.observability.metrics import PREFIX, TABLE, Metrics
from rewardserve.service.settings import ServeSettings
from tests.support.manifests import K8S, fits, of_kind, pod_templates

SUFFIX = re.compile(r"([KMGT]i?)?$")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip
LEAST_CACHE = 10 * 2**30
"""Size of a model from a hub, and of the caches of compilers."""
LEAST_SHM = 2**30
"""With several GPUs a replica; a container has 64 MiB by default."""
TARGET_LABELS = {"job", "instance", "namespace", "pod", "service", "le"}
READ_ONLY_SETTINGS = {"REWARD_MODEL", "REWARD_ENSEMBLE", "REWARD_KEYS_FILE", "REWARD_WEBHOOK_SECRET_FILE",
                      "REWARD_TRIPWIRES__CONFIG_FILE", "REWARD_TLS_CERT_FILE", "REWARD_TLS_KEY_FILE"}  # fmt: skip
BROUGHT = {"Secret": r"create secret (?:generic|docker-registry) {} ", "PersistentVolumeClaim": "`{}`"}
"""Objects that a user creates, and their pattern in the README."""
FROM_KUBERNETES = "7"
"""Stands for the value of a resourceFieldRef and of a secret."""


def faults(objects):
    """All faults, one sentence each."""
    return [words for check in CHECKS for words in check(objects)]


# -- lookups ------------------------------------------------------------------------------------------------------------


def size(quantity):
    """Bytes, or cores, of a quantity."""
    text = str(quantity)
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    unit = SUFFIX.search(text).group()
    return float(text.removesuffix(unit)) * UNITS[unit]


@cache
def get_routes():
    """Paths that answer GET: those of the router that the server includes."""
    router = health_routes(ActiveModels(), Metrics(), frozenset())
    return frozenset(route.path for route in router.routes if "GET" in route.methods)


def documented():
    """README and examples, which name the objects that a user creates."""
    return (K8S / "README.md").read_text() + (K8S / "base/secret.example.yaml").read_text()


def names(objects, kind):
    return {each["metadata"]["name"]: each for each in of_kind(objects, kind)}


def pods(objects):
    """(owner, pod spec, labels) of everything that starts pods."""
    for each in objects:
        for template in pod_templates(each):
            yield each, template["spec"], template["metadata"]["labels"]


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def servers(objects):
    """(deployment, pod, container, environment) of every container that listens as the server does."""
    maps = names(objects, "ConfigMap")
    for owner, pod, _ in pods(objects):
        for container in pod["containers"] if owner["kind"] == "Deployment" else ():
            yield owner, pod, container, environment(container, maps)


def environment(container, maps):
    """Variables of a container, with a placeholder for values from Kubernetes or a secret."""
    read = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            read |= maps.get(source["configMapRef"]["name"], {}).get("data", {})
    return read | {each["name"]: each.get("value", FROM_KUBERNETES) for each in container.get("env", ())}


def mount_of(container, path):
    """The mount that a path lies on, the deepest one."""
    path = PurePosixPath(path)
    found = [mount for mount in container.get("volumeMounts", ())
             if PurePosixPath(mount["mountPath"]) in (path, *path.parents)]  # fmt: skip
    return max(found, key=lambda mount: len(mount["mountPath"]), default=None)


def source_of(pod, name):
    """A volume without its name."""
    found = [volume for volume in pod.get("volumes", ()) if volume["name"] == name]
    return {key: value for key, value in found[0].items() if key != "name"} if len(found) == 1 else {}


# -- references -----------------------------------------------------------------------------------------------------------


def _references(pod):
    """(kind, name, key or None) that a pod cannot start without."""
    for volume in pod.get("volumes", ()):
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], None
        if config := volume.get("configMap"):
            yield from (("ConfigMap", config["name"], item["key"]) for item in config.get("items", [{"key": None}]))
        if secret := volume.get("secret"):
            yield "Secret", secret["secretName"], None
    for container in containers(pod):
        for source in container.get("envFrom", ()):
            yield from (("ConfigMap", ref["name"], None) for ref in [source.get("configMapRef")] if ref)
            yield from (("Secret", ref["name"], None) for ref in [source.get("secretRef")] if ref)
        for value in [each["valueFrom"] for each in container.get("env", ()) if "valueFrom" in each]:
            yield from (("ConfigMap", ref["name"], ref["key"]) for ref in [value.get("configMapKeyRef")] if ref)
            yield from (("Secret", ref["name"], ref["key"]) for ref in [value.get("secretKeyRef")] if ref)
    for kind, field in (("ServiceAccount", "serviceAccountName"), ("PriorityClass", "priorityClassName")):
        if field in pod:
            yield kind, pod[field], None
    yield from (("Secret", each["name"], None) for each in pod.get("imagePullSecrets", ()))


def references(objects):
    """Every object that is read exists, or the README names it as the user's."""
    for owner, pod, _ in pods(objects):
        for kind, name, key in _references(pod):
            found = names(objects, kind).get(name)
            if found is None and not (
                kind in BROUGHT and re.search(BROUGHT[kind].format(re.escape(name)), documented())
            ):
                yield f"{owner['kind']} reads {kind} {name}, which neither exists nor is documented as the user's"
            if found is not None and key is not None and key not in found.get("data", {}):
                yield f"{owner['kind']} reads key {key} of {kind} {name}, which has {sorted(found.get('data', {}))}"


def volumes(objects):
    """Every volume has one source and is mounted, every mount has a volume."""
    for owner, pod, _ in pods(objects):
        listed = [volume["name"] for volume in pod.get("volumes", ())]
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", ())}
        for name in {each for each in listed if listed.count(each) > 1}:
            yield f"{owner['kind']}: volume {name} is listed twice"
        for name in sorted(mounted ^ set(listed)):
            yield f"{owner['kind']}: volume {name} is mounted without being there, or there without being mounted"
        for volume in pod.get("volumes", ()):
            if len(volume) != 2:
                yield f"{owner['kind']}: volume {volume['name']} has sources {sorted(volume.keys() - {'name'})}"
        for container in containers(pod):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            if len(paths) != len(set(paths)):
                yield f"{owner['kind']}: two volumes are mounted at one path: {paths}"


# -- the server's settings and paths --------------------------------------------------------------------------------------


def settings(objects):
    """Every REWARD_ variable is a setting, and the server starts with all of them."""
    for owner, _, container, env in servers(objects):
        own = {name: value for name, value in env.items() if name.startswith("REWARD_")}
        if unknown := unknown_variables(ServeSettings, own):
            yield f"{container['name']}: no settings: {unknown}"
        outside = {name: value for name, value in os.environ.items() if not name.startswith("REWARD_")}
        with mock.patch.dict(os.environ, outside | own, clear=True):
            try:
                ServeSettings()
            except (ValidationError, SettingsError, ValueError) as error:
                yield f"{container['name']}: the server refuses its settings: {error}"
        for entry in [each for each in container.get("env", ()) if "resourceFieldRef" in each.get("valueFrom", {})]:
            if entry["valueFrom"]["resourceFieldRef"].get("containerName") != container["name"]:
                yield f"{owner['kind']}: {entry['name']} follows the resources of another container"


def model(objects):
    """A model folder lies on a claim, under a mount, and can be watched there."""
    for _, pod, container, env in servers(objects):
        for path in [env[name] for name in ("REWARD_MODEL",) if env.get(name, "").startswith("/")]:
            mount = mount_of(container, path)
            if mount is None:
                yield f"REWARD_MODEL={path} lies on no volume"
            elif "persistentVolumeClaim" not in source_of(pod, mount["name"]):
                yield f"REWARD_MODEL={path} lies on {source_of(pod, mount['name'])}, not on a claim"
        claimed = [v["name"] for v in pod.get("volumes", ()) if "persistentVolumeClaim" in v]
        used = mount_of(container, env.get("REWARD_MODEL") or "-")
        if claimed and (used is None or used["name"] not in claimed):
            yield f"volumes {claimed} are claimed, but REWARD_MODEL={env.get('REWARD_MODEL')} lies on none of them"
        if float(env.get("REWARD_SWAP__WATCH_S", 0)) and not env.get("REWARD_MODEL", "").startswith("/"):
            yield "REWARD_SWAP__WATCH_S is set, but REWARD_MODEL is no folder that could be watched"


def paths(objects):
    """Files are read from volumes, and written to volumes that can be written to; secrets have the key that is read."""
    example = documented()
    for _, pod, container, env in servers(objects):
        for name, path in env.items():
            if not path.startswith("/") or "://" in path:
                continue
            mount = mount_of(container, path)
            source = source_of(pod, mount["name"]) if mount else {}
            is_read_only = mount is not None and (
                mount.get("readOnly", False) or source.get("persistentVolumeClaim", {}).get("readOnly", False)
            )
            if mount is None:
                yield f"{name}={path} lies on no volume"
            elif is_read_only and name not in READ_ONLY_SETTINGS:
                yield f"{name}={path} is written to, but lies on a read-only mount"
            elif "secret" in source and not re.search(rf"\b{re.escape(PurePosixPath(path).name)}\b", example):
                yield f"{name}={path} is an entry of Secret {source['secret']['secretName']} that is documented nowhere"
        if container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            for folder in ("/tmp", env.get("HOME", "/root")):
                mount = mount_of(container, folder)
                if mount is None or mount.get("readOnly"):
                    yield f"{folder} cannot be written to: the image is read-only, and no writable volume is there"
        if env.get("HOME") is None or env.get("HF_HOME") is None:
            yield "HOME or HF_HOME is not set: downloads would go to the image"


def probes(objects):
    """Probes use routes without authentication at the server's port, and leave time for a model load and a drain."""
    for owner, pod, container, env in servers(objects):
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container.get(kind, {}).get("httpGet", {})
            if get.get("path") not in get_routes() & OPEN_PATHS:
                yield f"{kind} asks for {get.get('path')}, which the server does not answer without a key"
            if get.get("port") not in ports:
                yield f"{kind} asks port {get.get('port')}, the container has {sorted(ports)}"
            if get.get("scheme", "HTTP") != ("HTTPS" if env.get("REWARD_TLS_CERT_FILE") else "HTTP"):
                yield f"{kind} speaks {get.get('scheme', 'HTTP')}, the server does not"
        if env.get("REWARD_PORT") not in {str(port) for port in ports.values()}:
            yield f"the server listens on {env.get('REWARD_PORT')}, the container's ports are {ports}"
        if env.get("REWARD_HOST") != "0.0.0.0":
            yield f"the server listens at {env.get('REWARD_HOST')}, out of reach of the kubelet"
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = env.get("REWARD_DRAIN_TIMEOUT_S", "60")
        needed = before + (float(drain) if drain.isdigit() else 60.0) + _MAX_CLOSING_S
        if pod.get("terminationGracePeriodSeconds", 30) < needed:
            yield f"terminationGracePeriodSeconds is {pod.get('terminationGracePeriodSeconds')}, {needed:g} are needed"
        startup = container.get("startupProbe", {})
        if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) >= owner["spec"].get(
            "progressDeadlineSeconds", 600
        ):
            yield "a slow load counts as a failed rollout: progressDeadlineSeconds is shorter than the startup probe"


# -- resources --------------------------------------------------------------------------------------------------------------


def resources(objects):
    """Requests are limits; GPUs are as many as the model is spread over; volumes of memory fit into the limit."""
    for _, pod, container, env in servers(objects):
        given = container.get("resources", {})
        limits, requests = given.get("limits", {}), given.get("requests", {})
        if limits != requests or not {"cpu", "memory"} <= limits.keys():
            yield f"requests {requests} are not limits {limits}"
        spread = int(env.get("REWARD_VLLM__TENSOR_PARALLEL", 1)) * int(env.get("REWARD_VLLM__PIPELINE_PARALLEL", 1))
        wanted = spread if env.get("REWARD_DEVICE", "").startswith("cuda") else 0
        if int(limits.get("nvidia.com/gpu", 0)) != wanted:
            yield f"{limits.get('nvidia.com/gpu', 0)} GPUs for a model that is spread over {wanted}"
        sizes = {v["name"]: v["emptyDir"] for v in pod.get("volumes", ()) if "emptyDir" in v}
        in_memory = sum(size(e.get("sizeLimit", 0)) for e in sizes.values() if e.get("medium") == "Memory")
        if in_memory > 0.5 * size(limits.get("memory", 0)):
            yield f"{in_memory / 2**30:g} GiB of volumes in memory, with a limit of {limits.get('memory')} for everything"
        shm = mount_of(container, "/dev/shm")
        if spread > 1 and (shm is None or size(sizes.get(shm["name"], {}).get("sizeLimit", 0)) < LEAST_SHM):
            yield f"/dev/shm is smaller than {LEAST_SHM} bytes for {spread} GPUs of one model"
        cache_dir = mount_of(container, env.get("HF_HOME", "/"))
        if cache_dir and size(sizes.get(cache_dir["name"], {}).get("sizeLimit", 2**60)) < LEAST_CACHE:
            yield f"the cache is {sizes[cache_dir['name']]}, a model does not fit"
        if (fs_group := pod.get("securityContext", {}).get("fsGroup")) != pod.get("securityContext", {}).get(
            "runAsGroup"
        ):
            yield f"fsGroup {fs_group} is not the server's group: it cannot write to its volumes"


# -- services, network, scraping --------------------------------------------------------------------------------------------


def services(objects):
    """Each Service selects existing pods, at a port that they have."""
    for service in of_kind(objects, "Service"):
        chosen = [(pod, labels) for _, pod, labels in pods(objects) if fits(labels, service["spec"]["selector"])]
        if not chosen:
            yield f"Service {service['metadata']['name']} chooses no pod"
        for port in service["spec"]["ports"]:
            wanted = port.get("targetPort", port["port"])
            for pod, _ in chosen:
                ports = {p["name"]: p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())}
                if wanted not in {*ports, *ports.values()}:
                    yield f"Service {service['metadata']['name']} sends to port {wanted}, pods have {ports}"


def network(objects):
    """A network policy allows trainers and Prometheus at the server's port, and DNS and hubs from the server."""
    policies = [p["spec"] for p in of_kind(objects, "NetworkPolicy")]
    for _, pod, labels in [each for each in pods(objects) if each[0]["kind"] == "Deployment"]:
        ports = {p["name"] for c in pod["containers"] for p in c.get("ports", ())}
        ports |= {p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())}
        in_force = [p for p in policies if fits(labels, p["podSelector"]["matchLabels"])]
        if policies and not in_force:
            yield "no network policy chooses the server's pods"
        for policy in in_force:
            ways = [way for way in policy.get("ingress", ()) if {port["port"] for port in way["ports"]} & ports]
            let_in = [peer for way in ways for peer in way["from"]]
            if not any(_is_prometheus(peer, objects) for peer in let_in):
                yield "the network policy keeps Prometheus out"
            if not any("namespaceSelector" in p and "podSelector" not in p for p in let_in):
                yield "the network policy keeps trainers out"
            out = {(p.get("protocol"), p["port"]) for way in policy.get("egress", ()) for p in way["ports"]}
            if not {("UDP", 53), ("TCP", 53), ("TCP", 443)} <= out:
                yield f"the network policy lets the server out to {sorted(out)} only: names or hubs are out of reach"


def _is_prometheus(peer, objects):
    """Whether a peer is the Prometheus of the autoscaler's query; without one, that of kube-prometheus-stack."""
    addresses = {t["metadata"].get("serverAddress", "") for s in of_kind(objects, "ScaledObject")
                 for t in s["spec"]["triggers"]}  # fmt: skip
    namespaces = {a.split("//")[1].split(":")[0].split(".")[1] for a in addresses if a} or {"monitoring"}
    namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return namespace in namespaces and labels == {"app.kubernetes.io/name": "prometheus"}


def scraping(objects):
    """A monitor selects one Service, at a port and a path that it has, with a key where one is required."""
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        chosen = [s for s in of_kind(objects, "Service") if fits(s["metadata"].get("labels", {}), wanted)]
        if len(chosen) != 1:
            yield f"the ServiceMonitor chooses {len(chosen)} Services; each pod is to be scraped once"
        for endpoint in monitor["spec"]["endpoints"]:
            ports = {port.get("name") for service in chosen for port in service["spec"]["ports"]}
            if endpoint["port"] not in ports:
                yield f"the ServiceMonitor asks port {endpoint['port']}, the Service has {sorted(ports)}"
            if endpoint.get("path", "/metrics") not in get_routes():
                yield f"the ServiceMonitor asks for {endpoint['path']}, which is no route of the server"
            needs_key = any(e.get("REWARD_METRICS_KEY_REQUIRED", "0") not in ("0", "false")
                            for *_, e in servers(objects))  # fmt: skip
            if needs_key and "authorization" not in endpoint:
                yield "/metrics needs a key, and the ServiceMonitor brings none"
        for service in chosen:
            if monitor["spec"].get("jobLabel") not in service["metadata"]["labels"]:
                yield f"the Service has no label {monitor['spec'].get('jobLabel')} to take the job's name from"


# -- autoscaling, disruptions, queries ----------------------------------------------------------------------------------------


def scaling(objects):
    """At most one autoscaler a Deployment, which is the only one that sets its count, with a floor that survives a drain."""
    scalers = [*of_kind(objects, "ScaledObject"), *of_kind(objects, "HorizontalPodAutoscaler")]
    for deployment in of_kind(objects, "Deployment"):
        name = deployment["metadata"]["name"]
        own = [s["spec"] for s in scalers if s["spec"]["scaleTargetRef"]["name"] == name]
        if len(own) > 1 or len(own) != len(scalers):
            yield f"{len(scalers)} autoscalers, {len(own)} of them for Deployment {name}"
        if bool(own) == ("replicas" in deployment["spec"]):
            yield "replicas are set by the manifest and by an autoscaler, or by neither"
        floor = min([deployment["spec"].get("replicas", 1)]
                    if not own else [s.get("minReplicaCount", s.get("minReplicas", 1)) for s in own])  # fmt: skip
        budgets = [b["spec"] for b in of_kind(objects, "PodDisruptionBudget")
                   if fits(deployment["spec"]["template"]["metadata"]["labels"], b["spec"]["selector"]["matchLabels"])]  # fmt: skip
        if len(budgets) != 1:
            yield f"{len(budgets)} disruption budgets for Deployment {name}"
        for budget in budgets:
            if int(budget.get("maxUnavailable", 1)) >= floor or int(budget.get("minAvailable", 0)) >= floor:
                yield f"a drained node may take all of {floor} replicas, or none: {budget}"


def _queries(objects):
    """(where, PromQL, namespace in the query or None) of autoscalers and rules."""
    for scaled in of_kind(objects, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            yield f"trigger {trigger['name']}", trigger["metadata"]["query"], scaled["metadata"]["namespace"]
    for rules in of_kind(objects, "PrometheusRule"):
        for rule in [rule for group in rules["spec"]["groups"] for rule in group["rules"]]:
            yield f"rule {rule.get('alert') or rule.get('record')}", rule["expr"], None


def queries(objects):
    """Queries use metrics and labels of the server or of a recording rule, in the deployed namespace."""
    labels = {PREFIX + row.name: set(row.labels) for row in TABLE}
    labels |= {f"{PREFIX}{row.name}_{end}": set(row.labels) for row in TABLE if row.kind == "histogram"
               for end in ("bucket", "count", "sum")}  # fmt: skip
    recorded = {rule["record"] for rules in of_kind(objects, "PrometheusRule")
                for group in rules["spec"]["groups"] for rule in group["rules"] if "record" in rule}  # fmt: skip
    for where, query, namespace in _queries(objects):
        for name, inside in re.findall(r"\b(reward[\w:]*_[\w:]+)\s*(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', query)):
            known = labels.get(name, set()) if ":" not in name else None
            if name not in labels and name not in recorded:
                yield f"{where} asks for {name}, which is no metric of the server"
            asked = set(re.findall(r"(\w+)\s*[=!]", inside))
            if known is not None and name in labels and not asked <= known | TARGET_LABELS:
                yield f"{where} asks {name} for labels {sorted(asked - known - TARGET_LABELS)}"
        if namespace is not None and set(re.findall(r'namespace="([^"]*)"', query)) != {namespace}:
            yield f"{where} asks about another namespace than {namespace}"
    adapted = set(re.findall(r"as: (\w+)", (K8S / "components/hpa/adapter-rules.yaml").read_text()))
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["pods"]["metric"]["name"] not in adapted:
                yield f"the autoscaler asks for {metric['pods']['metric']['name']}, which the adapter does not make"


def namespaces(objects):
    """All objects are in one namespace, which exists."""
    spaces = {
        each["metadata"].get("namespace") for each in objects if each["kind"] not in ("Namespace", "PriorityClass")
    }
    if spaces != {each["metadata"]["name"] for each in of_kind(objects, "Namespace")}:
        yield f"objects are in {sorted(map(str, spaces))}, namespaces that are made are others"


CHECKS = (references, volumes, settings, model, paths, probes, resources, services, network, scraping, scaling, queries,
          namespaces)  # fmt: skip
