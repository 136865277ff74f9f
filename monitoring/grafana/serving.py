"""Define the dashboard *Service*: availability, latency, batches, tokens and memory of the servers."""

from __future__ import annotations

from monitoring.grafana import queries as q
from monitoring.grafana.panels import AT_ONE, GREEN, RED, YELLOW, Header, Panel, Query, Row, lines, number, rows

TITLE, UID = "Service", "rewardserve-service"
DESCRIPTION = "Availability, latency, batches, tokens and memory of the servers."

_INSTANCE = "{{instance}}"
_SCORING = 'kind="scoring"'
_STAGES = {
    "encode": "rewardserve_encode_seconds",
    "queue": "rewardserve_queue_seconds",
    "forward": "rewardserve_forward_seconds",
}

_UP = q.of_server(q.series("up"))
_AGE = f"time() - {q.of_server(q.series('process_start_time_seconds'))}"
_REQUESTS = q.of_servers("rewardserve_requests_total", _SCORING)
_BUDGET = f"max by (instance) {q.gauge('rewardserve_batch_budget_tokens')}"
_WAITING = f"max by (instance) {q.gauge('rewardserve_queue_tokens')}"


def dashboard_rows() -> tuple[Row, ...]:
    """Return the rows, from the top."""
    return (
        Row("Now", _now()),
        Row("Requests", _requests()),
        Row("Where the time goes", _times()),
        Row("Batches", _batches()),
        Row("Tokens", _tokens()),
        Row("Machine", _machine()),
        Row("Model", _model()),
        Row("Trip wires and alerts", _watch()),
    )


def _now() -> tuple[Panel, ...]:
    def header(title: str, description: str, *alerts: str) -> Header:
        return Header(title, description, alerts, width=3, height=4)

    unloaded = f"({_UP} == 1) unless on (job, instance) {q.series('rewardserve_model_version')} > 0"
    return (
        number(
            header("Servers", "Servers with a model.", "RewardServiceAbsent"),
            Query(q.or_zero(f"count({q.MODEL})")),
            steps=((None, RED), (1.0, GREEN)),
        ),
        number(
            header("Servers that are down", "Prometheus cannot scrape them.", "RewardServiceDown"),
            Query(q.or_zero(f"count({_UP} == 0)")),
            steps=AT_ONE,
        ),
        number(
            header(
                "Servers without a model",
                "Up, but still loading, or the checkpoint was refused.",
                "RewardModelNotLoaded",
            ),
            Query(q.or_zero(f"count({unloaded})")),
            steps=((None, GREEN), (1.0, YELLOW)),
        ),
        number(header("Requests a second", "To routes that score, with any status."), Query(_REQUESTS), "reqps"),
        number(
            header(
                "Errors of the servers",
                "Share of scoring requests with an error that is neither a refusal nor an expired deadline.",
                "RewardServerErrors",
            ),
            Query(_share_of_requests('code=~"5..", code!~"503|504"')),
            "percentunit",
            ((None, GREEN), (0.001, YELLOW), (0.01, RED)),
        ),
        number(
            header("One request in a hundred", "The slowest hundredth takes at least this long.", "RewardSlow"),
            Query(q.quantile(0.99, "rewardserve_request_seconds", _SCORING)),
            "s",
            ((None, GREEN), (10.0, RED)),
        ),
        number(
            header(
                "Batches that wait",
                "Tokens in the queue over the budget of a batch, of the server with the most.",
                "RewardQueueGrowing",
            ),
            Query(f"max({q.over(_WAITING, _BUDGET)})"),
            steps=((None, GREEN), (10.0, YELLOW), (50.0, RED)),
            decimals=1,
        ),
        number(
            header(
                "Up for",
                "Of the server that started last; without a state folder it learns the baselines of runs again.",
                "RewardRestarting",
            ),
            Query(f"min({_AGE})"),
            "dtdurations",
        ),
    )


def _requests() -> tuple[Panel, ...]:
    return (
        lines(
            Header(
                "Requests by route and code",
                "All answered requests.",
                ("RewardServerErrors", "RewardOverloaded"),
            ),
            Query(q.of_servers("rewardserve_requests_total", by="route, code"), "{{route}} {{code}}"),
            unit="reqps",
        ),
        lines(
            Header(
                "Requests without an answer",
                "Shares of the requests to routes that score: errors of the servers, refusals by an "
                "overloaded server, expired deadlines of clients, and errors of clients.",
                ("RewardServerErrors", "RewardOverloaded"),
            ),
            Query(_share_of_requests('code=~"5..", code!~"503|504"'), "error of the server"),
            Query(_share_of_requests('code=~"503|429"'), "refused"),
            Query(_share_of_requests('code="504"'), "deadline of the client"),
            Query(_share_of_requests('code=~"4..", code!="429"'), "error of the client"),
            unit="percentunit",
        ),
        lines(
            Header(
                "Samples by outcome",
                "Every sample of a reply: ok, or the code of its error.",
                ("RewardSamplesFailing", "RewardScoreNotFinite", "RewardScoreSometimesNotFinite", "RewardRunBlocked"),
            ),
            Query(q.rate("rewardserve_samples_total", by="outcome"), "{{outcome}}"),
            unit="cps",
        ),
    )


