"""A policy of the gym, trained for a few steps by a real server: the rewards are right, and a page is heard by webhook."""

import pytest

from gym import over_http
from gym.alert_timing import KINDS as WITHOUT_HTTP
from gym.alert_timing import run as run_here
from gym.local_server import GymServer
from gym.monitored_runs import FirstAlert

N_STEPS, WARM_UP = 8, 4


def test_a_policy_learns_the_same_over_http_and_the_first_alert_is_delivered(tmp_path):
    # A page as soon as anybody looks, which is after the warm-up: the base policy leaves some responses empty.
    (tmp_path / "plan.toml").write_text('[wires.empty_opener]\nthreshold = 1e-6\nseverity = "page"')
    flags = [f"--tripwires.config-file={tmp_path / 'plan.toml'}"]
    run = over_http.run(over_http.KINDS[0], 5, steps=N_STEPS, flags=flags)
    here = run_here(WITHOUT_HTTP[0], 5, steps=N_STEPS)
    assert run.off_by < 1e-9
    assert run.gold == pytest.approx(here.gold, abs=1e-4)
    assert run.level == pytest.approx(here.level, abs=1e-4)
    assert run.kl[-1] > 0.0
    assert (run.requests, run.samples) == (4 * N_STEPS, 128 * N_STEPS)
    # Told at the end of the fourth step; the next one may have begun when it arrives.
    assert run.page in (WARM_UP - 1, WARM_UP)
    assert FirstAlert("empty_opener", "page", run.page) in run.alerts
    assert run.wires == ("empty_opener",)


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)exit code 2.*nonsense"), GymServer(["--seed=5", "--nonsense=1"]):
        pass
