"""Numbers at and beyond every bound, in every field, header and URL parameter: an answer, and the pages of the server go on.

`make test-fuzz` adds numbers put together at random.
"""

from __future__ import annotations

import json
import math
import os
import random
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service_server import Server

N_RANDOM = 2_000 if "FUZZ_BODIES" in os.environ else 0
MOST_STEPS = 9007199254740991
NUMBERS = ["0", "-0", "-0.0", "1", "-1", "1.5", "1e0", "1E+2", "1e-400", "-1e-400", "1e308", "-1e308", "1e309", "1e400", "-1e400",
           "1e999999999", "1e-999999999", "0." + "0" * 500 + "1", "1" + "0" * 400, "-1" + "0" * 400, "9" * 4300, "9" * 5000,
           "2147483647", "2147483648", "9007199254740991", "9007199254740992", "9223372036854775807", "9223372036854775808",
           "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616", "1e9", "1000000001",
           "NaN", "Infinity", "-Infinity", "nan", "+1", "01", "1.", ".5", "1_0", "0x1", "true", "false", "null", '"1"', "[]",
           "{}"]  # fmt: skip
FIELDS = {
    "/score": [
        '{"samples":[{"text":"x"}],"run":"r","step":%s}', '{"samples":[{"text":"x"}],"run":"r","kl":%s}',
        '{"samples":[{"input_ids":[%s,1]}],"run":"r"}', '{"samples":[{"text":"x","reference_rewards":[%s,1]}],"run":"r"}',
        '{"samples":[{"text":"x","id":%s}]}', '{"samples":[{"text":"x"}],"run":%s}', '{"samples":%s}', '{"samples":[%s]}', "%s",
    ],
    "/compare": [
        '{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":%s}',
        '{"comparisons":[{"prompt":"a","responses":["b","c"]}],"step":%s,"run":"r"}',
        '{"comparisons":[{"prompt":"a","responses":[%s,"c"]}]}',
    ],
    "/classify": [
        '{"input":"a","truncate_prompt_tokens":%s}', '{"input":[%s]}', '{"input":[[%s]]}', '{"input_ids":[%s]}',
        '{"input":"a","priority":%s}', '{"input":"a","use_activation":%s}', '{"messages":[%s]}',
    ],
    "/pooling": ['{"input":"a","truncate_prompt_tokens":%s}', '{"input":[[%s]]}'],
    "/v1/embeddings": ['{"input":[%s]}', '{"input":"a","dimensions":%s}'],
    "/v1/score/evaluation": ['{"messages":["a"],"max_length":%s}'],
    "/predict": ['{"inputs":"a","raw_scores":%s}', '{"inputs":[%s]}'],
    "/v2/models/reward_model/infer": [
        '{"inputs":[{"name":"sentences","shape":[%s],"datatype":"BYTES","data":["a"]}]}',
        '{"inputs":[{"name":"tokens","shape":[1,1],"data":[%s]},{"name":"sequence_lengths","shape":[1],"data":[1]}]}',
        '{"inputs":[{"name":"tokens","shape":[1,1],"data":[1]},{"name":"sequence_lengths","shape":[1],"data":[%s]}]}',
    ],
    "/verify": [
        '{"responses_create_params":{"input":"a"},"response":{"output":[{"type":"message","role":"assistant","content":"b"}]},"x":%s}',
        '{"responses_create_params":{"input":%s},"response":{"output":[]}}',
    ],
    "/slime": ['{"prompt":"a","response":"b","label":%s}'],
    "/get_reward": ['{"query":["a"],"prompts":["b"],"labels":[%s]}'],
    "/admin/models": ['{"model":"echo","shadow":%s}', '{"model":%s}', '{"pin":[%s]}'],
    "/admin/models/activate": ['{"version":%s}'],
    "/admin/models/retire": ['{"version":%s}'],
    "/admin/pins": ['{"run":"r","version":%s}', '{"run":%s,"version":1}'],
}  # fmt: skip
HEADERS = ["x-step", "x-deadline-ms", "idempotency-key", "x-run", "x-model-digest"]
PARAMETERS = ["run", "step", "model_digest", "value"]
REFUSED = {400, 404, 409, 413, 415, 422, 424, 504}


@pytest.fixture(scope="module")
def server():
    flags = "--backend=echo", "echo", "--tripwires.window=16", "--tripwires.cpu-share=1", "--log-level=error"
    with Server(*flags) as running:
        yield running


def refuse_constant(name):
    pytest.fail(f"{name} is no JSON")