def _times() -> tuple[Panel, ...]:
    def of_scoring(quantile: float) -> str:
        return q.quantile(quantile, "rewardserve_request_seconds", _SCORING)

    return (
        lines(
            Header(
                "How long scoring takes",
                "Seconds from the first byte of a request to the last byte of its reply.",
                ("RewardSlow",),
            ),
            Query(of_scoring(0.5), "half of them"),
            Query(of_scoring(0.95), "95 of 100"),
            Query(of_scoring(0.99), "99 of 100"),
            unit="s",
        ),
        lines(
            Header(
                "Stages, the median",
                "Median seconds of the encoding of a sample, of a row in the queue, and of a forward.",
                ("RewardSlow",),
            ),
            *[Query(q.quantile(0.5, histogram), stage) for stage, histogram in _STAGES.items()],
            unit="s",
        ),
        lines(
            Header("Stages, 95 of 100", "The same in 95 of 100 cases.", ("RewardSlow",)),
            *[Query(q.quantile(0.95, histogram), stage) for stage, histogram in _STAGES.items()],
            unit="s",
        ),
    )


def _batches() -> tuple[Panel, ...]:
    fill = f"{q.mean_of('rewardserve_batch_tokens')} / on (instance) ({_BUDGET} > 0)"
    return (
        lines(
            Header("Queued rows", "Rows in the queue of each server.", ("RewardQueueGrowing",)),
            Query(f"max by (instance) {q.gauge('rewardserve_queue_samples')}", _INSTANCE),
        ),
        lines(
            Header(
                "Queued tokens",
                "Tokens in the queue; dotted: the budget of a batch.",
                ("RewardQueueGrowing",),
            ),
            Query(_WAITING, _INSTANCE),
            Query(_BUDGET, f"{_INSTANCE} budget", "baseline"),
        ),
        lines(
            Header(
                "Batch failures",
                "Forwards without scores, by reason; their rows are tried again in smaller batches. 1 in `hangs`: one does "
                "not return.",
                ("RewardBatchFailures", "RewardOutOfMemory", "RewardScorerHanging"),
            ),
            Query(q.rate("rewardserve_batch_failures_total", by="reason"), "{{reason}}"),
            Query(f"max by (instance) {q.gauge('rewardserve_scorer_hanging')}", f"{_INSTANCE} hangs"),
            unit="cps",
        ),
        lines(
            Header(
                "How full batches are",
                "Mean of their tokens, as a share of the budget; a longer row has a batch to itself, beyond the budget.",
            ),
            Query(fill, _INSTANCE),
            unit="percentunit",
        ),
        lines(
            Header("Rows in a batch", "Mean over the batches of each server."),
            Query(q.mean_of("rewardserve_batch_samples"), _INSTANCE),
        ),
        lines(
            Header(
                "Time in forwards",
                "Seconds of forwards a second: near 1 the device is the bottleneck; beyond 1 "
                "several forwards run at once.",
            ),
            Query(q.rate("rewardserve_forward_seconds_sum", by="instance"), _INSTANCE),
        ),
    )


def _tokens() -> tuple[Panel, ...]:
    def tokens(kind: str) -> str:
        return q.rate("rewardserve_tokens_total", f'kind="{kind}"')

    def part(kind: str) -> str:
        return q.over(tokens(kind), f"({tokens(kind)} + {tokens('computed')})")

    return (
        lines(
            Header(
                "Tokens a second",
                "Tokens by kind: received in samples, found in the score cache, shared with another row, "
                "computed, or computed as padding.",
                width=12,
            ),
            Query(q.rate("rewardserve_tokens_total", by="kind"), "{{kind}}"),
        ),
        lines(
            Header(
                "Shares of tokens",
                "Cached, of the received tokens; shared, of the tokens in batches; padding, of all computed tokens.",
                width=12,
            ),
            Query(q.over(tokens("cached"), tokens("received")), "cached"),
            Query(part("shared"), "shared"),
            Query(part("padding"), "padding"),
            unit="percentunit",
            most=1.0,
        ),
    )


