"""The routes of the console. Each checks the session and the scope, calls a page, and renders it.

Only these routes read the cookie: the API takes keys. Every POST needs the token of its session.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from rewardserve.model.conversation import Sample
from rewardserve.service.api.route_policy import CONSOLE
from rewardserve.service.api.routes.review_access import number_of
from rewardserve.service.console.heat import HeatToken, heat
from rewardserve.service.console.pages import home, loop, models, playground, run
from rewardserve.service.console.parts import Console
from rewardserve.service.console.rendering import HEADERS, render, static_file
from rewardserve.service.console.session import COOKIE, MAX_AGE_S, Viewer
from rewardserve.service.errors import NoSuchRun, RequestRefused
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.pairing import Sampling
from rewardserve.service.review.records import SampleFilter, Verdict
from rewardserve.service.review.samples import sample_of
from rewardserve.service.review.writer import Store
from rewardserve.service.token_values import finite_heads

_MAX_FORM_BYTES = 65_536
_MAX_LISTENERS = 64
_EVENT_S = 1.0
_MAX_STORED_RUNS = 1_000
_MAX_PAIRS = 5
_SAMPLINGS: tuple[Sampling, ...] = ("alert", "disagreement", "random")
_VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "both_bad", "skip")
_FAILED_LOGINS, _LOGIN_WINDOW_S = 10, 60.0
_MAX_ADDRESSES = 1_024


class _Page(Protocol):
    """A page for a person whose session and scopes are checked."""

    async def __call__(self, request: Request, viewer: Viewer) -> Response:
        """The reply."""
        ...


class _Refused(Exception):
    """A page that is not shown, with its status, heading and words."""

    def __init__(self, status: int, heading: str, words: str) -> None:
        super().__init__(heading)
        self.status, self.heading, self.words = status, heading, words


class _FailedLogins:
    """Failed logins by address, over a minute: a key of 256 random bits cannot be guessed, a short one might."""

    def __init__(self) -> None:
        self._failed: dict[str, list[float]] = {}

    def are_too_many(self, address: str, now: float) -> bool:
        """Whether this address has to wait."""
        recent = [at for at in self._failed.get(address, ()) if now - at < _LOGIN_WINDOW_S]
        return len(recent) >= _FAILED_LOGINS

    def add(self, address: str, now: float) -> None:
        """Count a failed login."""
        recent = [at for at in self._failed.pop(address, ()) if now - at < _LOGIN_WINDOW_S]
        self._failed[address] = [*recent[-_FAILED_LOGINS:], now]
        while len(self._failed) > _MAX_ADDRESSES:
            self._failed.pop(next(iter(self._failed)))


def console_routes(console: Console) -> APIRouter:
    """Create the routes, which are not in the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    sessions, failed_logins, listeners = console.sessions, _FailedLogins(), [0]

    def show(request: Request, template: str, viewer: Viewer | None, status: int = 200, **view: Any) -> Response:
        return render(
            template, status, viewer=viewer, token=sessions.form_token(viewer), needs_key=sessions.needs_key,
            version=console.version, duration=duration, time=time_of_day, **view,
        )  # fmt: skip

    def page(*scopes: str) -> Callable[[_Page], Callable[[Request], Awaitable[Response]]]:
        """Check the session, the scopes and, of a POST, the token; show refusals as pages."""

        def checked(endpoint: _Page) -> Callable[[Request], Awaitable[Response]]:
            async def answer(request: Request) -> Response:
                viewer = sessions.viewer(request.cookies.get(COOKIE), console.clock.unix_time())
                try:
                    if viewer is None:
                        return _to_login(request, sessions.needs_key)
                    if missing := [scope for scope in scopes if scope not in viewer.scopes]:
                        words = f"This page needs a key with the scope {' and '.join(missing)}."
                        raise _Refused(403, "Not with this key", words)
                    return await endpoint(request, viewer)
                except _Refused as error:
                    return show(request, "message.html", viewer, error.status, heading=error.heading, words=error.words)
                except RequestRefused as error:
                    heading = "No such run" if isinstance(error, NoSuchRun) else "Not now"
                    return show(request, "message.html", viewer, error.status, heading=heading, words=str(error))
                except ReviewStoreError:
                    words = "The review store cannot be read: see the log of the server."
                    return show(request, "message.html", viewer, 503, heading="Not now", words=words)

            return answer

        return checked

    async def form(request: Request, viewer: Viewer | None) -> dict[str, str]:
        """The fields of a form of this session. Raise `_Refused`."""
        content = await request.body()
        if len(content) > _MAX_FORM_BYTES:
            raise _Refused(413, "Too large", "The form has more fields than its page.")
        fields = {name: values[-1] for name, values in parse_qs(content.decode("utf-8", "replace")).items()}
        if not sessions.accepts(viewer, fields.get("token", "")):
            raise _Refused(403, "Expired", "The form is of another session. Open the page again.")
        return fields

    def store() -> Store:
        if console.review is None:
            raise _Refused(
                409, "Nothing is captured", "Set REWARD_CAPTURE and REWARD_TRIPWIRES__STATE_DIR at the start."
            )
        return console.review.store

    # -- login ------------------------------------------------------------------------------------------------------

    @router.get(CONSOLE + "/login")
    async def login_page(request: Request) -> Response:
        return show(request, "login.html", None, refused="", next=_safe_next(request.query_params.get("next", "")))

    @router.post(CONSOLE + "/login")
    async def log_in(request: Request) -> Response:
        address, now = request.client.host if request.client else "", console.clock.now()
        try:
            fields = await form(request, None)
        except _Refused as error:
            return show(request, "message.html", None, error.status, heading=error.heading, words=error.words)
        target = _safe_next(fields.get("next", ""))
        if failed_logins.are_too_many(address, now):
            return show(request, "login.html", None, 429, refused="Too many failed logins: wait a minute.", next=target)
        cookie = sessions.log_in(fields.get("key", ""), console.clock.unix_time())
        if cookie is None:
            failed_logins.add(address, now)
            return show(request, "login.html", None, 401, refused="This is not a valid key.", next=target)
        reply = RedirectResponse(target, 303, HEADERS)
        reply.set_cookie(
            COOKIE, cookie, max_age=MAX_AGE_S, path=CONSOLE, secure=request.url.scheme == "https", httponly=True,
            samesite="lax",  # a link that a colleague has sent leads to its page
        )  # fmt: skip
        return reply

    @router.post(CONSOLE + "/logout")
    @page()
    async def log_out(request: Request, viewer: Viewer) -> Response:
        await form(request, viewer)
        reply = RedirectResponse(CONSOLE + "/login", 303, HEADERS)
        reply.delete_cookie(COOKIE, path=CONSOLE, httponly=True, samesite="lax")
        return reply

    # -- pages ------------------------------------------------------------------------------------------------------

    @router.get(CONSOLE)
    @page()
    async def home_page(request: Request, viewer: Viewer) -> Response:
        runs = []
        if console.review is not None and "review" in viewer.scopes:
            runs = await asyncio.to_thread(console.review.store.runs, _MAX_STORED_RUNS)
        return show(request, "home.html", viewer, **home.view(console, viewer, runs))

    @router.get(CONSOLE + "/run")
    @page("admin")
    async def run_page(request: Request, viewer: Viewer) -> Response:
        label = _permitted(request.query_params.get("run", ""), viewer)
        may_read = console.review is not None and "review" in viewer.scopes
        try:
            pairs = []
            if may_read:
                pairs = await asyncio.to_thread(store().labels.alert_pairs, label, _MAX_PAIRS)
            return show(request, "run.html", viewer, **run.view(console, label, pairs))
        except NoSuchRun:
            if not may_read:
                raise
        samples = await asyncio.to_thread(store().samples, SampleFilter(run=label), 50, None)
        alerts = await asyncio.to_thread(store().alerts, label, 50)
        if not samples and not alerts:
            raise _Refused(404, "No such run", "It is forgotten, or has another label.")
        return show(request, "stored_run.html", viewer, label=label, samples=samples, alerts=alerts)

    @router.post(CONSOLE + "/acknowledge")
    @page("admin")
    async def acknowledge(request: Request, viewer: Viewer) -> Response:
        fields = await form(request, viewer)
        label = _permitted(fields.get("run", ""), viewer)
        console.active_models.current().watcher.monitor.acknowledge(label, fields.get("wire", ""))
        return _see(f"/run?{urlencode({'run': label})}")

    @router.get(CONSOLE + "/sample/{sample}")
    @page("review")
    async def sample_page(request: Request, viewer: Viewer) -> Response:
        number, found = await _sample(request, viewer)
        same = SampleFilter(run=found.run, prompt_key=found.prompt_key)
        neighbours = await asyncio.to_thread(store().samples, same, 20, None)
        others = [each for each in neighbours if each.id != number]
        tokens, no_values = await _tokens(sample_of(found))
        return show(
            request,
            "sample.html",
            viewer,
            id=number,
            sample=found,
            neighbours=others,
            tokens=tokens,
            no_values=no_values,
        )

    async def _tokens(sample: Sample) -> tuple[list[HeatToken], str]:
        """The tokens of a response with their values, or the reason why there are none."""
        runtime = console.active_models.current()
        try:
            found = await runtime.token_scorer.values(sample)
        except RequestRefused as error:
            return [], str(error)
        heads = [finite_heads(each.heads) for each in found.tokens]
        return heat([each.text for each in found.tokens], heads, runtime.loaded.identity.heads), ""

    @router.get(CONSOLE + "/sample/{sample}/response.txt")
    @page("review")
    async def whole_response(request: Request, viewer: Viewer) -> Response:
        number, found = await _sample(request, viewer)
        content = found.response.encode("utf-8", "replace")
        disposition = f'attachment; filename="sample-{number}.txt"'
        return Response(
            content, media_type="text/plain; charset=utf-8", headers={**HEADERS, "content-disposition": disposition}
        )

    async def _sample(request: Request, viewer: Viewer) -> tuple[int, Any]:
        number = number_of(request.path_params["sample"])
        found = await asyncio.to_thread(store().sample, number) if number else None
        if found is None or not viewer.may_see(found.run):
            raise _Refused(404, "No such sample", "It is deleted, or expired.")
        return number, found

    @router.get(CONSOLE + "/playground")
    @page("review")
    async def playground_page(request: Request, viewer: Viewer) -> Response:
        return show(request, "playground.html", viewer, **playground.empty())

    @router.post(CONSOLE + "/playground")
    @page("review")
    async def try_responses(request: Request, viewer: Viewer) -> Response:
        fields = await form(request, viewer)
        view = await playground.view(console, fields)
        best = view["best"]
        tokens, no_values = await _tokens(best) if best is not None else ([], "")
        return show(request, "playground.html", viewer, **view, tokens=tokens, no_values=no_values)

    # -- labels -----------------------------------------------------------------------------------------------------

    @router.get(CONSOLE + "/queue")
    @page("review")
    async def queue_page(request: Request, viewer: Viewer) -> Response:
        query, known = request.query_params, store()
        label = query.get("run", "")
        sampling: Sampling = next((each for each in _SAMPLINGS if each == query.get("sampling")), "random")
        if not label:
            found = await asyncio.to_thread(known.runs, _MAX_STORED_RUNS)
            runs = [each for each in found if each.n_samples and viewer.may_see(each.run)]
            return show(
                request,
                "queue.html",
                viewer,
                run="",
                runs=runs,
                sampling=sampling,
                pair=None,
                page=None,
                undo=0,
                agreement=None,
            )
        _permitted(label, viewer)
        shown = await asyncio.to_thread(known.labels.queue, label, viewer.name, sampling, 1, console.clock.unix_time())
        agreement = await asyncio.to_thread(known.labels.agreement, label)
        return show(
            request, "queue.html", viewer, run=label, runs=[], sampling=sampling, page=shown, agreement=agreement,
            pair=shown.pairs[0] if shown.pairs else None, undo=number_of(query.get("undo", "")),
        )  # fmt: skip

    @router.post(CONSOLE + "/label")
    @page("review")
    async def label_pair(request: Request, viewer: Viewer) -> Response:
        fields = await form(request, viewer)
        verdict = next((each for each in _VERDICTS if each == fields.get("verdict")), None)
        labels, pair = store().labels, fields.get("pair", "")
        owner = await asyncio.to_thread(labels.run_of, pair)
        if verdict is None or owner is None or not viewer.may_see(owner):
            raise _Refused(404, "No such pair", "One of its samples is deleted.")
        number = await asyncio.to_thread(labels.add, pair, viewer.name, verdict, console.clock.unix_time())
        return _see(_queue(fields, undo=str(number or "")))

    @router.post(CONSOLE + "/undo")
    @page("review")
    async def undo_label(request: Request, viewer: Viewer) -> Response:
        fields = await form(request, viewer)
        await asyncio.to_thread(store().labels.remove, number_of(fields.get("label", "")), viewer.name)
        return _see(_queue(fields))

    # -- loop and models --------------------------------------------------------------------------------------------

    @router.get(CONSOLE + "/loop")
    @page("admin", "review")
    async def loop_page(request: Request, viewer: Viewer) -> Response:
        agreed = None
        if console.review is not None and viewer.sees_all_runs:
            agreed = await asyncio.to_thread(console.review.store.labels.agreement, None)
        rows = home.live_rows(console, viewer)
        return show(request, "loop.html", viewer, **loop.view(console, rows, console.review, agreed))

    @router.get(CONSOLE + "/models")
    @page("admin")
    async def models_page(request: Request, viewer: Viewer) -> Response:
        return show(request, "models.html", viewer, **models.view(console, request.query_params.get("confirm", "")))

    @router.post(CONSOLE + "/models/activate")
    @page("admin")
    async def activate(request: Request, viewer: Viewer) -> Response:
        version = number_of((await form(request, viewer)).get("version", ""))
        console.active_models.admin().activate(version)
        return _see("/models")

    # -- live -------------------------------------------------------------------------------------------------------

    @router.get(CONSOLE + "/events")
    @page("admin")
    async def events(request: Request, viewer: Viewer) -> Response:
        """Server-sent events: `changed` when a run that this person sees has changed."""
        if listeners[0] >= _MAX_LISTENERS:
            return PlainTextResponse("too many listeners", 503, HEADERS)

        async def stream() -> AsyncIterator[str]:
            last = ""
            listeners[0] += 1  # here: a reply whose client has gone is never begun
            try:
                yield "retry: 2000\n\n"
                while True:
                    digest = _digest(home.live_rows(console, viewer))
                    if digest != last:
                        yield f"event: changed\ndata: {json.dumps({'revision': digest})}\n\n"
                        last = digest
                    await asyncio.sleep(_EVENT_S)
                    if sessions.viewer(request.cookies.get(COOKIE), console.clock.unix_time()) is None:
                        return
            except RequestRefused:
                return  # the server closes
            finally:
                listeners[0] -= 1

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={**HEADERS, "x-accel-buffering": "no"}
        )

    @router.get(CONSOLE + "/static/{name}")
    async def static(request: Request) -> Response:
        return static_file(request.path_params["name"]) or PlainTextResponse("not found", 404, HEADERS)

    return router


