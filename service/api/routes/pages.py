"""`/docs` and `/redoc`: Swagger UI and Redoc from an installed package, so that both work without internet access.

On a server with keys these pages need one: a request without a key gets a Basic challenge, and the browser shows a login dialog
whose password is the key.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from rewardserve.service.api.error_responses import FRAMEWORK_CODES
from rewardserve.service.api.replies import json_response

OPENAPI, SWAGGER, REDOC, ASSETS = "/openapi.json", "/docs", "/redoc", "/docs/assets"
CHALLENGE = 'Basic realm="RewardServe: any user name, an API key as the password", charset="UTF-8"'

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
}
_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Redoc would load an image from the internet."""

_A_DAY = {"cache-control": "private, max-age=86400"}
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">{style}</head>
<body style="margin:0"><div id="page"></div>
<script src="{script}"></script>
<script>
  // The origin never has a key, also if the URL of the page has one; browsers do not fetch URLs with a key.
  const url = location.origin + "{openapi}";
  {start}
</script></body></html>
"""
# No validator: it would upload the document to a site on the internet.
_SWAGGER_UI = (
    """SwaggerUIBundle({url, dom_id: "#page", deepLinking: true, validatorUrl: null, docExpansion: "list"});"""
)
_REDOC = """Redoc.init(url, {}, document.getElementById("page"));"""


def is_page(path: str) -> bool:
    """Whether the path is a page of the documentation or a file that such a page loads."""
    return path in (OPENAPI, SWAGGER, REDOC) or path.startswith(ASSETS + "/")


def page_routes(title: str) -> APIRouter:
    """Create the routes of the pages, their scripts and styles, which are not in the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    package = files("fastapi_offline") / "static"
    assets = {name: (package / name).read_bytes() for name in _TYPES}

    @router.get(SWAGGER)
    async def swagger() -> HTMLResponse:
        style = f'<link rel="stylesheet" href="{ASSETS}/swagger-ui.css">'
        return _page(title, style, "swagger-ui-bundle.js", _SWAGGER_UI)

    @router.get(REDOC)
    async def redoc() -> HTMLResponse:
        return _page(title, "", "redoc.standalone.js", _REDOC)

    @router.get(ASSETS + "/{name}")
    async def asset(name: str) -> Response:
        if name not in assets:
            return json_response({"error": {"code": FRAMEWORK_CODES[404], "message": "Not Found; see /docs"}}, 404)
        return Response(assets[name], media_type=_TYPES[name], headers=_A_DAY)

    return router


def _page(title: str, style: str, script: str, start: str) -> HTMLResponse:
    page = _PAGE.format(title=title, style=style, script=f"{ASSETS}/{script}", openapi=OPENAPI, start=start)
    return HTMLResponse(page, headers={"content-security-policy": _SECURITY_POLICY})
