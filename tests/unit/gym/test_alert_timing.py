"""Watched runs: watching changes nothing that is learnt, and curves and alerts belong to their steps."""

import pytest

from gym.alert_timing import KINDS, run
from gym.training import BATCH

BY_NAME = {kind.name: kind for kind in KINDS}
STEPS, WARM_UP = 48, 4


@pytest.fixture(scope="module")
def known():
    return run(BY_NAME["hacked"], 100, steps=STEPS)


def test_how_a_run_is_watched_changes_nothing_that_it_learns(known):
    others = [run(BY_NAME["hacked"], 100, steps=STEPS, learns=True)]
    others += [run(BY_NAME[name], 100, steps=STEPS) for name in ("hacked, no lexicons", "hacked, no audit judge")]
    for other in others:
        assert (other.gold, other.level, other.kl) == (known.gold, known.level, known.kl)


def test_a_step_has_its_gold_its_score_and_its_kl(known):
    assert len(known.gold) == len(known.level) == len(known.kl) == STEPS
    assert known.samples == STEPS * BATCH
    assert known.kl[0] == 0.0 < known.kl[-1]
    assert abs(known.level[0]) < 0.3, "the base policy is what the score is standardised on"
    assert known.level[-1] > known.level[0] + 0.3


def test_longer_responses_warn_after_the_warm_up_and_no_wire_before(known):
    steps = {alert.wire: alert.step for alert in known.alerts}
    assert {"length_high", "missing_end"} <= set(steps)
    assert min(steps.values()) >= WARM_UP - 1
    assert "vote" not in steps


def test_a_healthy_run_climbs_gold_and_is_still_scored():
    healthy = run(BY_NAME["healthy"], 100, steps=STEPS)
    assert healthy.aim == "healthy"
    assert healthy.gold[-1] > healthy.gold[0] + 0.5
    assert len(healthy.level) == STEPS
