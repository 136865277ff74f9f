"""The correlation within groups is that of a known mixture."""

import gzip
import json
import random

import pytest

from gym.streams.correlation import _of_run, intraclass_correlation


@pytest.mark.parametrize("share", [0.0, 0.45, 0.9])
def test_a_known_share_of_the_variance_is_found(share):
    rng = random.Random(1)
    groups = []
    for _ in range(2_000):
        common = rng.gauss(0.0, share**0.5)
        groups.append([common + rng.gauss(0.0, (1.0 - share) ** 0.5) for _ in range(rng.choice((2, 8)))])
    assert intraclass_correlation(groups) == pytest.approx(share, abs=0.04)


def test_single_responses_tell_nothing():
    assert intraclass_correlation([[1.0, 1.0], [2.0, 2.0], [9.0]]) == 1.0


def test_a_recorded_run_has_a_line_for_each_window(tmp_path):
    path = tmp_path / "run.jsonl.gz"
    rows = [
        {
            "step": i,
            "prompts": ["a", "b", "a", "b"],
            "responses": ["x", "yyy", "x", "yyy"],
            "rewards": [1.0, 2.0, 1.0, 2.0],
        }
        for i in range(12)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = list(_of_run(path, 6))
    assert [line["groups"] for line in lines] == ["12", "12"]
    assert {line["scores"] for line in lines} == {"1.00"}
