"""The OpenAPI document says everything about every route, and its pages open without the internet, with keys too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter

import httpx
import pytest
from jsonschema import Draft202012Validator

from rewardserve.model.conversation import SampleError
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.errors import ClientDisconnected, RequestRefused, RowFailed
from tests.support.service_server import Server, wait_until

KEY, READER = "k-0123456789abcdef", "metrics-key-0123456789"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
METHODS = ("get", "post", "put", "delete", "patch")


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo") as server:
        yield server


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    from rewardserve.service.auth.api_keys import format_line
    from rewardserve.service.auth.rate_limits import UNLIMITED

    keys = tmp_path_factory.mktemp("keys") / "keys"
    lines = [
        format_line("all", KEY, frozenset({"score", "admin", "metrics"}), UNLIMITED),
        format_line("reader", READER, frozenset({"metrics"}), UNLIMITED),
    ]
    keys.write_text("\n".join(lines) + "\n")
    with Server("--backend=echo", f"--keys-file={keys}", "--metrics-key-required=1") as server:
        yield server


@pytest.fixture(scope="module")
def document(server):
    return server.client.get("/openapi.json").json()


def operations(document):
    return [(m, path, op) for path, item in document["paths"].items() for m, op in item.items() if m in METHODS]


def properties(where, schema):
    """Every field of a schema with its place, those of schemas within it too."""
    if isinstance(schema, dict):
        for name, field in (schema.get("properties") or {}).items():
            yield f"{where}.{name}", field
        for name, part in schema.items():
            if name != "example" and name != "examples":
                yield from properties(f"{where}.{name}", part)
    elif isinstance(schema, list):
        for i, part in enumerate(schema):
            yield from properties(f"{where}[{i}]", part)


def test_every_field_has_a_description(document):
    named = list(properties("", document))
    assert len(named) > 100
    assert [place for place, field in named if len(field.get("description", "")) < 4] == []


def schemas_in(where, part):
    """Every schema of the document with a type, with its place."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield where, part
        pairs = part.items()
    else:
        pairs = enumerate(part) if isinstance(part, list) else ()
    for name, each in pairs:
        if name not in ("example", "examples"):
            yield from schemas_in(f"{where}.{name}", each)


def test_every_array_describes_its_items(document):
    """Generators of clients (openapi-python-client) leave out routes with an array of unknown items."""
    arrays = [(place, schema) for place, schema in schemas_in("", document) if schema["type"] == "array"]
    assert len(arrays) > 50
    assert [place for place, schema in arrays if "items" not in schema and "prefixItems" not in schema] == []


def test_a_description_says_more_than_the_name_of_its_field(document):
    """At least two words besides articles and the name: `usage: sizes` and `feature: the feature` say nothing."""
    described = [
        (
            f"{record}.{name}",
            set(re.findall(r"\w+", field["description"].lower())) - {"the", "a", "its", *name.split("_")},
        )
        for record, schema in document["components"]["schemas"].items()
        for name, field in schema.get("properties", {}).items()
    ]
    assert len(described) > 100
    assert [place for place, words in described if len(words) < 2] == []


def test_every_field_has_an_example_that_its_schema_allows(document):
    for place, field in properties("", document):
        assert field.get("examples"), place
        for example in field["examples"]:
            Draft202012Validator({"components": document["components"], **field}).validate(example)


def test_every_record_and_route_says_what_it_is(document):
    assert [name for name, schema in document["components"]["schemas"].items() if not schema.get("description")] == []
    assert [path for _, path, op in operations(document) if not (op.get("summary") and op.get("tags"))] == []
    assert [path for _, path, op in operations(document) if len(op.get("description", "").split()) < 2] == []
    n_times = Counter(op["summary"] for _, _, op in operations(document))
    assert [summary for summary, n in n_times.items() if n > 1] == []


def test_a_wire_format_is_described_by_its_texts_and_its_number(document):
    described = {path: op["description"] for method, path, op in operations(document) if method == "post"}
    assert "send query, or prompts and responses. The reply has the reward;" in described["/get_reward"]
    assert described["/get_reward"].endswith("waits for capacity up to 60 s.")
    assert "(for `texts` its sigmoid, by default)" in described["/rerank"]
    assert "is masked, or refused with `?on_failure=refuse`" in described["/verify"]
    assert "A sample without a score refuses the request" in described["/slime"]


def without_example(path):
    """Parameters that `/docs` must not fill in: no digest suits every server, and the body of `/score` has no other score."""
    return {"model_digest", "x-model-digest", *(["value"] if path == "/score" else [])}


