"""Every trainer's own client against a real server: its number, its failure, its tries, its URL.

The clients in `callers` are written from what the trainers do; the server is a process of its own.
"""

from __future__ import annotations

import asyncio
import math
import re

import httpx
import pytest

from rewardserve.model.backends.echo import echo_score
from tests.contract import callers
from tests.contract.table import CALLERS, PROMPT, RESPONSE, TEXT, gym_episode
from tests.support.refusing_server import RefusingServer
from tests.support.service_server import ROOT, Server, drill

KEY = "k-0123456789"
by_caller = pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)


class Waits:
    """Instead of sleeping: what was to be slept, and that somebody else may go on."""

    def __init__(self):
        self.seconds: list[float] = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--max-input-tokens=64", "--model-aliases=rm") as server:
        yield server


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with Server("--backend=echo", f"--keys-file={keys}", "--model-aliases=rm") as server:
        yield server


def echo_raw(text):
    """What the echo backend gives these bytes and its end id, on its own."""
    return echo_score((*text.encode(), 0))


def native(server, text):
    """What our own route says of the same text."""
    (result,) = server.score({"text": text}).json()["results"]
    return result


# -- the number -------------------------------------------------------------------------------------------------------


@by_caller
async def test_it_gets_the_score_of_what_it_sent(server, caller):
    number = await caller.ask(server.url, RESPONSE, Waits())
    expected = native(server, TEXT)
    assert expected["raw"] == echo_raw(TEXT)
    assert number == expected["raw" if caller.number == "raw" else "reward"]


@pytest.mark.parametrize("number", ["raw", "reward", "normalized"])
async def test_a_url_may_ask_for_another_of_the_three_numbers(server, number):
    expected = native(server, TEXT)[number]
    output = await callers.openrlhf(f"{server.url}/get_reward?value={number}", TEXT, PROMPT, None, Waits())
    assert output["reward"] == [expected]
    assert await callers.slime(f"{server.url}/slime?value={number}", PROMPT, RESPONSE, None, Waits()) == expected
    assert callers.llamafactory(f"{server.url}/v1/score/evaluation?value={number}", [TEXT]) == [expected]


@by_caller
async def test_an_empty_response_is_scored_where_the_caller_has_no_word_for_a_missing_score(server, caller):
    number = await caller.ask(server.url, "", Waits())
    if caller.unscorable == "masked":
        assert number is None
        return
    raw = echo_raw(PROMPT)
    assert number is not None
    assert number == raw if caller.number == "raw" else number == native(server, PROMPT)["reward"]


async def test_lists_come_back_in_order_and_in_number(server):
    texts = [f"{i}\n{'x' * (i % 7)}!" for i in range(40)]
    assert callers.llamafactory(f"{server.url}/v1/score/evaluation?value=raw", texts) == [echo_raw(t) for t in texts]
    assert callers.tei(server.url, [[text] for text in texts]) == [echo_raw(text) for text in texts]
    assert callers.sglang(server.url, texts) == [echo_raw(text) for text in texts]
    assert callers.kserve(server.url, texts) == [echo_raw(text) for text in texts]
    prompts, responses = ["q\n"] * 40, [f"answer {i}" for i in range(40)]
    rewards = callers.align_anything(f"{server.url}/get_reward?value=raw", prompts, responses)
    assert rewards == [echo_raw(p + r) for p, r in zip(prompts, responses, strict=True)]


async def test_openrlhf_with_several_urls_sends_empty_lists_and_all_are_answered(server):
    answers = await callers.openrlhf_sharded([f"{server.url}/get_reward"] * 3, [TEXT], Waits())
    assert [len(answer["rewards"]) for answer in answers] == [1, 0, 0]
    assert answers[1] == {"rewards": [], "scores": [], "extra_logs": {}}