def _machine() -> tuple[Panel, ...]:
    used, total = (q.gauge("rewardserve_device_memory_bytes", f'kind="{kind}"') for kind in ("used", "total"))
    return (
        lines(
            Header(
                "Memory of the device",
                "Used share; on a GPU other processes may use it too.",
                ("RewardMemoryHigh", "RewardOutOfMemory"),
                6,
            ),
            Query(q.over(f"max by (instance) {used}", f"max by (instance) {total}"), _INSTANCE),
            unit="percentunit",
            most=1.0,
        ),
        lines(
            Header("Memory of the process", "Resident memory.", width=6),
            Query(q.of_server(q.series("process_resident_memory_bytes")), _INSTANCE),
            unit="bytes",
        ),
        lines(
            Header("CPU of the process", "CPU cores in use.", width=6),
            Query(q.of_servers("process_cpu_seconds_total", by="instance"), _INSTANCE),
        ),
        lines(
            Header("Open files", "Sockets too.", width=6),
            Query(q.of_server(q.series("process_open_fds")), _INSTANCE),
        ),
    )


def _model() -> tuple[Panel, ...]:
    model, identity = "job, namespace, service, name", "job, namespace, service, name, contract, calibration, pipeline"
    shown = (
        "instance",
        "name",
        "architecture",
        "backend",
        "engine",
        "dtype",
        "device",
        "contract",
        "calibration",
        "pipeline",
    )
    return (
        rows(
            Header(
                "Models",
                "The loaded models: rewards are the same where contract, calibration and pipeline are the same.",
                ("RewardReplicasDiffer",),
                18,
                7,
            ),
            {"": Query(q.MODEL)},
            shown,
        ),
        number(
            Header(
                "Different rewards",
                "Of the replicas of one model: with more than one, a reward depends on the replica that scores it.",
                ("RewardReplicasDiffer",),
                3,
                7,
            ),
            Query(f"max(count by ({model}) (count by ({identity}) ({q.MODEL})))"),
            steps=((None, GREEN), (2.0, RED)),
        ),
        number(
            Header(
                "Model version",
                "Number of the model in service, counting the models that a server has loaded; of the server with most.",
                ("RewardModelNotLoaded",),
                3,
                7,
            ),
            Query(f"max {q.gauge('rewardserve_model_version')}"),
        ),
        lines(
            Header(
                "Model loads",
                "Since the start: loaded models, and refused ones.",
                ("RewardModelRefused",),
                8,
            ),
            Query(f"sum by (outcome) {q.gauge('rewardserve_model_loads_total')}", "{{outcome}}"),
        ),
        lines(
            Header(
                "A shadow and the model in service",
                "Share of the pairs of responses to one prompt that both models order alike, and the correlation of their rewards.",
                width=8,
            ),
            Query(f"min by (instance) {q.gauge('rewardserve_shadow_agreement')}", "agreement at {{instance}}"),
            Query(f"min by (instance) {q.gauge('rewardserve_shadow_correlation')}", "correlation at {{instance}}"),
            least=None,
            most=1.0,
        ),
        lines(
            Header("Shift of a shadow's rewards", "Mean difference over the samples that both have scored.", width=8),
            Query(f"max by (instance) {q.gauge('rewardserve_shadow_shift')}", _INSTANCE),
            least=None,
        ),
    )


def _watch() -> tuple[Panel, ...]:
    return (
        lines(
            Header("Samples without an audit", "The audit judge did not keep up.", ("RewardAuditSkipped",), 6),
            Query(q.rate("rewardserve_audit_skipped_total", by="instance"), _INSTANCE),
            unit="cps",
        ),
        lines(
            Header(
                "Samples of runs over the limit",
                "More runs than a server watches by name: the rest are watched as one.",
                ("RewardRunsOverLimit",),
                6,
            ),
            Query(q.rate("rewardserve_runs_over_limit_total", by="instance"), _INSTANCE),
            unit="cps",
        ),
        lines(
            Header(
                "Lost alerts and metrics",
                "Alerts that the webhook's receiver did not take (in the log and under GET /tripwires), and parts of the metrics "
                "that a scrape could not read.",
                ("RewardAlertsLost", "RewardMetricsIncomplete"),
                6,
            ),
            Query(q.rate("rewardserve_alerts_lost_total", by="instance"), f"{_INSTANCE} alerts"),
            Query(q.or_zero(q.rate("rewardserve_collector_failures_total")), "metrics of all"),
            unit="cps",
        ),
        lines(
            Header("Time since the start", "A line that falls to zero is a restart.", ("RewardRestarting",), 6),
            Query(_AGE, _INSTANCE),
            unit="dtdurations",
        ),
    )


def _share_of_requests(code: str) -> str:
    return q.over(q.or_zero(q.of_servers("rewardserve_requests_total", _SCORING, code)), _REQUESTS)
