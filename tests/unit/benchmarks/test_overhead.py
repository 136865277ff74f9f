"""The load for the bare server: new samples only, replies that are looked at, figures that add up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import component_cost, overhead
from benchmarks.traffic import Bodies, Case
from rewardserve.model.backends.echo import END_ID, echo_score


@pytest.mark.parametrize("form", overhead.FORMS)
def test_no_sample_is_ever_asked_for_twice(form):
    bodies = Bodies(Case(form, 3), 40, seed=0)
    samples = [json.dumps(s) for _ in range(200) for s in json.loads(bodies.next_body())["samples"]]
    assert len(set(samples)) == len(samples) == 600
    assert all(len(s) < 60 * 5 + 60 for s in samples)


def test_a_wrong_score_in_a_wrong_place_is_noticed():
    asked = json.dumps({"samples": [{"input_ids": [1, 2]}, {"prompt": "a", "response": "b"}]}).encode()
    right = [{"id": "0", "raw": echo_score((1, 2, END_ID))}, {"id": "1", "raw": echo_score((*b"a\nb", END_ID))}]
    overhead.check(asked, json.dumps({"results": right}).encode())
    for wrong in (right[::-1], [{**right[0], "raw": 0.0}, right[1]]):
        with pytest.raises(RuntimeError):
            overhead.check(asked, json.dumps({"results": wrong}).encode())
    with pytest.raises(ValueError, match="argument"):
        overhead.check(asked, json.dumps({"results": right[:1]}).encode())


@pytest.mark.sweep(0)
def test_a_real_server_is_measured_and_so_is_every_stage_of_it(tmp_path):
    figures = tmp_path / "figures.json"
    few = [
        "--forms=ids",
        "--sizes=1",
        "--tokens=20",
        "--connections=2",
        "--seconds=0.2",
        "--rounds=1",
        "--component-samples=100",
    ]
    command = [sys.executable, "-m", "benchmarks.overhead", *few, "--no-tokenizing", "--json", str(figures)]
    done = subprocess.run([*command, "--max-body-bytes=100000"], capture_output=True, text=True, check=False)
    found = json.loads(figures.read_text())
    (row,) = found["http"]
    assert row["requests_per_cpu_s"] > 0
    assert done.returncode == (row["requests_per_cpu_s"] < row["target"])
    (by_component,) = found["components"]
    assert by_component["components"].keys() == {*component_cost.MEANINGS, "http"}
    assert sum(by_component["components"].values()) == pytest.approx(row["us_per_request"], abs=1)