async def test_openrlhfs_extra_logs_are_numbers_under_the_same_names_for_every_sample(server):
    logs = []
    for response in ("yes", "no", "", "x" * 50):
        output = await callers.openrlhf(f"{server.url}/get_reward", PROMPT + response, PROMPT, "label", Waits())
        logs.append(callers.openrlhf_experience(output))
    assert {frozenset(each) for each in logs} == {
        frozenset({"raw_reward", "normalized_reward", "capped", "flagged", "truncated", "reward", "scores"})
    }
    assert [each["raw_reward"] for each in logs[:2]] == [[[echo_raw(PROMPT + r)]] for r in ("yes", "no")]


async def test_slime_may_send_messages(server):
    turns = [{"role": "user", "content": "Why?"}]
    number = await callers.slime(f"{server.url}/slime", turns, RESPONSE, None, Waits())
    assert number == native(server, TEXT)["reward"]


# -- no score ---------------------------------------------------------------------------------------------------------


async def left_with(caller, url, response, waits):
    """What the trainer has in the end: a number, or one of the three ways to have none."""
    try:
        number = await caller.ask(url, response, waits)
    except Exception:
        return "raises"
    if number is None:
        return "masked" if caller.unscorable == "masked" else "reward None"
    return number


@by_caller
async def test_a_sample_that_cannot_be_scored_is_never_a_number(server, caller):
    assert await left_with(caller, server.url, "too long " * 40, Waits()) == caller.unscorable


@pytest.fixture(scope="module", params=["raises:ScorerError", "nan:"])
def failing(request):
    with drill(request.param, "--model-aliases=rm") as server:
        yield server


@by_caller
async def test_a_failing_scorer_is_never_a_number(failing, caller):
    failed = await left_with(caller, failing.url, RESPONSE, Waits())
    assert failed == ("raises" if caller.unscorable == "masked" else caller.unscorable)


async def test_a_masked_episode_has_a_failure_class_and_the_lowest_reward_beside_the_mask(server):
    answer = await callers.nemo_gym(server.url, *gym_episode("too long " * 40))
    said = answer.model_extra
    assert said["mask_sample"] is True
    assert said["instance_config"]["mask_sample"] is True
    assert said["failure_kind"] == "rewardserve:input_too_long"
    assert "64" in said["failure_reason"]
    assert said["_ng_failure_class"] == "reward_input_too_long"
    assert said["error"]["limit"] == 64
    assert answer.reward == server.client.get("/model").json()["pipeline"]["cap_low"]
    assert said["_ng_task_index"] == 7


def test_text_embeddings_inference_has_its_timings_and_its_errors(server, failing):
    answer = server.client.post("/predict", json={"inputs": [["one"], ["two", "three"]], "raw_scores": True})
    timings = {name: int(value) for name, value in answer.headers.items() if name.endswith("-time")}
    assert set(timings) == {f"x-{what}-time" for what in ("compute", "total", "tokenization", "queue", "inference")}
    assert answer.headers["x-compute-characters"] == "11"
    assert answer.headers["x-compute-tokens"] == str(len("one") + 1 + len("two\nthree") + 1)
    single = server.client.post("/predict", json={"inputs": "one"}).json()
    assert single == [{"score": pytest.approx(1 / (1 + math.exp(-echo_raw("one")))), "label": "LABEL_0"}]
    too_long = server.client.post("/predict", json={"inputs": "x" * 100, "truncate": False})
    assert (too_long.status_code, too_long.json()["error_type"]) == (422, "validation")
    reply_body = too_long.json()
    assert (reply_body["reason"], reply_body["n"], reply_body["limit"], reply_body["sample"]) == (
        "input_too_long",
        101,
        64,
        0,
    )
    failed = failing.client.post("/predict", json={"inputs": "one"})
    assert (failed.status_code, failed.json()["error_type"]) == (424, "backend")


# -- tries ------------------------------------------------------------------------------------------------------------


