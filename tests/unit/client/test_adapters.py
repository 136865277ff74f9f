"""What each trainer hands over, and what it is given back, against a server that recomputes."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
from types import SimpleNamespace

import pytest

import rewardserve_client.openrlhf
import rewardserve_client.verl
from rewardserve_client import (
    AsyncRewardClient,
    Misconfigured,
    NotScored,
    RewardClient,
    RunBlocked,
    Unavailable,
    shared,
)
from rewardserve_client.trl import blocking_reward_function, reward_function
from rewardserve_client.verl import compute_score, compute_score_blocking
from tests.support.faulty_server import (
    FaultyServer,
    error,
    failed_result,
    honest_result,
    reply_to,
    resets,
    send,
    true_reward,
)

EOS = 2


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


@pytest.fixture
def environment(server, monkeypatch):
    """As a trainer's job sets it."""
    for name, value in {"URL": server.url, "RUN": "run-7", "API_KEY": "sk-1", "DEADLINE_S": "20"}.items():
        monkeypatch.setenv(f"REWARDSERVE_{name}", value)
    shared.close_clients()
    yield monkeypatch
    shared.close_clients()


def run(work):
    """In an event loop of its own, whose connections are closed."""

    async def whole():
        try:
            return await work
        finally:
            await shared.async_client().aclose()

    return asyncio.run(whole())


def loaded_by_path(module):
    """As trainers do it: the module is not entered into `sys.modules`."""
    spec = importlib.util.spec_from_file_location("reward_func", module.__file__)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def failing(code, *positions):
    def trick(connection, request, server):
        results = [
            failed_result(s, code) if i in positions else honest_result(s)
            for i, s in enumerate(request.json["samples"])
        ]
        send(connection, 200, reply_to(request, results))

    return trick


def sent(server, n=0):
    return [{k: v for k, v in s.items() if k != "id"} for s in server.requests[n].json["samples"]]


# -- what cannot be sent --------------------------------------------------------------------------------------

CALLS = [{"type": "function", "function": {"name": "delete_all_files", "arguments": {"path": "/"}}}]
UNSENT = {
    "tool_calls": CALLS,
    "function_call": {"name": "f", "arguments": "{}"},
    "tool_call_id": "1",
    "name": "Ada",
    "reasoning_content": "hm",
    "thinking": "hm",
    "anything_new": 1,
}
COLUMNS = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "documents": [{"title": "t", "text": "x"}],
    "chat_template_kwargs": {"enable_thinking": False},
    "images": ["AA"],
    "audio": "AA",
}
NOTHING = [None, float("nan"), "", [], {}, {"enable_thinking": None}, [None]]


@pytest.mark.parametrize("make", [reward_function, blocking_reward_function])
@pytest.mark.parametrize("field", UNSENT)
def test_trl_refuses_a_field_of_a_message_that_the_server_would_not_see(environment, server, make, field):
    user, answer = {"role": "user", "content": "p"}, {"role": "assistant", "content": ""}
    extra = {field: UNSENT[field]}
    for prompt, completion in (([user | extra], [answer | {"content": "a"}]), ([user], [answer | extra])):
        with pytest.raises(Misconfigured, match=rf"messages\[0\]\.{field} cannot be sent"):
            trl_call(make(), [prompt], [completion])
    assert not server.requests


@pytest.mark.parametrize("make", [reward_function, blocking_reward_function])
@pytest.mark.parametrize("column", COLUMNS)
def test_trl_refuses_a_column_that_the_server_would_not_see(environment, server, make, column):
    messages = [{"role": "user", "content": "p"}], [{"role": "assistant", "content": "a"}]
    with pytest.raises(Misconfigured, match=f"{column} cannot be sent"):
        trl_call(make(), [messages[0]] * 2, [messages[1]] * 2, **{column: [None, COLUMNS[column]]})
    assert not server.requests
    if column in ("tools", "documents", "chat_template_kwargs"):
        trl_call(make(rendered=True), ["<|user|>p", "<|user|>q"], ["a", "b"], **{column: [None, COLUMNS[column]]})
        assert server.requests


