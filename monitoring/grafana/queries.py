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
    """Series of the chosen jobs."""
    return f"{metric}{{{', '.join((JOB, *matchers))}}}"


def served(vector: str) -> str:
    """Series of servers with the chosen models."""
    return f"({vector} and on (instance, job) {MODEL})"


def of_server(vector: str) -> str:
    """As `served`, and series of servers without a model yet. A scrape that fails does not hide which model a server has."""
    other = f'last_over_time(rewardserve_model_info{{{JOB}, state="serving", name!~"$model"}}[{SPAN}])'
    return f"({vector} unless on (instance, job) {other})"


def gauge(metric: str, *matchers: str) -> str:
    """Series as scraped."""
    return served(series(metric, *matchers))


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Rate per second, added up over servers and labels other than `by`."""
    return f"{_sum(by)} {served(_a_second(metric, *matchers))}"


def of_servers(metric: str, *matchers: str, by: str = "") -> str:
    """As `rate`, also of servers without a model yet."""
    return f"{_sum(by)} {of_server(_a_second(metric, *matchers))}"


def buckets(histogram: str) -> str:
    """Increase of each bucket up to the next point, for a heat map."""
    counted = f"increase({series(histogram + '_bucket')}[{SPAN}])"
    return f"sum by (le) {served(counted)}"


def quantile(q: float, histogram: str, *matchers: str) -> str:
    """Quantile over all servers."""
    return f"histogram_quantile({q:g}, {rate(histogram + '_bucket', *matchers, by='le')})"


def mean_of(histogram: str, by: str = "instance") -> str:
    """Mean of the values in a histogram."""
    return over(rate(histogram + "_sum", by=by), rate(histogram + "_count", by=by))


def over(part: str, whole: str, matching: str = "") -> str:
    """Share of a part in a whole above 0."""
    divided = " ".join(("/", matching)).strip()
    return f"({part}) {divided} ({whole} > 0)"


def or_zero(vector: str) -> str:
    """A vector, or 0 where it is empty."""
    return f"({vector} or vector(0))"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _a_second(metric: str, *matchers: str) -> str:
    return f"rate({series(metric, *matchers)}[{SPAN}])"


# -- runs, as scraped ---------------------------------------------------------------------------------------------------


def scraped_rate(of: str) -> str:
    """Rate per second of a sum of each run, up to this point."""
    return rate("rewardserve_run_sum_total", RUN, f'of="{of}"', by="run")


def scraped_mean(name: str) -> str:
    """Mean over the samples of each run up to this point."""
    total = (
        f"{scraped_rate(name + '_positive')} - {scraped_rate(name + '_negative')}"
        if is_signed(name)
        else scraped_rate(name)
    )
    return over(total, scraped_rate(count_of(name)))


def scraped_std(name: str) -> str:
    """The standard deviation over the same samples."""
    square = over(scraped_rate(f"{name}_squared"), scraped_rate(count_of(name)))
    return f"sqrt(clamp_min({square} - ({scraped_mean(name)}) ^ 2, 0))"


# -- runs, as in the alerts ----------------------------------------------------------------------------------------------


def recorded(name: str, *matchers: str) -> str:
    """Recorded series of the chosen runs and models."""
    return f"{name}{{{', '.join((JOB, RUN, OF_MODEL, *matchers))}}}"


def recent(of: str) -> str:
    """Increase of a sum of each run over the shortest window with enough samples."""
    return recorded("rewardserve:run_sum:recent", f'of="{of}"')


def recent_mean(name: str) -> str:
    """Mean over the samples of that window that have the number."""
    total = (
        f"{recent(name + '_positive')} - ignoring (of) {recent(name + '_negative')}"
        if is_signed(name)
        else recent(name)
    )
    return over(total, recent(count_of(name)), "ignoring (of)")


def statistic(wire: str) -> str:
    """Statistic of a wire, which its alert compares with the threshold."""
    return recorded("rewardserve:tripwire_statistic:recent", f'wire="{wire}"')


def threshold(wire: str) -> str:
    """Threshold of the alert."""
    return f'rewardserve:tripwire_threshold{{wire="{wire}"}}'


def baseline(of: str) -> str:
    """Mean in the baseline of a run."""
    return recorded("rewardserve:run_baseline_moment:mean", f'of="{of}"')


def trips_at(wire: str) -> str:
    """Mean at which a wire trips: one line, or one for each run."""
    of = _STATISTICS[wire]
    if not isinstance(of, MeanShift):
        return threshold(wire)
    std = recorded("rewardserve:run_baseline_moment:std", f'of="{of.of}"')
    deviation = f"clamp_min({std}, {min_std(of.of):g})"
    sign = "+" if of.sign > 0 else "-"
    return f"{baseline(of.of)} {sign} {deviation} * on () group_left () {threshold(wire)}"


def is_learned(wire: str) -> bool:
    """Whether a wire compares a mean with the baseline of each run."""
    return isinstance(_STATISTICS[wire], MeanShift)


def component_shares(recorded_variance: str) -> str:
    """Share of each component in the variance of a reward."""
    variance = recorded(recorded_variance)
    return over(variance, f"sum without (component) ({variance})", "ignoring (component) group_left ()")
