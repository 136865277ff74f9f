"""The fast writer of replies says what the careful one says, and leaves to it what it cannot say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.reward import Reward, RewardSettings, build_pipeline
from rewardserve.model.scorer import DISTANCE
from rewardserve.service.api.replies import json_response, result, result_fields, score_reply
from rewardserve.service.api.schemas.errors import error_out
from rewardserve.service.errors import Failure
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.runtime import ModelRuntime, ResultFields
from rewardserve.service.scoring import SampleResult

LOADED = echo.load(ModelSpec())
SERVED = ModelRuntime(
    version=1, source=Source(), loaded=LOADED, pipeline=build_pipeline(LOADED.ensemble_members, RewardSettings()),
    numeric_noise=None, encode_pool=None, batcher=None, watcher=None, scoring=None, canaries=None, canary_task=None,
    edit_scorer=None, token_scorer=None,
)  # fmt: skip
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
REWARDS = st.builds(
    Reward, raw=NUMBERS, value=NUMBERS, normalized=NUMBERS | st.none(), notes=st.sampled_from([(), ("capped_high",)]),
    changes=st.tuples(*[NUMBERS] * len(SERVED.result_fields.all_stages)), lookahead=NUMBERS | st.none(),
)  # fmt: skip
TIMES = {"encode_s": st.just(0.001), "queue_s": st.just(0.0), "forward_s": st.just(0.2), "n_computed": st.just(2.5)}
SCORED = st.builds(
    SampleResult, reward=REWARDS, heads=NUMBERS.map(lambda x: {"score": x}), n_tokens=st.integers(1, 9), truncated=st.booleans(),
    missing_end=st.booleans(), cached=st.booleans(), failure=st.none(), **TIMES,
) | st.builds(
    SampleResult, reward=st.none(), heads=st.none(), n_tokens=st.integers(1, 9) | st.none(), **TIMES,
    failure=st.builds(Failure, st.just("input_too_long"), st.text(), st.just({"n": 5, "limit": 4})),
)  # fmt: skip


@given(st.lists(st.tuples(st.text(st.characters(codec=None), max_size=5), SCORED), min_size=1, max_size=4))
def test_a_reply_says_every_number_and_every_id_as_it_is(pairs):
    ids, results = [i for i, _ in pairs], [scored for _, scored in pairs]
    reply = json.loads(score_reply(SERVED, ids, results).body)
    careful = json.loads(json_response([result(i, scored, SERVED.result_fields) for i, scored in pairs]).body)
    assert reply["results"] == careful
    assert [r["id"] for r in reply["results"]] == ids
    assert reply["rewards"] == [r["reward"] for r in careful]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_never_sent_as_if_there_were_none(bad):
    good = SampleResult(Reward(1.0, 1.0), {"score": 1.0}, 3)
    with pytest.raises(ValueError, match="JSON"):
        score_reply(SERVED, ["a", "b"], [good, SampleResult(Reward(bad, bad), {"score": bad}, 3)])


def test_rewards_whose_sum_is_too_large_for_a_float_are_sent_all_the_same():
    huge = SampleResult(Reward(1e308, 1e308), {"score": 1e308}, 3)
    assert json.loads(score_reply(SERVED, ["a", "b"], [huge, huge]).body)["rewards"] == [1e308, 1e308]


def test_a_reply_has_the_heads_of_the_model_and_nothing_else_that_its_scorer_says():
    two = replace(LOADED, identity=replace(LOADED.identity, heads=(("good", 1.0), ("kind", 0.5))))
    said = {"good": 1.0, "kind": 2.0, DISTANCE: 3.0}
    scored = SampleResult(Reward(1.0, 1.0), said, 3)
    assert result_fields("a", scored, ResultFields.of(two, SERVED.pipeline))["heads"] == {"good": 1.0, "kind": 2.0}
    failed = SampleResult(failure=Failure("no", "no", {}, is_final=True))
    assert result_fields("a", failed, ResultFields.of(two, SERVED.pipeline))["heads"] is None
    assert "heads" not in result_fields(
        "a", SampleResult(Reward(1.0, 1.0), {"score": 1.0, DISTANCE: 3.0}, 3), SERVED.result_fields
    )


def test_an_error_with_a_number_that_has_no_field_is_sent_with_it():
    numbers = {"limit": 4, "unheard_of": 5}
    assert json.loads(json_response(error_out("a", "b", numbers)).body) == {"code": "a", "message": "b", **numbers}
