"""The columns that the reward pipeline is given for the rows of a request."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import EnsembleMember, PenaltySettings, RewardSettings, build_pipeline
from rewardserve.service.inference.rewards import ScoredRow, compute_rewards

RESPONSE = (1, 2, 1, 2, 1, 2)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (Encoded((7, 7, *RESPONSE), 2), 1.5),
        (Encoded(RESPONSE, 0, truncated=True), 1.5),  # of the prompt nothing is left
        (Encoded(RESPONSE, 0), 2.0),  # it is not known what of the row is the response
    ],
)
def test_a_repetition_is_penalised_wherever_the_response_is_known(encoded, expected):
    penalties = PenaltySettings(repetition=1.0, repetition_above=0.0)
    pipeline = build_pipeline([EnsembleMember("m", (("score", 1.0),), None)], RewardSettings(penalties=penalties))
    [reward] = compute_rewards([ScoredRow(Sample(input_ids=encoded.ids), encoded, {"score": 2.0})], pipeline)
    assert reward.value == pytest.approx(expected)