def test_every_parameter_has_a_description_and_an_example_and_every_one_of_the_path_is_there(document):
    for method, path, op in operations(document):
        parameters = op.get("parameters", [])
        assert [p["name"] for p in parameters if len(p.get("description", "")) < 4] == [], path
        assert {p["name"] for p in parameters if "example" not in p} <= without_example(path), path
        for parameter in parameters:
            if "example" in parameter:
                Draft202012Validator(parameter["schema"]).validate(parameter["example"])
        assert len({(p["in"], p["name"]) for p in parameters}) == len(parameters), path
        in_path = {p["name"] for p in parameters if p["in"] == "path"}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}, (method, path)


GOOD = {
    "/score": {"samples": [{"text": "t"}]},
    "/compare": {"comparisons": [{"prompt": "p", "responses": ["a", "b"]}]},
    "/approvals": {"run": "ppo-7", "groups": [{"prompt": "p", "queries": ["a"]}]},
    "/slime": {"prompt": "p", "response": "r"},
    "/verify": {
        "responses_create_params": {"input": "p"},
        "response": {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "r"}]}]},
    },
}  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
def test_the_example_of_a_parameter_is_accepted(server, document, path):
    for parameter in document["paths"][path]["post"]["parameters"]:
        if "example" in parameter:
            sent = {
                ("headers" if parameter["in"] == "header" else "params"): {parameter["name"]: str(parameter["example"])}
            }
            assert server.client.post(path, json=GOOD[path], **sent).status_code == 200, parameter["name"]


def bodies_with_a_model(document):
    """Each body with a field `model`, as `/docs` fills it in: the example of the body, or the first one of every field."""
    for method, path, op in operations(document):
        schema = op["requestBody"]["content"]["application/json"]["schema"] if "requestBody" in op else {}
        for reference in schema.get("anyOf", [schema]) if method == "post" else []:
            described = document["components"]["schemas"].get(reference.get("$ref", "").rpartition("/")[2], {})
            if "model" in described.get("properties", {}):
                fields = {name: field["examples"][0] for name, field in described["properties"].items()}
                yield path, op, described.get("examples", [fields])[0]


def test_the_examples_of_every_route_with_a_model_are_accepted(document):
    """On a server of the test, since one route changes its model."""
    bodies = list(bodies_with_a_model(document))
    assert len({path for path, _, _ in bodies}) >= 14
    with Server("--backend=echo") as fresh:
        for path, op, body in bodies:
            assert body["model"], path
            sent = [p for p in op.get("parameters", []) if "example" in p and p["name"] != "idempotency-key"]
            query, headers = (
                {p["name"]: str(p["example"]) for p in sent if p["in"] == place} for place in ("query", "header")
            )
            for parts in ({}, {"params": query, "headers": headers}):
                reply = fresh.client.post(path, json=body, **parts)
                assert reply.status_code == 200, (path, body, reply.text)


def test_what_urls_and_headers_say_is_documented_on_every_route_that_scores(document):
    paths = {dialect.path.replace(":path", "") for dialect in DIALECTS} | {"/score"}
    for path in paths:
        names = {(p["in"], p["name"]) for p in document["paths"][path]["post"]["parameters"]}
        assert {("query", n) for n in ("run", "step", "task", "model_digest", "value")} <= names, path
        assert {
            ("header", n) for n in ("x-run", "x-step", "x-task", "x-model-digest", "x-deadline-ms", "idempotency-key")
        } <= names, path
    assert ("query", "reward_key") in {(p["in"], p["name"]) for p in document["paths"]["/slime"]["post"]["parameters"]}
    assert ("query", "on_failure") in {(p["in"], p["name"]) for p in document["paths"]["/verify"]["post"]["parameters"]}


def test_every_body_and_every_good_reply_is_documented(document):
    for method, path, op in operations(document):
        if method == "post" and not path.endswith(("/ack", "/rollback", "/cancel")):
            schema = op["requestBody"]["content"]["application/json"]["schema"]
            assert schema.get("$ref") or schema.get("anyOf") or schema.get("properties"), path
    for dialect in DIALECTS:
        good = document["paths"][dialect.path.replace(":path", "")]["post"]["responses"]["200"]
        assert good["content"]["application/json"]["example"] is not None


def test_every_route_names_its_errors_with_their_codes(document):
    for _, path, op in operations(document):
        errors = {status: r for status, r in op["responses"].items() if int(status) >= 400}
        assert errors, path
        assert all("`" in response["description"] for response in errors.values()), path
        assert "HTTPValidationError" not in json.dumps(op)


def kinds_of(error):
    """Its subclasses in the product; benchmarks have some that no server raises."""
    found = {each for kind in error.__subclasses__() for each in (kind, *kinds_of(kind))}
    return {each for each in found if each.__module__.startswith("rewardserve.")}


