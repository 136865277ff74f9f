"""One model follows another in a real server: under load, by every way that leads to it, and not where it must not."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Sample
from rewardserve.model.scorer import TokenBatch
from rewardserve.service.auth.api_keys import format_line
from rewardserve.service.auth.rate_limits import UNLIMITED
from tests.support.checkpoints import edit_json, reward_model
from tests.support.service_server import Server, drill, run_to_end, wait_until

N_CLIENTS, N_SWAPS = 32, 10
TEXTS = [f"question {i} and what may be said of it" for i in range(60)]
FLAGS = ("--dtype=float32", "--cache.scores=512")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two models with equal encodings and other heads, and the score of every text by either, each row alone."""
    folder = tmp_path_factory.mktemp("swap")
    for seed, name in enumerate(("one", "two")):
        reward_model(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def scores(checkpoints):
    found = {}
    for name in ("one", "two"):
        loaded = load("torch", ModelSpec(model=str(checkpoints / name), dtype="float32", device="cpu", engine="padded"))
        for text in TEXTS:
            ids = loaded.encode(Sample(prompt=text, response="an answer to it")).ids
            found[name, text] = loaded.identity.raw(loaded.scorer.score(TokenBatch((ids,))).rows[0])
    return found


@pytest.fixture(scope="module")
def shared_server(checkpoints):
    with Server(f"{checkpoints / 'one'}", *FLAGS) as running:
        yield running


@pytest.fixture
def server(shared_server, checkpoints):
    """A server in which the model `one` has just been put into service; `now` is its version."""
    for run in overview(shared_server)["pins"]:
        admin(shared_server, "pins", run=run, version=None)
    shared_server.now = admin(shared_server, "models", model=str(checkpoints / "one")).json()["version"]
    return shared_server


def admin(server, to, **body):
    return server.client.post(f"/admin/{to}", json=body)


def overview(server):
    return server.client.get("/admin/models").json()


def raw_of(server, text, **extra):
    headers = extra.pop("headers", {})
    body = {"samples": [{"prompt": text, "response": "an answer to it"}], **extra}
    return server.client.post("/score", json=body, headers=headers)


def close(score):
    return pytest.approx(score, abs=1e-4)


# -- under load -----------------------------------------------------------------------------------------------------


async def test_no_request_is_lost_and_none_is_answered_by_another_model_than_it_names(server, checkpoints, scores):
    """32 clients, 10 swaps. Half of the texts come again and again, so the cache is asked too."""
    first, name_of = server.now, {server.now: "one"}
    loads_before = server.metric("rewardserve_model_loads_total", outcome="ok")
    gone_before = server.log.count("model_unloaded")
    failures, wrong, n_by_version, is_over = [], [], dict[int, int](), asyncio.Event()
    rng = random.Random(7)

    async def client(http, i):
        while not is_over.is_set():
            texts = [TEXTS[rng.randrange(4 if rng.random() < 0.5 else len(TEXTS))] for _ in range(rng.randint(1, 6))]
            samples = [{"prompt": text, "response": "an answer to it"} for text in texts]
            answer = await http.post("/score", json={"run": f"run-{i % 4}", "samples": samples})
            if answer.status_code != 200 or None in answer.json()["rewards"]:
                failures.append(answer.text)
                continue
            said = answer.json()
            n_by_version[said["model_version"]] = n_by_version.get(said["model_version"], 0) + 1
            name = name_of[said["model_version"]]
            pairs = zip(texts, said["results"], strict=True)
            wrong.extend((name, text) for text, r in pairs if abs(r["raw"] - scores[name, text]) > 1e-4)

    async def swap(http):
        for i in range(N_SWAPS):
            # A client may see the new version before this task sees that it is there.
            name = name_of[first + i + 1] = ("two", "one")[i % 2]
            answer = await http.post("/admin/models", json={"model": str(checkpoints / name)})
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == first + i + 1
        is_over.set()

    limits = httpx.Limits(max_connections=N_CLIENTS + 1)
    async with httpx.AsyncClient(base_url=server.url, timeout=60.0, limits=limits) as http:
        await asyncio.gather(swap(http), *(client(http, i) for i in range(N_CLIENTS)))

    assert failures == []
    assert wrong == []
    assert len(n_by_version) == N_SWAPS + 1
    left = overview(server)
    assert [m["version"] for m in left["models"]] == [first + N_SWAPS, first + N_SWAPS - 1]
    assert {m["requests_in_flight"] for m in left["models"]} == {0}
    wait_until(lambda: server.log.count("model_unloaded") >= gone_before + N_SWAPS - 1)
    assert server.metric("rewardserve_model_loads_total", outcome="ok") == loads_before + N_SWAPS
    assert "bug" not in server.log


# -- one after the other ----------------------------------------------------------------------------------------------


def test_the_new_model_answers_with_its_own_name_and_scores_and_a_rollback_brings_the_old_one_back(
    server, checkpoints, scores
):
    text = TEXTS[0]
    first = raw_of(server, text).json()
    assert (first["model_version"], first["results"][0]["raw"]) == (server.now, close(scores["one", text]))
    admin(server, "models", model=str(checkpoints / "two"))
    second = raw_of(server, text).json()
    assert (second["model_version"], second["results"][0]["raw"]) == (server.now + 1, close(scores["two", text]))
    assert second["contract"] != first["contract"]
    assert server.client.get("/readyz").json()["model_version"] == server.now + 1
    assert server.metric("rewardserve_model_version") == server.now + 1
    assert server.metric("rewardserve_model_info", state="serving", contract=second["contract"]) == 1

    back = admin(server, "models/rollback").json()
    assert (back["version"], back["serving"]) == (server.now, server.now)
    third = raw_of(server, text).json()
    assert third["results"][0] | {"cached": False} == first["results"][0] | {"cached": False}
    assert third["results"][0]["cached"]  # it is the same model: what it said before still holds


def test_a_rollback_to_what_was_let_go_of_loads_it_again(checkpoints, scores):
    with Server(f"{checkpoints / 'one'}", *FLAGS, "--swap.keep=0") as server:
        admin(server, "models", model=str(checkpoints / "two"))
        assert [m["version"] for m in overview(server)["models"]] == [2]  # keep=0
        assert admin(server, "models/rollback").json()["version"] == 3
        answer = raw_of(server, TEXTS[1]).json()
        assert (answer["model_version"], answer["results"][0]["raw"]) == (3, close(scores["one", TEXTS[1]]))
        assert admin(server, "models/rollback").json()["error"]["code"] == "nothing_to_roll_back"


def test_a_model_that_breaks_its_contract_never_serves_and_the_old_one_serves_on(server, checkpoints, tmp_path, scores):
    shutil.copytree(checkpoints / "two", tmp_path / "broken")
    edit_json(tmp_path / "broken" / "scoring_contract.json", end_text="<|somewhere else|>")
    refused_before = server.metric("rewardserve_model_loads_total", outcome="refused")
    refused = admin(server, "models", model=str(tmp_path / "broken"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "model_refused")
    assert "end" in refused.json()["error"]["message"]
    now = overview(server)
    assert (now["serving"], now["loading"]) == (server.now, None)
    assert now["refused"]["source"] == str(tmp_path / "broken")
    assert server.metric("rewardserve_model_loads_total", outcome="refused") == refused_before + 1
    assert raw_of(server, TEXTS[2]).json()["results"][0]["raw"] == close(scores["one", TEXTS[2]])
    # And the way is free for a whole one.
    assert admin(server, "models", model=str(checkpoints / "two")).status_code == 200


def test_an_invalid_request_of_an_operator_is_refused_with_the_reason(server):
    cases = {
        "nowhere": admin(server, "models", model="/nowhere/at/all"),
        "both": admin(server, "models", model="a", ensemble="b=c,d=e"),
        "one of several": admin(server, "models", ensemble="a=b"),
        "a version that is not": admin(server, "models/activate", version=999),
        "the one in service": admin(server, "models/retire", version=server.now),
        "a field that is not": admin(server, "models", path="x"),
        "a pin to nothing": admin(server, "pins", run="a", version=999),
    }
    codes = {what: (answer.status_code, answer.json()["error"]["code"]) for what, answer in cases.items()}
    assert codes == {
        "nowhere": (422, "model_refused"),
        "both": (422, "invalid_request"),
        "one of several": (422, "invalid_request"),
        "a version that is not": (409, "version_gone"),
        "the one in service": (409, "version_in_use"),
        "a field that is not": (422, "invalid_request"),
        "a pin to nothing": (409, "version_gone"),
    }


# -- pins -------------------------------------------------------------------------------------------------------------


def test_the_model_of_a_pinned_run_does_not_change_under_it(server, checkpoints, scores):
    text = TEXTS[3]
    for _ in range(2):
        raw_of(server, text, run="ppo-7", step=1)
        raw_of(server, text, run="grpo-2", step=1)
    admin(server, "pins", run="ppo-7", version=server.now)
    for name in ("two", "one", "two"):
        admin(server, "models", model=str(checkpoints / name))
    assert [m["version"] for m in overview(server)["models"]] == [server.now + 3, server.now + 2, server.now]
    pinned, other = raw_of(server, text, run="ppo-7").json(), raw_of(server, text, run="grpo-2").json()
    assert (pinned["model_version"], pinned["results"][0]["raw"]) == (server.now, close(scores["one", text]))
    assert (other["model_version"], other["results"][0]["raw"]) == (server.now + 3, close(scores["two", text]))
    foreign = server.client.post("/get_reward?run=ppo-7", json={"query": [text], "prompts": [""]})
    assert foreign.headers["x-model-version"] == str(server.now)
    assert admin(server, "models/retire", version=server.now).json()["error"]["code"] == "version_in_use"

    admin(server, "pins", run="ppo-7", version=None)
    assert raw_of(server, text, run="ppo-7").json()["model_version"] == server.now + 3
    assert [m["version"] for m in overview(server)["models"]] == [server.now + 3, server.now + 2]


def test_all_runs_of_now_may_stay_with_their_model_while_new_ones_get_the_new_one(server, checkpoints):
    raw_of(server, TEXTS[4], run="old", step=1)
    admin(server, "models", model=str(checkpoints / "two"), pin="active")
    assert overview(server)["pins"]["old"] == server.now
    assert raw_of(server, TEXTS[4], run="old").json()["model_version"] == server.now
    assert raw_of(server, TEXTS[4], run="new").json()["model_version"] == server.now + 1


def test_a_request_that_names_its_only_model_is_scored_by_it_or_by_none(server, checkpoints, scores):
    text = TEXTS[5]
    first = raw_of(server, text).json()
    only = f"{first['contract']},{first['pipeline']}"
    admin(server, "models", model=str(checkpoints / "two"))
    by_header = raw_of(server, text, headers={"x-model-digest": only}).json()
    assert (by_header["model_version"], by_header["results"][0]["raw"]) == (server.now, close(scores["one", text]))
    by_url = server.client.post(
        f"/get_reward?model_digest={first['contract']}", json={"query": [text], "prompts": [""]}
    )
    assert by_url.headers["x-model-version"] == str(server.now)
    admin(server, "models/retire", version=server.now)
    refused = raw_of(server, text, headers={"x-model-digest": only})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "digest_not_served")
    assert raw_of(server, text, headers={"x-model-digest": "sha256:1"}).json()["error"]["code"] == "invalid_request"


# -- shadow -----------------------------------------------------------------------------------------------------------


def test_a_shadow_scores_beside_and_is_visible_to_the_operator_alone(server, checkpoints, scores):
    scored_before = server.metric("rewardserve_samples_total", outcome="ok")
    loaded = admin(server, "models", model=str(checkpoints / "two"), shadow=1.0).json()
    shadow_version = server.now + 1
    assert {m["version"]: m["state"] for m in loaded["models"]}.items() >= {
        server.now: "serving", shadow_version: "shadow"}.items()  # fmt: skip
    for text in TEXTS[:12]:
        answer = server.client.post("/compare", json={"comparisons": [
            {"prompt": text, "responses": ["an answer to it", "no"]}]})  # fmt: skip
        assert answer.json()["model_version"] == server.now

    def shadow():
        return next(m for m in overview(server)["models"] if m["state"] == "shadow")["shadow"]

    wait_until(lambda: shadow()["samples"] == 24)
    seen = shadow()
    assert sum(seen["pairs"].values()) == 12
    assert server.metric("rewardserve_shadow_samples_total", outcome="compared") == 24
    assert server.metric("rewardserve_shadow_agreement", version=str(shadow_version)) == pytest.approx(
        seen["agreement"]
    )
    assert (
        server.metric("rewardserve_samples_total", outcome="ok") == scored_before + 24
    )  # those of callers, and no others

    promoted = admin(server, "models/activate", version=shadow_version).json()
    assert (promoted["serving"], promoted["models"][0]["shadow"]) == (shadow_version, None)
    assert "rewardserve_shadow_shift{" not in server.client.get("/metrics").text
    assert raw_of(server, TEXTS[0]).json()["results"][0]["raw"] == close(scores["two", TEXTS[0]])


def test_a_shadow_that_fails_spoils_nothing():
    with drill("echo") as server:
        assert admin(server, "models", model="nan:", shadow=1.0).status_code == 200
        answers = [server.score({"text": f"text {i}"}).json() for i in range(10)]
        assert all(answer["rewards"][0] is not None for answer in answers)
        assert server.client.get("/readyz").status_code == 200


# -- a load that takes its time ---------------------------------------------------------------------------------------


def test_while_one_model_is_loaded_others_wait_and_everybody_is_answered(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with drill("echo") as server, httpx.Client(base_url=server.url, timeout=0.5) as impatient:
        with pytest.raises(httpx.ReadTimeout):  # whoever asked may leave: it is loaded all the same
            impatient.post("/admin/models", json={"model": f"load-waits:{gate}"})
        assert overview(server)["loading"]["source"] == f"load-waits:{gate}"
        assert admin(server, "models", model="echo").json()["error"]["code"] == "load_in_progress"
        assert server.score({"text": "a"}).json()["model_version"] == 1
        gate.write_bytes(b"")
        wait_until(lambda: overview(server)["serving"] == 2)
        assert server.score({"text": "a"}).json()["model_version"] == 2


def test_sigterm_does_not_wait_for_a_model_that_is_being_loaded(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with drill("echo") as server, httpx.Client(base_url=server.url, timeout=0.5) as impatient:
        with pytest.raises(httpx.ReadTimeout):
            impatient.post("/admin/models", json={"model": f"load-waits:{gate}"})
        server.signal()
        assert server.ended() == 0


def test_who_waits_for_a_load_is_told_that_the_server_shuts_down(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with drill("echo") as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(admin, server, "models", model=f"load-waits:{gate}")
        wait_until(lambda: overview(server)["loading"] is not None)
        server.signal()
        reply = waiting.result()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        assert reply.headers["connection"] == "close"
        assert "x-request-id" in reply.headers
        assert server.ended() == 0
    assert "CancelledError" not in server.log


# -- SIGHUP and the watched folder ------------------------------------------------------------------------------------


def link(path, target):
    """As an exporter does it: beside, then in one step."""
    draft = path.with_name("draft")
    draft.symlink_to(target)
    os.replace(draft, path)


def test_sighup_loads_what_the_model_s_path_leads_to_now(checkpoints, tmp_path, scores):
    current = tmp_path / "current"
    link(current, checkpoints / "one")
    with Server(f"{current}", *FLAGS) as server:
        link(current, checkpoints / "two")
        assert raw_of(server, TEXTS[0]).json()["results"][0]["raw"] == close(scores["one", TEXTS[0]])
        server.signal(signal.SIGHUP)
        server.wait_for("model_serving")
        assert raw_of(server, TEXTS[0]).json()["results"][0]["raw"] == close(scores["two", TEXTS[0]])


def test_a_watched_folder_is_followed_and_what_is_half_written_is_not(checkpoints, tmp_path, scores):
    current = tmp_path / "current"
    link(current, checkpoints / "one")
    with Server(f"{current}", *FLAGS, "--swap.watch-s=0.2") as server:
        half = tmp_path / "half"
        shutil.copytree(checkpoints / "two", half)
        weights = half / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        link(current, half)
        server.wait_for("model_refused")
        assert raw_of(server, TEXTS[0]).json()["results"][0]["raw"] == close(scores["one", TEXTS[0]])
        weights.write_bytes(whole)
        server.wait_for("model_serving")
        assert raw_of(server, TEXTS[0]).json()["results"][0]["raw"] == close(scores["two", TEXTS[0]])
        assert server.metric("rewardserve_model_loads_total", outcome="refused") >= 1


def test_to_watch_what_is_no_folder_is_refused_at_start():
    code, output = run_to_end("--backend=echo", "echo", "--swap.watch-s=1")
    assert code == 2
    assert "--swap.watch-s=1, but the model is not a folder" in output


# -- watched runs -----------------------------------------------------------------------------------------------------


def test_what_is_usual_for_a_run_is_learned_anew_and_its_counters_never_fall(server, checkpoints):
    def samples_of(run):
        return server.metric("rewardserve_run_sum_total", run=run, of="samples")

    def is_measured(run):
        lines = server.client.get("/metrics").text.splitlines()
        return any(line.startswith("rewardserve_run_model_age_seconds{") and f'run="{run}"' in line for line in lines)

    def fill(n, step):
        for i in range(0, n, 16):
            texts = [f"{step} {i} {j}" for j in range(16)]
            body = [{"prompt": text, "response": "an answer"} for text in texts]
            assert server.client.post("/score", json={"run": "ppo-8", "step": step, "samples": body}).status_code == 200

    fill(64, 1)
    seen = samples_of("ppo-8")
    assert seen > 0
    assert not is_measured("ppo-8")
    admin(server, "models", model=str(checkpoints / "two"))
    fill(64, 2)
    assert samples_of("ppo-8") > seen
    assert is_measured("ppo-8")
    assert server.client.get("/tripwires/ppo-8/details").json()["samples"] == samples_of("ppo-8")


# -- who may ----------------------------------------------------------------------------------------------------------


def test_only_a_key_for_administration_changes_what_is_served(tmp_path):
    keys = {"trainer": frozenset({"score"}), "operator": frozenset({"admin"})}
    lines = [format_line(name, f"{name}-{'k' * 32}", scopes, UNLIMITED) for name, scopes in keys.items()]
    (tmp_path / "keys").write_text("\n".join(lines))
    with drill("echo", f"--keys-file={tmp_path / 'keys'}") as server:

        def told(method, path, name=None):
            headers = {"authorization": f"Bearer {name}-{'k' * 32}"} if name else {}
            answer = server.client.request(method, path, json={"model": "echo"}, headers=headers)
            return answer.status_code, answer.json().get("error", {}).get("code")

        assert told("POST", "/admin/models") == (401, "unauthorized")
        assert told("POST", "/admin/models", "trainer") == (403, "forbidden")
        assert told("GET", "/admin/models", "trainer") == (403, "forbidden")
        assert server.client.get("/metrics").text.count('rewardserve_model_loads_total{outcome="ok"} 0.0') == 1
        assert told("POST", "/admin/models", "operator") == (200, None)
        assert told("GET", "/model", "operator") == (403, "forbidden")


def test_a_path_with_two_methods_names_both_in_the_refusal_of_a_third(server):
    refused = server.client.request("OPTIONS", "/admin/models")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_for_ever_is_refused_and_later_loads_and_rollbacks_work(server, checkpoints, tmp_path):
    shutil.copytree(checkpoints / "two", tmp_path / "hostile")
    template = (tmp_path / "hostile" / "chat_template.jinja").read_text()
    (tmp_path / "hostile" / "chat_template.jinja").write_text(LOOP + template)
    refused = admin(server, "models", model=str(tmp_path / "hostile"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "model_refused")
    assert "chat template is broken" in refused.json()["error"]["message"]
    # Tame while it is looked at, and a trap for one conversation.
    trap = "{% if messages[0].content == 'now' %}" + LOOP + "{% endif %}" + template
    (tmp_path / "hostile" / "chat_template.jinja").write_text(trap)
    answer = admin(server, "models", model=str(tmp_path / "hostile"))
    if answer.status_code == 200:
        scored = server.score({"prompt": "now", "response": "x"}, {"prompt": "later", "response": "x"}).json()
        assert [r["error"] and r["error"]["code"] for r in scored["results"]] == ["invalid_messages", None]
        assert admin(server, "models/rollback").status_code == 200
    assert admin(server, "models", model=str(checkpoints / "two")).status_code == 200
    assert server.score({"prompt": "now", "response": "x"}).json()["rewards"][0] is not None
