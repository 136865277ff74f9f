"""What NeMo-RL does with replies of `/verify`: its check of components and its reading of masks, written out in `callers`."""

from __future__ import annotations

import pytest

from tests.contract import callers
from tests.support.checkpoints import reward_model
from tests.support.service_server import Server, drill

HEADS = {"convincing": 1.5, "harmless": -0.25}


def test_the_checks_are_those_of_nemo_rl():
    callers.nemo_rl_check_components(
        [{"reward": 1.5000001, "reward_components": {"a": 1.0, "b": 0.5}}, {"reward": 2.0}]
    )
    with pytest.raises(ValueError, match="result 1"):
        callers.nemo_rl_check_components([{"reward": 0.0}, {"reward": 2.0, "reward_components": {"a": 1.0, "b": 0.5}}])
    assert callers.nemo_rl_masks([{}, {"instance_config": None}, {"instance_config": {"mask_sample": True}}]) == [
        False,
        False,
        True,
    ]


def episode(response, **more):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": response}]}
    asked = {"input": [{"role": "user", "content": "What is two plus two?"}]}
    return {"responses_create_params": asked, "response": {"object": "response", "output": [said]}, **more}


def verified(server, body, query=""):
    answer = server.client.post(f"/verify{query}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module", params=["one head", "two heads"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gym") / "model"
    reward_model(folder, heads=HEADS if request.param == "two heads" else None)
    return folder


@pytest.mark.parametrize(
    "flags", [(), ("--normalize=off", "--shape=none"), ("--shape=none", "--penalties.missing-end=1")]
)
def test_nemo_rl_finds_nothing_wrong_with_any_reply(folder, flags):
    is_raw = "--normalize=off" in flags
    with Server(f"{folder}", "--device=cpu", "--dtype=float32", *flags) as server:
        has_two = len(server.client.get("/model").json()["identity"]["heads"]) == 2
        for query in ["", "?value=raw", *([] if is_raw else ["?value=normalized"])]:
            results = [
                verified(server, episode(text), query) for text in ("Four.", "Five, of course.", "No.", "x" * 30)
            ]
            callers.nemo_rl_check_components(results)
            assert callers.nemo_rl_masks(results) == [False] * 4
            is_sum = has_two and (query == "?value=raw" or (query == "" and is_raw))
            names = {frozenset(callers.nemo_rl_components(result) or ()) for result in results}
            assert names == {frozenset(HEADS) if is_sum else frozenset()}  # GDPO wants the same for every episode


def test_a_component_is_the_weighted_value_of_its_head(tmp_path):
    reward_model(tmp_path / "model", heads=HEADS)
    with Server(f"{tmp_path / 'model'}", "--device=cpu", "--dtype=float32") as server:
        body = episode("Four.")
        (result,) = server.score({"prompt": "What is two plus two?", "response": "Four."}).json()["results"]
        answer = verified(server, body, "?value=raw")
        assert answer["reward"] == pytest.approx(result["raw"], rel=1e-6)
        assert answer["reward_components"] == pytest.approx(
            {name: weight * result["heads"][name] for name, weight in HEADS.items()}, rel=1e-6
        )


@pytest.fixture(scope="module")
def short():
    with Server("--backend=echo", "--max-input-tokens=64") as server:
        yield server


def test_a_failed_episode_is_masked_in_every_place_that_is_read(short):
    answer = verified(short, episode("too long " * 40, instance_config={"id": 7}))
    assert callers.nemo_rl_masks([answer]) == [True]
    assert answer["mask_sample"] is True
    assert answer["instance_config"] == {"id": 7, "mask_sample": True}
    assert answer["failure_kind"] == "rewardserve:input_too_long"
    assert "64" in answer["failure_reason"]
    callers.nemo_rl_check_components([answer])
    assert callers.nemo_rl_components(answer) is None


def test_a_scored_episode_says_that_it_is_not_masked(short):
    answer = verified(short, episode("fine"))
    assert callers.nemo_rl_masks([answer]) == [False]
    assert (answer["mask_sample"], answer["failure_kind"], answer["failure_reason"]) == (False, None, None)


def test_an_instance_config_of_null_is_replaced_by_an_object(short):
    assert callers.nemo_rl_masks([verified(short, episode("fine", instance_config=None))]) == [False]


@pytest.mark.parametrize("config", ["a text", [1], 3])
def test_an_instance_config_that_is_no_object_is_refused_and_not_overwritten(short, config):
    refused = short.client.post("/verify", json=episode("fine", instance_config=config))
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "instance_config")


@pytest.mark.parametrize("response", ["", " \n"])
def test_an_empty_answer_is_masked_and_may_be_refused(short, response):
    answer = verified(short, episode(response))
    assert callers.nemo_rl_masks([answer]) == [True]
    assert answer["failure_kind"] == "rewardserve:empty_response"
    refused = short.client.post("/verify?on_failure=refuse", json=episode(response))
    assert (refused.status_code, refused.json()["error"]["reason"]) == (422, "empty_response")


@pytest.mark.parametrize("masked", [{"mask_sample": True}, {"instance_config": {"mask_sample": True}}])
def test_what_was_masked_before_stays_masked(short, masked):
    answer = verified(short, episode("fine", failure_kind="agent_timeout", failure_reason="late", **masked))
    assert callers.nemo_rl_masks([answer]) == [True]
    assert answer["mask_sample"] is True
    assert (answer["failure_kind"], answer["failure_reason"]) == ("agent_timeout", "late")


def test_a_server_may_refuse_instead_of_masking(short):
    body = episode("too long " * 40)
    refused = short.client.post("/verify?on_failure=refuse", json=body)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (422, "input_too_long")
    assert short.client.post("/verify?on_failure=maybe", json=body).status_code == 422
    with Server("--backend=echo", "--max-input-tokens=64", "--verify-on-failure=refuse") as server:
        assert server.client.post("/verify", json=body).status_code == 422
        assert verified(server, body, "?on_failure=mask")["mask_sample"] is True


def test_without_a_lowest_reward_an_episode_is_refused():
    with Server("--backend=echo", "--max-input-tokens=64", "--shape=none") as server:
        assert server.client.post("/verify", json=episode("too long " * 40)).status_code == 422


def test_what_may_pass_is_an_error_status_and_no_mask():
    with drill("raises:ScorerError") as server:
        refused = server.client.post("/verify", json=episode("fine"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "sample_failed")
