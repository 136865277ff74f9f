"""A key that a JSON object has twice: readers take the first value or the last, so no request is scored under either.

The reference is a writer of JSON of its own, which puts one key twice somewhere, and Python's reader with its pairs kept.
"""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.api import body, requests
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.api.requests import ApprovalsRequest, CompareRequest, ScoreRequest
from rewardserve.service.errors import InvalidJson, RequestRefused
from tests.support.service_server import Server

LARGE = 70_000
TEXT = st.sampled_from(
    ["", "a", '"', "\\", 'a "text": b', '{"text":"a","text":"b"}', "\n\t", "é", "\u2028", ':"', '\\\\"', "\x00"]
)
IDS = st.lists(st.integers(0, 300), max_size=3)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT})
SAMPLE = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT | st.none(), "prompt": TEXT | st.lists(TURN, max_size=2) | st.none(), "response": TEXT | st.none(),
        "messages": st.lists(TURN, max_size=2) | st.none(), "text": TEXT | st.none(), "input_ids": IDS | st.none(),
        "finish_reason": st.sampled_from(["stop", "length"]), "reference_rewards": st.lists(st.floats(-9, 9), max_size=2),
        "score_empty": st.booleans(),
    },
)  # fmt: skip
OURS = st.fixed_dictionaries(
    {"samples": st.lists(SAMPLE, min_size=1, max_size=3)},
    optional={"run": TEXT | st.none(), "step": st.integers(0, 9) | st.none(), "kl": st.floats(0, 9) | st.none()},
)
COMPARISON = st.fixed_dictionaries(
    {"prompt": TEXT | st.lists(TURN, max_size=2), "responses": st.lists(TEXT, min_size=2, max_size=3)},
    optional={"id": TEXT | st.none()},
)
COMPARED = st.fixed_dictionaries(
    {"comparisons": st.lists(COMPARISON, min_size=1, max_size=2)},
    optional={"run": TEXT, "step": st.integers(0, 9), "tie_margin": st.sampled_from([0, 0.0, 1.5])},
)
QUERY = st.fixed_dictionaries({"response": TEXT}, optional={"finish_reason": st.sampled_from(["stop", "length"])})
GROUP = st.fixed_dictionaries(
    {"prompt": TEXT | st.lists(TURN, max_size=2), "queries": st.lists(TEXT | QUERY, min_size=1, max_size=2)},
    optional={"id": TEXT | st.none(), "task": TEXT | st.none(), "taken": st.lists(TEXT, max_size=2)},
)
APPROVED = st.fixed_dictionaries(
    {"groups": st.lists(GROUP, min_size=1, max_size=2)},
    optional={"run": TEXT, "step": st.integers(0, 9), "snapshot": st.just("sha256:" + "a" * 64)},
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def written(value, draw, twice=()):
    """JSON of `value`, spaced and escaped at will. `twice`: the objects that get one of their pairs a second time."""
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, list):
        return "[" + f"{space},".join(written(each, draw, twice) for each in value) + "]"
    if isinstance(value, dict):
        pairs = [(name, written(each, draw, twice)) for name, each in value.items()]
        if any(value is each for each in twice):
            name, _ = draw(st.sampled_from(pairs))
            again = draw(st.sampled_from([dict(pairs)[name], "null", '"b"', "[]"]))
            pairs.insert(draw(st.integers(0, len(pairs))), (name, again))
        return "{" + f"{space},".join(f"{key(name, draw)}{space}:{space}{text}" for name, text in pairs) + f"{space}}}"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def key(name, draw):
    if name and draw(st.booleans()):
        return f'"\\u{ord(name[0]):04x}{json.dumps(name[1:])[1:]}'
    return json.dumps(name)


