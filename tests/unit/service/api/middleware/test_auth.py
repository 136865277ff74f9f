"""Who may ask for what, with which key, and how much of it; another key is never concerned."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import httpx
import pytest
from starlette.routing import Mount, Route

from rewardserve.service.api.middleware.auth import AuthMiddleware
from rewardserve.service.api.middleware.host_policy import HostPolicy
from rewardserve.service.api.route_policy import ACKNOWLEDGE, ATTRIBUTION, DETAILS, OPEN_PATHS, RoutePolicy
from rewardserve.service.auth.api_keys import ApiKeys, parse
from rewardserve.service.auth.rate_limits import charge_tokens
from rewardserve.service.errors import RateLimited
from tests.support.service_fakes import StillClock

ROUTES = [
    *OPEN_PATHS,
    ACKNOWLEDGE,
    ATTRIBUTION,
    DETAILS,
    "/admin/models",
    "/admin/models/new",
    "/score",
    "/get_reward",
    "/model",
    "/docs",
    "/tripwires",
]
KEYS = {"train": "score", "ops": "admin", "prometheus": "metrics", "both": "score,admin",
        "slow": "score requests_per_s=2 burst_s=1", "small": "score tokens_per_s=100 burst_s=1"}  # fmt: skip
RING = parse("".join(f"{n} sha256:{hashlib.sha256(n.encode()).hexdigest()} {rest}\n" for n, rest in KEYS.items()))
ADMIN = [("GET", "/admin/models"), ("POST", "/admin/models/new"), ("POST", "/tripwires/ppo/7/judge/ack"),
         ("GET", "/tripwires/ppo/7/attribution"),
         ("GET", "/tripwires/x/y/ack"), ("PUT", "/admin/models"), ("OPTIONS", "/tripwires/x/y/ack")]  # fmt: skip
SCORE = [("POST", "/score"), ("POST", "/get_reward"), ("GET", "/model"), ("GET", "/docs"), ("GET", "/tripwires"), ("GET", "/no"),
         ("GET", "/tripwires/a/b/details"),
         ("POST", "/administer"), ("GET", "/admin/nothing"), ("POST", "/admin/models/")]  # fmt: skip


class Behind:
    """Answers 200; `/score` costs as many tokens as its body says."""

    def __init__(self):
        self.seen = []

    async def __call__(self, scope, receive, send):
        self.seen.append(scope)
        body = (await receive())["body"]
        charge_tokens(int(body or 0))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def middleware(ring=RING, *, metrics_need_key=False, is_loopback=False):
    behind, clock = Behind(), StillClock()
    check = AuthMiddleware(
        behind,
        api_keys=ring,
        is_loopback=is_loopback,
        host_policy=HostPolicy(is_loopback=is_loopback),
        clock=clock,
    )
    return client_of(check, metrics_need_key), behind, clock


def client_of(check, metrics_need_key=False):
    access = RoutePolicy([Route(path, Behind()) for path in ROUTES], metrics_need_key)

    async def app(scope, receive, send):  # as `RequestLogMiddleware` does
        scope.setdefault("state", {})["route"] = access.find(scope)
        await check(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


def as_(name, **headers):
    return {"authorization": f"Bearer {name}"} | headers


async def told(answer):
    return answer.status_code, answer.json()["error"]["code"] if answer.content else None


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_administration_needs_the_scope_admin(method, path):
    client, behind, _ = middleware()
    assert await told(await client.request(method, path)) == (401, "unauthorized")
    for name in ("train", "prometheus"):
        answer = await client.request(method, path, headers=as_(name))
        assert await told(answer) == (403, "forbidden")
        assert answer.json()["error"]["scope"] == "admin"
    assert behind.seen == []
    for name in ("ops", "both"):
        assert (await client.request(method, path, headers=as_(name))).status_code == 200
    assert [scope["state"]["key"] for scope in behind.seen] == ["ops", "both"]


@pytest.mark.parametrize(("method", "path"), SCORE)
async def test_everything_else_needs_the_scope_score(method, path):
    client, _, _ = middleware()
    for name in ("ops", "prometheus"):
        assert await told(await client.request(method, path, headers=as_(name))) == (403, "forbidden")
    for name in ("train", "both"):
        assert (await client.request(method, path, headers=as_(name))).status_code == 200


async def test_probes_are_open_and_metrics_are_unless_the_operator_closes_them():
    client, _, _ = middleware()
    for path in OPEN_PATHS:
        assert (await client.get(path)).status_code == 200
    client, _, _ = middleware(metrics_need_key=True)
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/metrics")).status_code == 401
    assert await told(await client.get("/metrics", headers=as_("train"))) == (403, "forbidden")
    assert (await client.get("/metrics", headers=as_("prometheus"))).status_code == 200


@pytest.mark.parametrize("path", ["/%61dmin/models", "/admin/../admin/models", "/tripwires/%2e%2e/x/ack"])
async def test_no_spelling_of_a_path_needs_less(path):
    client, _, _ = middleware()
    answer = await client.get(path, headers=as_("train"))
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "end", ["%0a", "%0D", "%00", "%c2%85", "%e2%80%a8", "%250a", "%25250a", "%7f", "%ff", "%e2%80%8b"]
)
@pytest.mark.parametrize("path", ["/admin/models", "/metrics", "/livez", "/tripwires/x/y/ack", "/score", "/no"])
async def test_a_path_that_no_log_could_show_is_refused_whatever_the_key(path, end):
    client, behind, _ = middleware()
    for headers in ({}, as_("train"), as_("both")):
        for spelt in (path + end, f"/{end}{path}", path.replace("s", f"s{end}", 1).replace("n", f"n{end}") + end):
            answer = await client.get(spelt, headers=headers)
            assert await told(answer) == (400, "invalid_path")
    assert behind.seen == []


@pytest.mark.parametrize("root", ["/rm", "/tripwires", "/livez"])
async def test_a_mounted_application_needs_the_scopes_that_it_needs_by_itself(root):
    client, _, _ = middleware()
    client._transport.root_path = root
    assert (await client.get(f"{root}/admin/models", headers=as_("train"))).status_code == 403
    assert (await client.get(f"{root}/tripwires/x/y/ack", headers=as_("train"))).status_code == 403
    assert (await client.get(f"{root}/livez")).status_code == 200
    assert (await client.get(f"{root}/score", headers=as_("train"))).status_code == 200


def test_what_has_no_path_of_its_own_is_refused_when_the_table_is_made():
    for routes in ([Mount("/x", Behind())], [Route("/a/{b}", Behind()), Route("/a/c", Behind())]):
        with pytest.raises(TypeError):
            RoutePolicy(routes)


async def test_without_keys_everything_is_open_but_administration_from_elsewhere():
    client, _, _ = middleware(ApiKeys(), is_loopback=False)
    for method, path in [*SCORE, ADMIN[2]]:
        assert (await client.request(method, path)).status_code == 200
    assert await told(await client.get("/admin/models")) == (403, "admin_needs_key")
    client, _, _ = middleware(ApiKeys(), is_loopback=True)
    assert (await client.get("/admin/models")).status_code == 200
    # What a page in a browser on this machine sends has its origin in it.
    page = {"origin": "http://x"}
    assert await told(await client.post("/admin/models", headers=page)) == (403, "admin_needs_key")


async def test_too_many_requests_of_one_key_are_refused_with_the_time_to_come_again():
    client, behind, clock = middleware()
    answers = [await client.post("/score", headers=as_("slow")) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    error = answers[2].json()["error"]
    assert (error["code"], error["limit"], error["per_s"], error["burst"]) == ("rate_limited", "requests", 2, 2)
    assert int(answers[2].headers["retry-after"]) == 1
    assert (await client.post("/score", headers=as_("train"))).status_code == 200, "another key is not concerned"
    clock.advance(0.5)
    assert [(await client.post("/score", headers=as_("slow"))).status_code for _ in range(2)] == [200, 429]
    assert len(behind.seen) == 4


async def test_tokens_are_charged_where_they_are_known_and_to_whom_they_belong():
    client, _, clock = middleware()

    async def ask(name, n):
        return (await client.post("/score", content=str(n), headers=as_(name))).status_code

    assert await ask("small", 60) == 200
    with pytest.raises(RateLimited) as refused:  # the routes make an answer of it
        await ask("small", 60)
    assert refused.value.details == {"limit": "tokens", "n": 60, "per_s": 100.0, "burst": 100.0}
    assert await ask("small", 40) == 200, "a refusal costs nothing"
    assert await ask("train", 10**9) == 200
    clock.advance(1.0)
    assert await ask("small", 250) == 200, "larger than a burst: let in when nothing is owed"
    clock.advance(1.0)
    with pytest.raises(RateLimited):
        await ask("small", 1)
    await ask("train", 10**9)
    charge_tokens(10**9)  # and what nobody asked for over HTTP is free


async def test_a_key_whose_limits_stay_keeps_its_account_when_the_file_is_read_again():
    rings = [RING]
    behind, clock = Behind(), StillClock()
    client = client_of(
        AuthMiddleware(
            behind,
            api_keys=SimpleNamespace(current=lambda: rings[-1]),
            is_loopback=True,
            host_policy=HostPolicy(is_loopback=True),
            clock=clock,
        )
    )
    for _ in range(2):
        await client.post("/score", headers=as_("slow"))
    rings.append(parse("".join(f"{n} sha256:{hashlib.sha256(n.encode()).hexdigest()} {r}\n" for n, r in KEYS.items())))
    assert (await client.post("/score", headers=as_("slow"))).status_code == 429
