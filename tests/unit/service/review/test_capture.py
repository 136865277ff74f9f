"""Which samples are captured, and what their records say."""

from __future__ import annotations

import pytest

from rewardserve.service.review.policy import CapturePolicy


@pytest.mark.parametrize("text", ["off", "flagged", "share:0.01", "share:1"])
def test_a_policy_is_read_and_written(text):
    assert str(CapturePolicy.parse(text)) == text
    assert CapturePolicy.parse(f" {text} ") == CapturePolicy.parse(text)


@pytest.mark.parametrize(
    "text", ["", "on", "share", "share:", "share:0", "share:-1", "share:1.01", "share:nan", "share:x", "flagged:1"]
)
def test_another_policy_is_refused_with_the_known_ones(text):
    with pytest.raises(ValueError, match="none of off, flagged, and share:P"):
        CapturePolicy.parse(text)


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_a_share_of_the_prompts_is_drawn(share):
    policy = CapturePolicy.parse(f"share:{share}")
    n = 20_000
    drawn = sum(policy.draws(hash((number, number * 7))) for number in range(n))
    assert abs(drawn - share * n) <= 5.0 * (n * share * (1.0 - share)) ** 0.5


def test_off_and_flagged_draw_none():
    assert not any(CapturePolicy.parse(text).draws(number) for text in ("off", "flagged") for number in range(1_000))