def objects(value):
    """All objects with a pair in them, however deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [
        *([value] if isinstance(value, dict) and value else ()),
        *(each for part in inner for each in objects(part)),
    ]


READ = {
    "ours": (OURS, lambda raw: body.decode(raw, msgspec.json.Decoder(ScoreRequest))),
    "compared": (
        COMPARED,
        lambda raw: body.decode(raw, msgspec.json.Decoder(CompareRequest)),
    ),
    "approved": (APPROVED, lambda raw: body.decode(raw, msgspec.json.Decoder(ApprovalsRequest))),
    "another format": (ANYTHING, body.decode_any),
    "seldom": (ANYTHING, body.parse),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("padding", [0, LARGE])
@given(data=st.data())
def test_a_key_that_is_there_twice_is_refused_by_name_and_no_other_body_is(kind, padding, data):
    bodies, read = READ[kind]
    value = data.draw(bodies)
    once = (written(value, data.draw) + " " * padding).encode()
    read(once)
    if found := objects(value):
        twice = written(value, data.draw, [data.draw(st.sampled_from(found))]) + " " * padding
        with pytest.raises(InvalidJson) as refused:
            read(twice.encode())
        assert any(refused.value.details["field"] in each for each in found)


@given(ANYTHING)
def test_strings_are_counted_as_python_reads_them(value):
    def n_strings(each):
        if isinstance(each, dict):
            return len(each) + sum(map(n_strings, each.values()))
        return sum(map(n_strings, each)) if isinstance(each, list) else int(isinstance(each, str))

    assert body.n_strings(json.dumps(value).encode()) == n_strings(value)


@given(OURS | COMPARED | APPROVED)
def test_what_says_nothing_costs_no_second_reading(value):
    """But for a field that is null, empty or false, which a body may leave out."""
    kind = ScoreRequest if "samples" in value else ApprovalsRequest if "groups" in value else CompareRequest

    def told(each):
        if isinstance(each, dict):
            return {
                k: told(v)
                for k, v in each.items()
                if v not in (None, False, 0) and (v != [] or k not in ("reference_rewards", "taken"))
            }
        return [told(part) for part in each] if isinstance(each, list) else each

    raw = json.dumps(told(value)).encode()
    try:
        decoded = msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        return
    assert requests.n_strings(decoded) == body.n_strings(raw)


# -- over HTTP ----------------------------------------------------------------------------------------------------------

TWICE = {
    "/score": ('{"samples":[{"text":"a","text":"b"}]}', "text"),
    "/score, pairs": ('{"text_1":"a","text_2":"b","text_2":"c"}', "text_2"),
    "/score, wrong otherwise": ('{"samples":[{"text":1,"text":"a"}]}', "text"),
    "/compare": ('{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":0,"tie_margin":9}', "tie_margin"),
    "/get_reward": ('{"query":["a"],"query":["b"]}', "query"),
    "/slime": ('{"prompt":[{"role":"user","content":"a","content":"b"}],"response":"c"}', "content"),
    "/v1/score/evaluation": ('{"messages":["a"],"model":"model","messages":["b"]}', "messages"),
    "/classify": ('{"input":"a","input":"b"}', "input"),
    "/pooling": ('{"messages":[{"role":"user","role":"assistant","content":"a"}]}', "role"),
    "/v1/embeddings": ('{"input":[1,2],"input":[1]}', "input"),
    "/v1/score": ('{"query":"a","items":["b"],"item_first":false,"item_first":true}', "item_first"),
    "/rerank": ('{"query":"a","documents":["b"],"unknown":null,"unknown":null}', "unknown"),
    "/predict": ('{"inputs":"a","raw_scores":true,"raw_\\u0073cores":false}', "raw_scores"),
    "/v2/models/echo/infer": (
        '{"inputs":[{"name":"sentences","shape":[1],"datatype":"BYTES","data":["a"],"data":["b"]}]}',
        "data",
    ),
    "/verify": ('{"responses_create_params":{"input":"a","input":"b"},"response":{"output":[]}}', "input"),
    "/admin/pins": ('{"run":"a","version":1,"run":"b"}', "run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo") as running:
        yield running


def test_every_format_is_here(server):
    paths = {each.path.replace("{model:path}", "echo") for each in DIALECTS} - {
        "/v1/classify",
        "/v1/rerank",
        "/v2/rerank",
    }
    assert {path for path in paths if "{" not in path} <= {name.partition(",")[0] for name in TWICE}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("padding", [0, LARGE, 2_000_000])
def test_a_request_with_a_key_twice_is_refused_by_name(server, name, padding):
    content, twice = TWICE[name]
    if padding > 1_000_000 and name.startswith("/admin"):
        return
    reply = server.client.post(
        name.partition(",")[0], content=content + " " * padding, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400, reply.text
    reply_body = reply.json()
    code = reply_body.get("code") or reply_body["error"]["code"]
    assert code == "invalid_json"
    assert twice in reply.text


def test_the_slow_and_the_fast_reader_agree_over_what_is_refused():
    for content, _ in TWICE.values():
        with pytest.raises(RequestRefused):
            body.parse(content.encode())