@pytest.mark.parametrize("make", [reward_function, blocking_reward_function])
@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_fields_that_say_nothing_are_left_out(environment, server, make, nothing):
    extra, columns = dict.fromkeys(UNSENT, nothing), {column: [nothing] for column in COLUMNS}
    prompt, completion = {"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}
    rewards, _ = trl_call(make(), [[prompt | extra]], [[completion | extra]], **columns)
    assert sent(server)[0]["messages"] == [prompt, completion]
    assert rewards[0] is not None


def test_messages_with_more_than_text_reach_the_server_as_they_are_and_without_their_empty_fields(server):
    message = {"role": "user", "content": "p", "tool_calls": CALLS, "name": None, "refusal": None, "annotations": []}
    with RewardClient([server.url]) as client:
        client.score([{"messages": [message, {"role": "assistant", "content": "a", "tool_calls": []}]}])
    asked = server.requests[0].json["samples"][0]["messages"]
    assert asked == [{"role": "user", "content": "p", "tool_calls": CALLS}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("field", UNSENT)
def test_verl_refuses_a_field_of_a_message_that_the_server_would_not_see(environment, server, field):
    turn = {"role": "user", "content": "p", field: UNSENT[field]}
    with pytest.raises(Misconfigured, match=f"{field} cannot be sent"):
        run(compute_score("d", "a", None, {"prompt": [turn]}))
    assert not server.requests


@pytest.mark.parametrize("column", COLUMNS)
def test_verl_refuses_what_it_shows_a_policy_beside_the_prompt(environment, server, column):
    with pytest.raises(Misconfigured, match=f"{column} cannot be sent"):
        compute_score_blocking("d", "a", None, {"prompt": "p", column: COLUMNS[column]})


def test_verl_reads_content_in_parts(environment, server):
    parts = [{"type": "text", "text": "p", "image_url": None}, {"type": "text", "text": "q"}]
    run(compute_score("d", "a", None, {"prompt": [{"role": "user", "content": parts, "name": None}]}))
    assert sent(server)[0]["prompt"] == [{"role": "user", "content": "pq"}]
    with pytest.raises(Misconfigured, match="is not text"):
        run(compute_score("d", "a", None, {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}))


def test_openrlhf_refuses_pictures(environment, server):
    reward_func = loaded_by_path(rewardserve_client.openrlhf).reward_func
    with pytest.raises(Misconfigured, match="images cannot be sent"):
        reward_func(["pa"], ["p"], [None], images=[["AA"]])
    assert reward_func(["pa"], ["p"], [None], images=[[]])["rewards"]


# -- TRL ----------------------------------------------------------------------------------------------------


class Trainer:
    """Collects what a reward function logs."""

    def __init__(self):
        self.metrics, self.extra = {}, {}

    def score(self, function, prompts, completions, **more):
        return function(
            prompts=prompts, completions=completions, trainer_state=SimpleNamespace(global_step=9), environments=None,
            log_metric=self.metrics.__setitem__, log_extra=self.extra.__setitem__, answer=["a column"] * len(prompts), **more,
        )  # fmt: skip


def trl_call(function, *args, **more):
    trainer = Trainer()
    done = trainer.score(function, *args, **more)
    return (run(done) if inspect.isawaitable(done) else done), trainer


@pytest.mark.parametrize("make", [reward_function, blocking_reward_function])
def test_trl_strings_are_a_users_turn_and_a_response(environment, server, make):
    rewards, _ = trl_call(make(), ["p", "p", "q"], ["a", "b", "c"])
    expected = [{"prompt": p, "response": r, "finish_reason": "stop"} for p, r in zip("ppq", "abc", strict=True)]
    assert sent(server) == expected
    assert rewards == [true_reward(sample) for sample in expected]
    assert {k: server.requests[0].json[k] for k in ("run", "step")} == {"run": "run-7", "step": 9}


def test_trl_tells_an_asynchronous_function_and_finds_a_name():
    function = reward_function(name="quality")
    assert asyncio.iscoroutinefunction(function)
    assert function.__name__ == "quality"
    assert not asyncio.iscoroutinefunction(blocking_reward_function())
    assert blocking_reward_function().__name__ == "rewardserve"


def test_trl_messages_are_sent_whole_with_tools_between(environment, server):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]
    completion = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "name": None, "content": "t"},
        {"role": "assistant", "content": "r"},
    ]
    trl_call(reward_function(), [prompt], [completion])
    turns = [(m["role"], m["content"]) for m in sent(server)[0]["messages"]]
    assert turns == [("system", "s"), ("user", "u"), ("assistant", ""), ("tool", "t"), ("assistant", "r")]


def test_trl_pictures_are_refused_rather_than_left_out(environment, server):
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "u"}]}]
    with pytest.raises(Misconfigured, match="text only"):
        trl_call(blocking_reward_function(), [prompt], [[{"role": "assistant", "content": "r"}]])
    assert server.requests == []


@pytest.mark.parametrize("eos", [EOS, [EOS, 5]])
def test_trl_a_completion_that_does_not_end_with_the_end_token_was_cut_off(environment, server, eos):
    ids = [[7, EOS], [7, 8], [EOS, 8], [EOS]]
    trl_call(reward_function(eos_token_id=eos), ["p"] * 4, list("abcd"), completion_ids=ids)
    assert [s["finish_reason"] for s in sent(server)] == ["stop", "length", "length", "stop"]


