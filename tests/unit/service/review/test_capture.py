"""Which samples are captured, and what their records say."""

from __future__ import annotations

import math

import msgspec
import pytest

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Reward
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.review.capture import SampleCapture
from rewardserve.service.review.policy import CapturePolicy
from rewardserve.service.review.records import AlertRecord, from_line, to_line
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.run_context import RunContext
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits


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


class _Echo:
    """An encoder that knows the texts of a sample."""

    def texts(self, sample):
        return sample.texts()


class _Taken:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.records = []

    def add(self, records):
        self.records += records


def capture_of(writer):
    clock = MonotonicClock()
    return SampleCapture(
        CapturePolicy.parse("share:1"), writer, RunMonitor(BaselineSource(), MonitorLimits()), clock, encoder=_Echo(),
        stage_names=("combined", "shape"), head_names=("a", "b", "c"), model="m", model_version=1,
    )  # fmt: skip


def test_a_head_without_a_finite_score_is_left_out_and_costs_no_sample():
    writer = _Taken()
    row = ScoredRow(Sample(prompt="p", response="r"), Encoded((1, 2), 1), {"a": 1.0, "b": math.nan})
    capture_of(writer).add(RunContext("run", 1), [row], [Reward(1.0, 0.5, 1.0, (), (1.0, -0.5))], None)
    (record,) = writer.records
    assert record.heads == {"a": 1.0}
    assert from_line(to_line(record)) == record


def test_an_alert_whose_statistic_is_not_finite_has_none():
    writer = _Taken()
    capture_of(writer).add_alerts("run", [Alert("level", "warn", math.inf, 1.0, None, ())], [])
    (record,) = writer.records
    assert record.statistic is None
    assert msgspec.json.decode(msgspec.json.encode(record), type=AlertRecord) == record