def assert_pages_go_on(server, what):
    for page in ("/tripwires", "/model", "/admin/models", "/livez", "/readyz"):
        reply = server.client.get(page)
        assert reply.status_code == 200, (page, what, reply.text)
        json.loads(reply.text, parse_constant=refuse_constant)
    metrics = server.client.get("/metrics")
    assert metrics.status_code == 200, what
    names = {s.name for family in text_string_to_metric_families(metrics.text) for s in family.samples}
    assert "rewardserve_run_step" in names, what
    assert "rewardserve_collector_failures_total" not in names, what


def asked(server, path, body, **headers):
    reply = server.client.post(path, content=body, headers={"content-type": "application/json"} | headers)
    assert reply.status_code == 200 or reply.status_code in REFUSED, (path, body[:200], headers, reply.text)
    json.loads(reply.text, parse_constant=refuse_constant)
    return reply


def random_numbers(n):
    rng = random.Random(11)
    for _ in range(n):
        digits = "".join(rng.choice("0123456789") for _ in range(rng.choice([1, 5, 16, 19, 20, 40, 310, 4400])))
        yield rng.choice(["", "-"]) + digits + rng.choice(["", ".5", "e5", "E-5", "e308", "e-308", "e400"])


@pytest.mark.parametrize("path", FIELDS)
def test_no_number_of_a_body_breaks_a_page(server, path):
    server.score({"text": "x"}, x_run="r", x_step="1")
    for field in FIELDS[path]:
        for number in [*NUMBERS, *random_numbers(N_RANDOM // len(FIELDS))]:
            asked(server, path, (field % number).encode())
        assert_pages_go_on(server, field)
    assert "request_bug" not in server.log
    server.client.post("/admin/pins", json={"run": "r", "version": None})


def test_no_number_of_a_header_or_url_breaks_a_page(server):
    body = b'{"samples":[{"text":"x"}]}'
    for number in [*NUMBERS, *random_numbers(N_RANDOM // 10)]:
        for name in HEADERS:
            asked(server, "/score", body, **{name: number})
        for name in PARAMETERS:
            asked(server, f"/score?{name}={number.replace('+', '%2B')}", body)
    assert_pages_go_on(server, "headers")
    assert "request_bug" not in server.log


STEPS = {"0": 0, "-0": 0, str(MOST_STEPS): MOST_STEPS, str(MOST_STEPS + 1): None, "1" + "0" * 400: None, "-1": None, "1e400": None,
         "true": None, "1.0": None, "9223372036854775808": None}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_the_step_of_a_body_is_kept_or_refused_and_never_another(server, step):
    scored, compared = f'"samples":[{{"text":"{step[:9]}"}}]', '"comparisons":[{"prompt":"a","responses":["b","c"]}]'
    for path, rest in (("/score", scored), ("/compare", compared)):
        reply = asked(server, path, f'{{"run":"steps","step":{step},{rest}}}'.encode())
        assert (reply.status_code == 200) == (STEPS[step] is not None), reply.text
        if path == "/score" and reply.status_code == 200:
            assert server.client.get("/tripwires/steps/details").json()["step"] == STEPS[step]


@pytest.mark.parametrize(
    "step",
    ["0", "1", str(MOST_STEPS), str(MOST_STEPS + 1), "9" * 18, "1" + "0" * 400, "-0", "1e3", "+1", "1_0", "\u0661"],
)
def test_the_step_of_a_header_and_of_a_url_have_the_bounds_of_a_bodys(server, step):
    is_step = step.isascii() and step.isdigit() and int(step) <= MOST_STEPS
    body = b'{"samples":[{"text":"x"}]}'
    assert (asked(server, f"/score?step={quote(step)}", body).status_code == 200) == is_step
    if step.isascii():
        assert (asked(server, "/score", body, **{"x-step": step}).status_code == 200) == is_step


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300])
def test_a_statistic_that_is_no_number_breaks_no_page(value):
    from rewardserve.service.api.replies import info_response
    from rewardserve.service.api.routes.tripwires import describe_run, summarise_runs
    from rewardserve.service.tripwires.baseline import BaselineSource
    from rewardserve.service.tripwires.features import SampleFeatures
    from rewardserve.service.tripwires.run_monitor import RunMonitor
    from rewardserve.service.tripwires.run_state import MonitorLimits

    monitor = RunMonitor(BaselineSource(), MonitorLimits(window=16))
    for _ in range(20):
        monitor.observe(
            "r", 1, [SampleFeatures(i, None, value, value, False, (), audit=value) for i in range(16)], 0.0, kl=5.0
        )
    for page in (describe_run("r", monitor, 0.0, {}), summarise_runs(monitor, 0.0, {})):
        json.loads(info_response(page).body, parse_constant=refuse_constant)
