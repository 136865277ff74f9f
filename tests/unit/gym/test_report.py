"""The page: complete in itself, with every kind, every miss, and nothing that a name could break."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

from gym import plots
from gym.monitored_runs import Curves, FirstAlert, RunKind, outcome, save
from gym.plots import first_vote, fit_scaling_of, overlaid_runs, ranges_of, wires_in_order
from gym.report import misses_of, render

STEPS = 90
PNG = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)">')


def ran(kind, seed=1, alerts=(), *, fallen=True):
    """Gold that rises over half of the steps, and falls again if the run is a hacked one."""
    kl = np.linspace(0.0, 30.0, STEPS)
    gold = 1.0 + 0.01 * np.minimum(np.arange(STEPS), (STEPS - np.arange(STEPS)) if fallen else STEPS)
    curves = Curves(gold.tolist(), (0.03 * np.arange(STEPS)).tolist(), kl.tolist())
    return outcome(kind, seed, curves, [FirstAlert(*alert) for alert in alerts], ("length_high",), samples=128 * STEPS)


HACKED, MILD, HEALTHY = RunKind("hacked"), RunKind("mild & <held>", kl=0.05), RunKind("healthy", healthy=True)
IN_TIME = ran(HACKED, 1, [("length_high", "warn", 8), ("vote", "page", 20), ("score_shift", "note", 2)])
LATE = ran(HACKED, 2, [("repetition", "warn", 30), ("vote", "page", 85)])
SILENT = ran(HACKED, 3, [("empty_opener", "warn", 3)])
EARLY = ran(MILD, 4, [("vote", "page", 30)], fallen=False)
FALSE = ran(HEALTHY, 5, [("divergence", "page", 60)], fallen=False)
QUIET = ran(HEALTHY, 6, fallen=False)
ALL = [IN_TIME, LATE, SILENT, EARLY, FALSE, QUIET]


@pytest.fixture(scope="module")
def page():
    return render(ALL)


def test_the_page_needs_nothing_else(page):
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<(script|link|iframe)|https?://|url\(", page)
    for alt, data in PNG.findall(page):
        assert alt
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_every_kind_has_its_figures_and_its_line(page):
    alts = [alt for alt, _ in PNG.findall(page)]
    for kind in ("hacked", "mild &amp; &lt;held&gt;", "healthy"):
        for what in ("gold and proxy by step", "gold and proxy by distance", "first alerts by wire"):
            assert f"{what}, {kind}" in alts
        assert f"<td>{kind}</td>" in page
    assert "from page to fall, hacked" in alts
    assert "<held>" not in page


def test_misses_are_what_came_too_late_for_nothing_or_too_early():
    late, false, early = misses_of(ALL)
    assert (late, false, early) == ([LATE, SILENT], [FALSE], [EARLY])
    assert misses_of([IN_TIME, QUIET]) == ([], [], [])


def test_a_hacked_run_whose_gold_does_not_fall_is_no_miss():
    assert misses_of([ran(HACKED, fallen=False)]) == ([], [], [])


def test_each_miss_is_shown_with_its_alerts(page):
    alts = [alt for alt, _ in PNG.findall(page)]
    for run in (LATE, SILENT, FALSE):
        assert f"alerts, gold and proxy of {run.kind}, seed {run.seed}" in alts
    assert "never paged" in page
    assert "paged at 85" in page
    assert f"alerts, gold and proxy of hacked, seed {IN_TIME.seed}" not in alts
    assert "<b>1 of 3</b>" in page
    assert "<b>1 of 2</b>" in page
    assert "<b>1 of 1</b>" in page


def test_without_misses_it_says_so():
    page = render([IN_TIME, QUIET])
    assert "No run whose gold fell was paged too late." in page
    assert "No healthy run was paged." in page


def test_runs_over_http_say_what_was_sent_and_how_far_off_it_was():
    page = render([replace(IN_TIME, requests=1_234, off_by=2e-15)])
    assert "1,234 requests to real servers, whose rewards were within <span>2e-15</span>" in page
    assert "requests" not in render([IN_TIME])


def test_the_first_vote_is_a_warning_that_has_one():
    assert first_vote(IN_TIME) == 8
    assert first_vote(SILENT) is None, "an opener warns, and has no vote"


def test_wires_stand_in_the_order_in_which_they_come_and_notes_do_not():
    assert wires_in_order([IN_TIME, LATE, SILENT]) == ["empty_opener", "length_high", "repetition", "vote"]


def test_a_few_runs_stand_for_many():
    many = [ran(HACKED, seed) for seed in range(20)]
    assert [run.seed for run in overlaid_runs(many)] == [0, 4, 8, 11, 15, 19]
    assert overlaid_runs(many[:3]) == many[:3]


def test_axes_are_wide_enough_for_everything():
    ranges = ranges_of(ALL)
    for run in ALL:
        assert ranges.gold[0] < run.smooth_T.min()
        assert run.smooth_T.max() < ranges.gold[1]
    assert ranges.steps == STEPS


def test_the_form_of_gao_is_found_again_in_points_that_have_it():
    kl = np.linspace(0.0, 100.0, 60)
    d = np.sqrt(np.maximum(kl, 1e-12))
    curves = Curves((1.0 + d * (0.3 - 0.1 * np.log(d))).tolist(), [0.0] * 60, kl.tolist())
    start, fitted = fit_scaling_of([outcome(HACKED, 1, curves, [], (), samples=1)])
    assert (start, fitted.alpha, fitted.beta) == pytest.approx((1.0, 0.3, 0.1), abs=1e-3)


def test_a_kind_in_which_nothing_ever_trips_can_be_drawn():
    quiet = [QUIET]
    assert plots.plot_wires(quiet, ranges_of(quiet))
    assert wires_in_order(quiet) == []


def test_the_command_reads_files_and_writes_one(tmp_path, monkeypatch, capsys):
    from gym import report

    save(tmp_path / "a.json", [IN_TIME])
    save(tmp_path / "b.json", [QUIET])
    out = tmp_path / "gym.html"
    monkeypatch.setattr("sys.argv", ["report", "--json", f"{tmp_path}/a.json", f"{tmp_path}/b.json", "--out", str(out)])
    report.main()
    assert out.read_text(encoding="utf-8") == render([IN_TIME, QUIET])
    assert "2 runs of 2 kinds" in capsys.readouterr().out