def _digest(rows: list[home.RunRow]) -> str:
    """Equal for equal pages but for the seconds."""
    shown = repr([row._replace(seen_s=0.0) for row in rows])
    return blake2b(shown.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _to_login(request: Request, needs_key: bool) -> Response:
    if not needs_key:
        words = "Without keys the console is for this machine alone: set REWARD_KEYS_FILE."
        return PlainTextResponse(words, 403, HEADERS)
    if request.method != "GET" or request.url.path.endswith("/events"):
        return PlainTextResponse("log in first", 401, HEADERS)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{CONSOLE}/login?next={quote(target, safe='')}", 303, HEADERS)


def _safe_next(target: str) -> str:
    """A page of the console to show after the login: never another site."""
    is_ours = target == CONSOLE or target.startswith((CONSOLE + "/", CONSOLE + "?"))
    return target if is_ours and target.isprintable() and "\\" not in target and "//" not in target else CONSOLE


def _permitted(label: str, viewer: Viewer) -> str:
    if not label or not viewer.may_see(label):
        raise _Refused(404, "No such run", "It is forgotten, or this key is bound to other runs.")
    return label


def _see(path: str) -> Response:
    return RedirectResponse(CONSOLE + path, 303, HEADERS)


def _queue(fields: dict[str, str], **more: str) -> str:
    sampling = next((each for each in _SAMPLINGS if each == fields.get("sampling")), "random")
    return f"/queue?{urlencode({'run': fields.get('run', ''), 'sampling': sampling, **more})}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def time_of_day(unix_s: float) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00") + " UTC"
