"""The folders of k8s/ as kubectl builds them, and lookups in their objects."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
SERVING = ("overlays/cpu", "overlays/gpu", "overlays/vllm", "overlays/production")
TRAINING = ("training/job", "training/pytorchjob")
TIMEOUT_S = 60.0
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def built(folder):
    """The objects of a folder under k8s/."""
    return build(K8S / folder)


def build(folder):
    """The objects of any folder with a kustomization."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def of_kind(objects, kind):
    return [each for each in objects if each["kind"] == kind]


def the(objects, kind):
    """The only one of its kind."""
    (found,) = of_kind(objects, kind)
    return found


def pod_templates(each):
    """The pod templates of a Deployment, a Job or a PyTorchJob; none for other kinds."""
    if each["kind"] in ("Deployment", "Job"):
        return [each["spec"]["template"]]
    if each["kind"] == "PyTorchJob":
        return [replica["template"] for replica in each["spec"]["pytorchReplicaSpecs"].values()]
    return []


def the_container(objects):
    (container,) = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def settings_of(objects):
    """The server's environment variables, as text; those with values from Kubernetes are left out."""
    container = the_container(objects)
    maps = {each["metadata"]["name"]: each.get("data", {}) for each in of_kind(objects, "ConfigMap")}
    read = [maps[source["configMapRef"]["name"]] for source in container["envFrom"]]
    own = {env["name"]: env["value"] for env in container["env"] if "value" in env}
    return {name: value for source in (*read, own) for name, value in source.items()}


def fits(labels, selector):
    """Whether a selector of a Service, or matchLabels, selects objects with these labels."""
    return bool(selector) and selector.items() <= labels.items()
