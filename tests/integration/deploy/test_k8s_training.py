"""The commands of the training jobs, run as they stand there by two processes that take each other for two nodes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rewardserve.model.contract import ScoringContract
from rewardserve.training.settings import recipe
from tests.support import planted_pairs as world
from tests.support.manifests import ROOT, built, needs_kubectl, of_kind, pod_templates, the

pytestmark = needs_kubectl

JOBS = ["training/job", "training/pytorchjob"]
LONGEST_S = 500


def commands(objects):
    """Those of all pod templates."""
    return [t["spec"]["containers"][0]["command"] for each in objects for t in pod_templates(each)]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def here(command, rank, port, config):
    """The command of a manifest for this machine: its address and port, one process a node, our recipe."""
    given = {"NODE_RANK": str(rank), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    replaced = {"--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": str(port)}
    arguments = []
    for word in command:
        name, equals, value = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], word).partition("=")
        arguments.append(name + equals + replaced.get(name, value))
    arguments[arguments.index("--config") + 1] = str(config)
    return arguments


def test_every_pod_of_both_jobs_runs_the_same_command():
    said = [here(command, 1, 29500, "recipe") for folder in JOBS for command in commands(built(folder))]
    assert len(said) == 3
    assert said == [said[0]] * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_meet_and_train_one_model(tmp_path):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(32))
    config = world.recipe_file(
        tmp_path / "recipe.yaml",
        model={"path": str(sft)},
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0},
        encoding={"max_tokens": 128},
        optim={"lr": 1e-3, "max_steps": 2, "batch_pairs": 8},
        output={"folder": str(tmp_path / "out"), "log_steps": 1},
    )
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    port, command = free_port(), commands(built(JOBS[0]))[0]
    nodes = [
        subprocess.Popen(here(command, rank, port, config), cwd=tmp_path, env={**os.environ, **own, "PATH": path},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=LONGEST_S)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    (state,) = (tmp_path / "out" / "steps").glob("checkpoint-*/trainer_state.json")
    # 32 pairs are two steps of two processes with eight pairs each; one process would take four.
    assert json.loads(state.read_text())["epoch"] == 1.0
    assert ScoringContract.load(tmp_path / "out" / "checkpoint").probes


@pytest.mark.parametrize("folder", JOBS)
def test_the_counts_of_nodes_and_processes_are_those_of_the_pods(folder):
    objects = built(folder)
    asked = [dict(word.partition("=")[::2] for word in command if "=" in word) for command in commands(objects)]
    n_pods = {"Job": lambda spec: spec["completions"],
              "PyTorchJob": lambda spec: sum(r["replicas"] for r in spec["pytorchReplicaSpecs"].values())}  # fmt: skip
    (job,) = [each for each in objects if each["kind"] in n_pods]
    assert {int(words["--nnodes"]) for words in asked} == {n_pods[job["kind"]](job["spec"])}
    for template, words in zip(pod_templates(job), asked, strict=True):
        resources = template["spec"]["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == words["--nproc-per-node"]
        assert resources["requests"] == resources["limits"]


def test_all_pods_of_the_indexed_job_run_at_once_and_find_the_first_by_its_name():
    objects = built("training/job")
    job, service = the(objects, "Job")["spec"], the(objects, "Service")
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (command,) = commands(objects)
    name = the(objects, "Job")["metadata"]["name"]
    assert f"--master-addr={name}-0.{service['metadata']['name']}" in command
    assert job["backoffLimit"] % job["completions"] == 0, "whole attempts"


@pytest.mark.parametrize("folder", JOBS)
def test_pods_of_a_job_reach_each_other_and_no_other_pod_reaches_them(folder):
    policy = the(built(folder), "NetworkPolicy")["spec"]
    own = {"podSelector": policy["podSelector"]}
    assert policy["ingress"] == [{"from": [own]}]
    assert {"to": [own]} in policy["egress"], "on every port: torch chooses them"
    assert all("ports" in way_out for way_out in policy["egress"] if way_out != {"to": [own]})


@pytest.mark.parametrize("folder", JOBS)
def test_the_recipe_is_one_and_lies_where_the_command_looks(folder, tmp_path):
    objects = built(folder)
    (text,) = the(objects, "ConfigMap")["data"].values()
    (tmp_path / "recipe.yaml").write_text(text)
    config = recipe.load(tmp_path / "recipe.yaml", [])
    assert config.output.resume, "a pod that comes back goes on from the last step"
    for each in objects:
        for template in pod_templates(each):
            mounts = {m["name"]: m["mountPath"] for m in template["spec"]["containers"][0]["volumeMounts"]}
            asked = commands([each])[0]
            assert asked[asked.index("--config") + 1] == f"{mounts['recipe']}/recipe.yaml"
            assert config.output.folder.startswith(mounts["output"] + "/")
            assert config.model.path.startswith(mounts["data"] + "/")
    assert of_kind(objects, "PersistentVolumeClaim")[0]["spec"]["accessModes"] == ["ReadWriteMany"]
