"""That the soak would notice: its ledgers against results that are wrong in every way."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from types import SimpleNamespace

import pytest

from benchmarks.soak import SoakPlan, WorkerLog, figures
from rewardserve_client import Failure, Result, Scores

ASKED = [{"id": "a", "prompt": "p", "response": "r"}, {"id": "b", "prompt": "p", "response": ""}]
GOOD = (Result("a", reward=0.5), Result("b", error=Failure("empty_response", "m")))
SERVERS = [SimpleNamespace(exit_codes=Counter({"SIGKILL -> -9": 1, "SIGTERM -> 0": 1}))]


def seen(*results, asked=ASKED, servers=SERVERS, is_stuck=False):
    log = WorkerLog()
    log.record_sent(asked)
    if results:
        log.record_results(asked, Scores(results), lambda sample: 0.5, 0.0, 1.0)
    return figures(servers, [log], Counter(), 1.0, is_stuck=is_stuck)


def test_right_answers_are_no_breach():
    found = seen(*GOOD)
    assert found["wrong"] == []
    assert (found["samples sent"], found["with the right reward"], found["failed: empty_response"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "results",
    [
        (Result("a", reward=0.4), GOOD[1]),
        (Result("a", reward=float("nan")), GOOD[1]),
        (GOOD[0], Result("b", reward=0.5)),
        (Result("a", error=Failure("empty_response", "m")), GOOD[1]),
        (Result("x", reward=0.5), GOOD[1]),
        (GOOD[0], Result("a", reward=0.5)),
        (Result("a"), GOOD[1]),
        (),
    ],
    ids=[
        "another number",
        "NaN",
        "a number for nothing",
        "another failure",
        "another id",
        "duplicated",
        "nothing",
        "lost",
    ],
)
def test_anything_else_is(results):
    assert seen(*results)["wrong"]


def test_a_server_that_did_not_drain_is_a_breach():
    assert seen(*GOOD, servers=[SimpleNamespace(exit_codes=Counter({"SIGTERM -> 1": 1}))])["wrong"]


def test_a_soak_in_which_nothing_happened_is_a_breach():
    assert seen(*GOOD, servers=[SimpleNamespace(exit_codes=Counter())])["wrong"]
    assert seen(*GOOD, is_stuck=True)["wrong"]


def test_no_two_samples_of_a_soak_have_one_id():
    given = Namespace(seconds=60.0, backend="echo", most=50, deadline=1.0)
    plan = SoakPlan(given, ["http://a:1"], [], lambda sample: 0.0)
    calls = [next(plan.calls(worker, 0)) for worker in range(8)]
    ids = [sample["id"] for call in calls for sample in call]
    assert len(ids) == len(set(ids)) > 8
