"""PromQL of the dashboards: names of metrics go in, expressions come out.

Knows the variables of a dashboard ($job, $model, $run) and how the sums of a run are counted; knows no panel.

Series of a server are joined with `rewardserve_model_info`, which names its model. Series of runs have the label `model`.
"""

from __future__ import annotations

from rewardserve.service.tripwires.baseline import min_std
from rewardserve.service.tripwires.running_sums import count_of, is_signed
from rewardserve.service.tripwires.statistics import MeanShift
from rewardserve.service.tripwires.wires import WIRES

JOB, RUN = 'job=~"$job"', 'run=~"$run"'
OF_MODEL = 'model=~"$model"'
MODEL = 'rewardserve_model_info{job=~"$job", state="serving", name=~"$model"}'
SPAN = "$__rate_interval"

_STATISTICS = {wire.name: wire.statistic for wire in WIRES}


# -- servers ------------------------------------------------------------------------------------------------------------


def series(metric: str, *matchers: str) -> str:
    """Of the chosen jobs."""
    return f"{metric}{{{', '.join((JOB, *matchers))}}}"


def served(vector: str) -> str:
    """Of the servers of the chosen models."""
    return f"({vector} and on (instance, job) {MODEL})"


def of_server(vector: str) -> str:
    """As `served`, and of servers that have no model yet."""
    return f'({vector} unless on (instance, job) rewardserve_model_info{{{JOB}, state="serving", name!~"$model"}})'


def gauge(metric: str, *matchers: str) -> str:
    """As it was scraped."""
    return served(series(metric, *matchers))


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """A second, added up over servers and labels other than `by`."""
    return f"{_sum(by)} {served(_a_second(metric, *matchers))}"


def of_servers(metric: str, *matchers: str, by: str = "") -> str:
    """As `rate`, also of servers that have no model yet."""
    return f"{_sum(by)} {of_server(_a_second(metric, *matchers))}"


def buckets(histogram: str) -> str:
    """For a heat map: what was counted in each bucket up to the next point."""
    counted = f"increase({series(histogram + '_bucket')}[{SPAN}])"
    return f"sum by (le) {served(counted)}"


def quantile(q: float, histogram: str, *matchers: str) -> str:
    """Of all servers together."""
    return f"histogram_quantile({q:g}, {rate(histogram + '_bucket', *matchers, by='le')})"


def mean_of(histogram: str, by: str = "instance") -> str:
    """Of what a histogram saw."""
    return over(rate(histogram + "_sum", by=by), rate(histogram + "_count", by=by))


def over(part: str, whole: str, matching: str = "") -> str:
    """A share, where there is a whole."""
    divided = " ".join(("/", matching)).strip()
    return f"({part}) {divided} ({whole} > 0)"


def or_zero(vector: str) -> str:
    """Nothing counted is a count of 0."""
    return f"({vector} or vector(0))"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _a_second(metric: str, *matchers: str) -> str:
    return f"rate({series(metric, *matchers)}[{SPAN}])"


# -- runs, as they come -------------------------------------------------------------------------------------------------


def fresh(of: str) -> str:
    """What was added to a sum of each run, a second, up to this point."""
    return rate("rewardserve_run_sum_total", RUN, f'of="{of}"', by="run")


def fresh_mean(name: str) -> str:
    """Over the samples of each run up to this point."""
    total = f"{fresh(name + '_positive')} - {fresh(name + '_negative')}" if is_signed(name) else fresh(name)
    return over(total, fresh(count_of(name)))


def fresh_std(name: str) -> str:
    """The standard deviation over the same samples."""
    square = over(fresh(f"{name}_squared"), fresh(count_of(name)))
    return f"sqrt(clamp_min({square} - ({fresh_mean(name)}) ^ 2, 0))"


# -- runs, as the alerts see them -----------------------------------------------------------------------------------------


def recorded(name: str, *matchers: str) -> str:
    """Values that a rule has recorded of the chosen runs and models."""
    return f"{name}{{{', '.join((JOB, RUN, OF_MODEL, *matchers))}}}"


def recent(of: str) -> str:
    """What was added to a sum of each run over the shortest window with enough samples."""
    return recorded("rewardserve:run_sum:recent", f'of="{of}"')


def recent_mean(name: str) -> str:
    """Over those of these samples that have the number."""
    total = (
        f"{recent(name + '_positive')} - ignoring (of) {recent(name + '_negative')}"
        if is_signed(name)
        else recent(name)
    )
    return over(total, recent(count_of(name)), "ignoring (of)")


def statistic(wire: str) -> str:
    """What the alert of a wire compares with its threshold."""
    return recorded("rewardserve:tripwire_statistic:recent", f'wire="{wire}"')


def threshold(wire: str) -> str:
    """Beyond this the alert fires."""
    return f'rewardserve:tripwire_threshold{{wire="{wire}"}}'


def baseline(of: str) -> str:
    """The mean at the beginning of a run, or in the calibration."""
    return recorded("rewardserve:run_baseline_moment:mean", f'of="{of}"')


def trips_at(wire: str) -> str:
    """Where the mean of a wire would trip it: one line, or one for each run."""
    of = _STATISTICS[wire]
    if not isinstance(of, MeanShift):
        return threshold(wire)
    std = recorded("rewardserve:run_baseline_moment:std", f'of="{of.of}"')
    deviation = f"clamp_min({std}, {min_std(of.of):g})"
    sign = "+" if of.sign > 0 else "-"
    return f"{baseline(of.of)} {sign} {deviation} * on () group_left () {threshold(wire)}"


def is_learned(wire: str) -> bool:
    """Whether a wire compares with the baseline of each run."""
    return isinstance(_STATISTICS[wire], MeanShift)


def component_shares(recorded_variance: str) -> str:
    """Of the variance of a reward, the share of each component."""
    variance = recorded(recorded_variance)
    return over(variance, f"sum without (component) ({variance})", "ignoring (component) group_left ()")