def test_trl_without_an_end_token_nothing_counts_as_cut_off(environment, server):
    trl_call(reward_function(), ["p"], ["a"], completion_ids=[[7, 8]])
    assert sent(server)[0]["finish_reason"] == "stop"


def test_trl_plain_text_may_be_rendered_already(environment, server):
    trl_call(reward_function(rendered=True), ["Q: ", "Q: "], ["a", "b"])
    assert [s["text"] for s in sent(server)] == ["Q: a", "Q: b"]


@pytest.mark.parametrize("make", [reward_function, blocking_reward_function])
def test_trl_sends_the_column_that_names_the_task(environment, server, make):
    trl_call(make(task_column="source"), ["p", "q", "r"], ["a", "b", "c"], source=["math", None, "code"])
    assert [sample.get("task") for sample in sent(server)] == ["math", None, "code"]


@pytest.mark.parametrize("columns", [{}, {"source": [1, 2]}])
def test_trl_refuses_a_task_column_that_has_no_names(environment, server, columns):
    with pytest.raises(Misconfigured, match="task_column='source' is no column of names"):
        trl_call(reward_function(task_column="source"), ["p", "q"], ["a", "b"], other=[1, 2], **columns)


def test_trl_kl_is_made_of_the_state_by_who_knows_how(environment, server):
    trl_call(reward_function(kl=lambda state: state.global_step / 2), ["p"], ["a"])
    assert server.requests[0].json["kl"] == 4.5


def test_trl_a_sample_that_failed_is_none_and_logged(environment, server):
    server.tricks = [failing("empty_response", 1)]
    rewards, trainer = trl_call(reward_function(), ["p"] * 4, list("abcd"))
    assert [r is None for r in rewards] == [False, True, False, False]
    assert trainer.metrics["rewardserve/failed"] == 0.25
    assert trainer.metrics["rewardserve/raw"] == pytest.approx(sum(r for r in rewards if r is not None) / 3)
    assert trainer.extra["rewardserve_error"] == [None, "empty_response", None, None]


def test_trl_every_call_logs_the_same_names(environment, server):
    server.tricks = [failing("empty_response", 0, 1)]
    _, without = trl_call(reward_function(), ["p", "p"], ["a", "b"])
    _, with_all = trl_call(reward_function(), ["p", "p"], ["a", "b"])
    assert without.metrics.keys() == with_all.metrics.keys()
    assert without.extra.keys() == with_all.extra.keys()
    assert math.isnan(without.metrics["rewardserve/raw"])
    assert all(len(column) == 2 for column in without.extra.values())


def test_trl_a_blocked_run_is_stopped(environment, server):
    server.tricks = [failing("run_blocked", 0, 1)]
    with pytest.raises(RunBlocked):
        trl_call(reward_function(), ["p", "p"], ["a", "b"])


def test_trl_a_client_of_ones_own_is_used(environment, server):
    with FaultyServer() as own, RewardClient(own.url) as client:
        trl_call(blocking_reward_function(client, run="mine"), ["p"], ["a"])
        assert own.requests[0].json["run"] == "mine"

        async def once():
            async with AsyncRewardClient(own.url) as other:
                return await Trainer().score(reward_function(other), ["p"], ["a"])

        asyncio.run(once())
        assert len(own.requests) == 2
    assert server.requests == []


# -- verl ---------------------------------------------------------------------------------------------------

KEYS = ["capped", "flagged", "missing_end", "normalized", "raw_reward", "score", "scored", "truncated"]


def verl_call(function, extra_info, solution="r", **more):
    done = function(data_source="d", solution_str=solution, ground_truth="g", extra_info=extra_info, **more)
    return run(done) if inspect.isawaitable(done) else done


@pytest.mark.parametrize("function", [compute_score, compute_score_blocking])
def test_verl_gets_floats_under_a_fixed_set_of_keys(environment, server, function):
    answer = verl_call(
        function, {"prompt": "p", "max_global_steps": 4}, reward_router_address="x", reward_model_tokenizer=None
    )
    assert sorted(answer) == KEYS
    assert {type(value) for value in answer.values()} == {float}
    assert (
        answer["score"]
        == answer["raw_reward"]
        == true_reward({"prompt": "p", "response": "r", "finish_reason": "stop", "score_empty": True, "task": "d"})
    )
    assert {k: server.requests[0].json[k] for k in ("run", "step")} == {"run": "run-7", "step": 4}