def test_every_error_is_in_the_document_under_its_status(document):
    described = {
        (int(status), code)
        for _, _, op in operations(document)
        for status, response in op["responses"].items()
        for code in re.findall(r"`(\w+)`", response["description"])
    }
    unseen = {ClientDisconnected}  # for metrics and logs: nobody is there to read it
    missing = {(e.status, e.code) for e in kinds_of(RequestRefused) - unseen} - described
    assert missing == set()


def test_every_error_of_a_sample_is_described_where_results_are(document):
    for record in ("ResultOut", "ComparisonOut"):
        text = document["components"]["schemas"][record]["properties"]["error"]["description"]
        missing = {error.code for error in kinds_of(RowFailed) | kinds_of(SampleError) if f"`{error.code}`" not in text}
        assert missing == set()


def test_a_route_names_the_errors_that_are_its_own(document):
    cancel = document["paths"]["/admin/models/cancel"]["post"]["responses"]
    assert "`nothing_is_loading`" in cancel["409"]["description"]
    for _, path, op in operations(document):
        assert ("`admin_needs_key`" in op["responses"]["403"]["description"]) == path.startswith(
            ("/admin", "/review")
        ), path
        assert "`head_too_large`" in op["responses"]["431"]["description"], path


BAD = [b"", b"{", b"[]", b"{}", b'{"model": "other"}', b'{"samples": 1}', b"\xff"]


def test_no_route_answers_with_a_status_that_it_does_not_name(document, locked):
    def asked(method, path, **more):
        filled = path
        for name in ("model", "version", "run", "wire"):
            filled = filled.replace(f"{{{name}}}", "x")
        return locked.client.request(method, filled, **more)

    bearer, reader = {"authorization": f"Bearer {KEY}"}, {"authorization": f"Bearer {READER}"}
    for method, path, op in operations(document):
        answers = [asked(method, path), asked(method, path, headers=reader), asked(method, path, headers=bearer)]
        if method == "post":
            answers += [
                asked(method, path, content=content, headers=bearer | {"content-type": kind})
                for content in BAD
                for kind in ("application/json", "text/plain")
            ]
            answers.append(asked(method, path, json={}, headers=bearer | {"x-deadline-ms": "soon", "x-step": "-1"}))
        for answer in answers:
            assert str(answer.status_code) in op["responses"], (method, path, answer.status_code, answer.text)


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css"])
def test_a_browser_is_asked_for_a_key_as_a_password(locked, path):
    asked = httpx.get(locked.url + path)
    assert asked.status_code == 401
    assert asked.headers["www-authenticate"].startswith('Basic realm="')
    assert httpx.get(locked.url + path, auth=("anybody", KEY)).status_code == 200
    assert httpx.get(locked.url + path, auth=("anybody", "wrong")).status_code == 401
    assert httpx.get(f"{locked.url}/model").headers["www-authenticate"] == "Bearer"


def test_a_page_of_another_origin_cannot_use_the_key_that_a_browser_remembers(locked):
    own = {"origin": locked.url}
    body = {"samples": [{"text": "t"}]}
    auth = ("anybody", KEY)
    assert httpx.post(f"{locked.url}/score", json=body, auth=auth, headers=own).status_code == 200
    for origin in (
        "http://evil.example",
        "null",
        locked.url.replace("127.0.0.1", "127.0.0.2"),
        "https://x" + locked.url,
    ):
        for path in ("/score", "/admin/models/rollback", "/tripwires/a/b/ack"):
            refused = httpx.post(locked.url + path, json=body, auth=auth, headers={"origin": origin})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    bearer = {"authorization": f"Bearer {KEY}", "origin": "http://evil.example"}
    assert httpx.post(f"{locked.url}/score", json=body, headers=bearer).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_refers_to_this_server_alone(server, path):
    page = server.client.get(path).text
    assert "http://" not in page
    assert "https://" not in page
    assert server.client.get("/docs/assets/nothing.js").status_code == 404


def shown(url, tmp_path):
    """What a real browser without any network but the loopback has made of a page."""
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=110, check=True)
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize(("path", "seen"), [("/docs", "opblock-summary"), ("/redoc", "operation/")])
def test_a_browser_shows_every_route_without_the_internet(locked, document, tmp_path, path, seen):
    dom = shown(locked.url.replace("http://", f"http://anybody:{KEY}@") + path, tmp_path)
    assert seen in dom
    for route in ("/score", "/get_reward", "/v1/rerank"):
        assert route in dom.replace("\u200b", "").replace("<wbr>", "")
    assert "Authorize" in dom or path == "/redoc"
    wait_until(lambda: locked.client.get("/livez").status_code == 200)
