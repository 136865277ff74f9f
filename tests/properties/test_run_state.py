"""A monitor that is saved and loaded at any points raises the same alerts at the same steps as one that never stopped."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rewardserve.service.tripwires.baseline import BaselineSource, LearnedBaselines
from rewardserve.service.tripwires.io.run_records import decode_baselines, decode_run, encode_baselines, encode_run
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from tests.support.run_states import actions, state

LIMITS = MonitorLimits(window=16, warm_up=2, max_runs=6, remembered_texts=64, blocks=frozenset({"flattery"}))


def monitor(learned):
    return RunMonitor(BaselineSource(components=("one", "two"), store=learned, digest="m"), LIMITS)


def restarted(before, learned):
    """The monitor of the next process, from bytes alone."""
    known = LearnedBaselines()
    for each in decode_baselines(encode_baselines(learned.items())):
        known.save(*each)
    after = monitor(known)
    for is_archived, runs in ((True, before.archived), (False, before.runs)):
        for label, run in runs.items():
            data = encode_run(label, run, is_archived=is_archived, incidents={}, waiting=())
            restored = decode_run(data, after.baseline_source, 0.0)
            assert restored.misfit == ""
            after.restore(label, restored.run, 0.0, is_archived=restored.is_archived)
    return after, known


@pytest.mark.timeout(600)
@settings(
    max_examples=6, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)  # a minimal seed says nothing
@given(st.integers(0, 2**32), st.sets(st.integers(0, 249), max_size=8))
def test_a_restart_at_any_point_changes_nothing(seed, cuts):
    one, two = LearnedBaselines(), LearnedBaselines()
    steady, cut, n_alerts = monitor(one), monitor(two), 0
    for i, action in enumerate(actions(seed, 250)):
        if i in cuts:
            cut, two = restarted(cut, two)
        expected = action(steady)
        assert action(cut) == expected, f"at {i}"
        n_alerts += isinstance(expected, list) and len(expected)
        assert [cut.blocked_by(*run) for run in (("a", ""), ("b", "key"))] == [
            steady.blocked_by(*run) for run in (("a", ""), ("b", "key"))
        ]
    assert state(cut) == state(steady)
    assert n_alerts, "a stream without an alert shows little"