@by_caller
@pytest.mark.parametrize("status", [422, 429, 503])
async def test_the_table_knows_how_often_it_tries(caller, status):
    async with RefusingServer(status) as refusing:
        in_a_thread = asyncio.to_thread(asyncio.run, left_with(caller, refusing.url, RESPONSE, Waits()))
        failed = await in_a_thread
    assert refusing.n == caller.tries[status]
    assert failed == ("raises" if caller.unscorable == "masked" else caller.unscorable)


# -- the URL and the key ----------------------------------------------------------------------------------------------


def with_key(url, key):
    return url.replace("http://", f"http://:{key}@")


@by_caller
async def test_a_key_in_the_url_opens(locked, caller):
    assert await caller.ask(with_key(locked.url, KEY), RESPONSE, Waits()) is not None


@by_caller
async def test_a_wrong_key_does_not(locked, caller):
    for url in (locked.url, with_key(locked.url, "wrong")):
        assert await left_with(caller, url, RESPONSE, Waits()) in ("raises", "reward None")


@pytest.mark.parametrize("name", ["key", "api_key", "token", "access_token"])
def test_a_key_in_the_query_is_no_key_and_is_not_repeated(locked, server, name):
    body = {"query": [TEXT]}
    assert httpx.post(f"{locked.url}/get_reward?{name}={KEY}", json=body).status_code == 401
    refused = httpx.post(f"{server.url}/get_reward?{name}={KEY}", json=body)
    assert refused.status_code == 422
    assert KEY not in refused.text
    assert KEY not in server.log + locked.log


async def test_a_run_and_a_step_come_with_the_url(server):
    url = f"{server.url}/get_reward?run=ppo-7&step=120"
    for i in range(200):
        await callers.openrlhf(url, f"{PROMPT}{i}", PROMPT, None, Waits())
    run = server.client.get("/tripwires/ppo-7/details").json()
    assert run["step"] == 120
    assert run["samples"] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"samples": [{"text": TEXT}]}),
        ("/slime", {"prompt": PROMPT, "response": RESPONSE}),
        ("/classify", {"input": TEXT}),
    ],
)
def test_a_run_and_a_step_come_with_headers(server, path, body):
    run = f"headers-{path[1:]}"
    for step in range(150):
        headers = {"x-run": run, "x-step": str(step)}
        assert server.client.post(path, json=body, headers=headers).status_code == 200
    assert server.client.get(f"/tripwires/{run}/details").json()["step"] == 149


@pytest.mark.parametrize("query", ["step=-1", "step=one", "run=" + "x" * 257, "value=best", "runs=a"])
def test_a_url_that_cannot_be_meant_is_refused(server, query):
    refused = server.client.post(f"/slime?{query}", json={"prompt": "q", "response": "a"})
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "invalid_request"


# -- repeats ----------------------------------------------------------------------------------------------------------


def test_a_repeated_key_is_answered_from_memory_and_counted_once(server):
    def n_scored():
        return server.metric("rewardserve_samples_total", outcome="ok")

    body, before = {"samples": [{"text": TEXT}]}, n_scored()
    first, again = (server.client.post("/score", json=body, headers={"idempotency-key": "a"}) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert n_scored() == before + 1
    other = server.client.post("/score", json={"samples": [{"text": "b"}]}, headers={"idempotency-key": "a"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


# -- the page that says all this --------------------------------------------------------------------------------------


def test_the_page_for_trainers_says_what_was_seen_here():
    page = (ROOT / "docs" / "how-to" / "trainers.md").read_text()
    rows = {cells[0]: cells for cells in _rows(page)}
    for caller in CALLERS:
        cells = rows[caller.name]
        assert cells[1] == f"`{caller.route}`"
        assert cells[2] == caller.number
        assert cells[3] == caller.unscorable
        assert cells[4:7] == [str(caller.tries[status]) for status in (503, 429, 422)]
    assert set(rows) == {caller.name for caller in CALLERS}


def _rows(page):
    """The cells of the first table."""
    table = re.split(r"\n(?=\|)", page, maxsplit=1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