def test_verl_reads_messages_from_wherever_the_prompt_is(environment, server):
    turns = [{"role": "user", "content": "u", "extra": None}]
    verl_call(compute_score, {"raw_prompt": turns, "max_global_steps": -1})
    verl_call(
        compute_score,
        {"question": "u", "raw_prompt": turns, "finish_reason": "length"},
        prompt_key="question",
        run="mine",
    )
    assert sent(server)[0]["prompt"] == [{"role": "user", "content": "u"}]
    assert sent(server, 1) == [
        {"prompt": "u", "response": "r", "finish_reason": "length", "score_empty": True, "task": "d"}
    ]
    assert server.requests[1].json["run"] == "mine"
    assert "step" not in server.requests[0].json


def test_verl_without_a_prompt_the_data_is_to_blame(environment, server):
    with pytest.raises(Misconfigured, match="extra_info has no prompt"):
        verl_call(compute_score_blocking, None)


@pytest.mark.parametrize("function", [compute_score, compute_score_blocking])
def test_verl_a_sample_without_a_reward_raises(environment, server, function):
    server.tricks = [failing("input_too_long", 0)]
    with pytest.raises(NotScored, match="input_too_long"):
        verl_call(function, {"prompt": "p"})
    environment.setenv("REWARDSERVE_DEADLINE_S", "0.1")
    shared.close_clients()
    server.otherwise = error(503, "loading")
    with pytest.raises(Unavailable):
        verl_call(function, {"prompt": "p"})


def test_verl_loads_it_by_path(environment, server):
    module = loaded_by_path(rewardserve_client.verl)
    assert inspect.iscoroutinefunction(module.compute_score)
    assert verl_call(module.compute_score, {"prompt": "p"})["scored"] == 1.0


def test_verl_asks_for_many_samples_at_once(environment, server):
    async def many():
        return await asyncio.gather(*[
            compute_score(data_source="d", solution_str=f"r{i}", ground_truth="", extra_info={"prompt": "p"})
            for i in range(40)
        ])  # fmt: skip

    server.tricks = [resets, error(500, "internal")]
    expected = [
        true_reward({"prompt": "p", "response": f"r{i}", "finish_reason": "stop", "score_empty": True, "task": "d"})
        for i in range(40)
    ]
    assert [answer["score"] for answer in run(many())] == expected


# -- OpenRLHF -----------------------------------------------------------------------------------------------


def test_openrlhf_loads_it_by_path_and_gets_a_number_for_one_sample(environment, server):
    function = loaded_by_path(rewardserve_client.openrlhf).reward_func
    answer = asyncio.run(asyncio.to_thread(function, ["<u>hi<a>yo<end>"], ["<u>hi<a>"], ["label"]))
    expected = true_reward({"text": "<u>hi<a>yo<end>", "finish_reason": "stop", "score_empty": True})
    assert answer["rewards"] == answer["scores"] == expected
    assert sorted(["score", *answer["extra_logs"]]) == KEYS
    assert {type(value) for value in answer["extra_logs"].values()} == {float}


def test_openrlhf_several_samples_give_lists(environment, server):
    answer = rewardserve_client.openrlhf.reward_func(["a", "b"], ["p", "p"], [None, None])
    assert answer["rewards"] == [true_reward({"text": t, "finish_reason": "stop", "score_empty": True}) for t in "ab"]
    assert answer["extra_logs"]["scored"] == [1.0, 1.0]
    assert rewardserve_client.openrlhf.reward_func([], [], []) == {"rewards": [], "scores": [], "extra_logs": {}}


def test_openrlhf_knows_who_was_cut_off_if_it_knows_how_responses_end(environment, server):
    environment.setenv("REWARDSERVE_END_TEXT", "<end>")
    rewardserve_client.openrlhf.reward_func(["a<end>", "b<end>\n", "c"], ["p"] * 3, [None] * 3)
    assert [s["finish_reason"] for s in sent(server)] == ["stop", "stop", "length"]


def test_openrlhf_a_sample_without_a_reward_raises(environment, server):
    server.tricks = [failing("empty_response", 0)]
    with pytest.raises(NotScored):
        rewardserve_client.openrlhf.reward_func(["a"], ["p"], [None])


# -- the environment ----------------------------------------------------------------------------------------


def test_one_client_a_process(environment):
    assert shared.client() is shared.client()
    assert shared.async_client() is shared.async_client()


def test_without_a_server_the_environment_is_to_blame(environment):
    environment.delenv("REWARDSERVE_URL")
    with pytest.raises(Misconfigured, match="REWARDSERVE_URL"):
        shared.client()
