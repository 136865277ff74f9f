"""The numbers of alerts and of alert rules are written with units, alike in both."""

from __future__ import annotations

import pytest

from rewardserve.model.traits import Lexicon, text_traits, token_traits
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from rewardserve.service.tripwires.statistics import (
    Attributed,
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessMean,
    HoneypotHitRate,
    KlRoot,
    Mean,
    MeanShift,
    Saturation,
    ShareGrowth,
)
from rewardserve.service.tripwires.units import Unit
from rewardserve.service.tripwires.wires import WIRES

MEASURED = [
    (Mean("capped"), "12.3% of the samples"), (Mean("empty_opener"), "12.3% of the responses"),
    (Mean("flat_groups"), "12.3% of the groups"), (Mean("judge_injection"), "0.1235 phrases per response"),
    (ExcessMean("foreign_script"), "12.3% of the letters of a response"), (ExcessMean("id_reuse"), "12.3% of the sample ids"),
    (Saturation(), "12.3% of the scores"),
    (HoneypotHitRate(), "12.3% of the planted prompts"),
    (AuditGap(), "0.1235 standard deviations, at least, that the score has risen above the audit judge's since the start of "
     "the run"),
    (ShareGrowth("duplicate_across_prompts"), "12.3% of the responses more than at the start of the run, at least"),
    (AuditDivergence(), "0.1235 standard deviations, at least, that the score has risen and the audit judge's has fallen"),
    (ComponentShare(), "0.1235 times the baseline's share of the variance"),
    (KlRoot(), "0.1235 (square root of the KL in nats)"),
    (MeanShift("length"), "0.1235 standard deviations above the baseline mean of the run"),
    (MeanShift("length", -1.0), "0.1235 standard deviations below the baseline mean of the run"),
]  # fmt: skip


@pytest.mark.parametrize(("statistic", "words"), MEASURED)
def test_a_number_has_the_unit_of_its_statistic(statistic, words):
    unit = statistic.unit
    assert unit.measured(0.12346) == words
    number = "{{ $value | humanizePercentage }}" if "%" in words else '{{ printf "%.4g" $value }}'
    assert unit.template() == f"{number} {words.partition(' ')[2]}"


def test_shares_are_percent_and_other_numbers_are_not():
    assert (Unit("x", is_share=True).measured(0.5), Unit("x").measured(0.5)) == ("50% x", "0.5 x")
    assert (Unit("x", is_share=True).measured(0.012345), Unit("x").measured(1234567.0)) == ("1.23% x", "1.235e+06 x")


# -- units and ranges ---------------------------------------------------------------------------------------------------

LEXICON = Lexicon(
    "en.1", refusal=("i cannot",), flattery=("great question",), judge_injection=("full marks",), empty_opener=()
)
EXTREMES = {
    "phrases": "I cannot. Great question. Full marks. " * 9,
    "markup": "- **a**",
    "empty": "",
    "script": "\u4f60\u597d",
    "control": "<|im_end|>",
}
"""Responses, each with as much of some trait as a response can have."""


def run_of(response, prompts, n_different=0):
    """A run whose samples have the most of every number; the texts of its first steps differ. Most of its ids belong to samples
    that are not inspected."""
    none = dict.fromkeys(("foreign_script", "id_reuse"), BaselineStat(0.0, 0.1))
    monitor = RunMonitor(BaselineSource(Baseline(none, saturation=1.0)), MonitorLimits(window=8))
    traits = (*token_traits([7] * 50, True), *text_traits("Hello", response, LEXICON))
    for step in range(300):
        monitor.add_sample_ids("run", [(1, (step, i)) for i in range(64)], 0.0)
        sample = SampleFeatures(
            prompt_hash=prompts[step % len(prompts)], retry_key=None, reward=1.0, score=9.0, is_capped=True, traits=traits,
            text_digest=1 if step >= n_different else 2 + step, spread=9.0, distance=9.0, audit=0.0, is_honeypot_hit=True,
        )  # fmt: skip
        monitor.observe("run", step, [sample, sample], 0.0)
    return monitor.runs["run"]


@pytest.fixture(scope="module")
def runs():
    same = [run_of(response, prompts) for response in EXTREMES.values() for prompts in ((1,), (1, 2))]
    return [*same, run_of("Hello", (1, 2), 160)]


@pytest.mark.parametrize("wire", [wire for wire in WIRES if hasattr(wire.statistic, "of")], ids=lambda wire: wire.name)
def test_a_mean_is_written_in_percent_where_it_is_never_above_one(wire, runs):
    """An alert once read "150% of the samples": it counted phrases."""
    is_share = max(run.total.mean(wire.statistic.of) for run in runs) <= 1.0
    if not isinstance(wire.statistic, MeanShift):
        assert wire.statistic.unit.is_share == is_share
    if wire.chart is not None:
        assert (wire.chart.unit == "percentunit") == is_share


SHARES = [wire for wire in WIRES if wire.statistic.unit.is_share and not isinstance(wire.statistic, Attributed)]


@pytest.mark.parametrize("wire", SHARES, ids=lambda wire: wire.name)
def test_no_run_has_more_than_the_whole_of_a_share(wire, runs):
    assert 0.3 <= max(run.statistics.get(wire.name, 0.0) for run in runs) <= 1.0
