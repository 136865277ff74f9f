"""`/docs` and `/redoc`: Swagger UI and Redoc out of a package that is installed, so that both work without the internet.

Where there are keys, a browser asks for one: these pages are refused with a Basic challenge, whose password is the key.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

from service.api.problems import FRAMEWORK_CODES
from service.api.replies import json_response

OPENAPI, SWAGGER, REDOC, ASSETS = "/openapi.json", "/docs", "/redoc", "/docs/assets"
CHALLENGE = 'Basic realm="RewardServe: any user name, an API key as the password", charset="UTF-8"'

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
}
_NO_ICON = "data:,"
_A_DAY = {"cache-control": "private, max-age=86400"}


def is_page(path: str) -> bool:
    """Whether a browser shows this, or fetches it for what it shows."""
    return path in (OPENAPI, SWAGGER, REDOC) or path.startswith(ASSETS + "/")


def page_routes(title: str) -> APIRouter:
    """The pages and what they are made of; not in the OpenAPI document themselves."""
    router = APIRouter(include_in_schema=False)
    package = files("fastapi_offline") / "static"
    assets = {name: (package / name).read_bytes() for name in _TYPES}

    @router.get(SWAGGER)
    async def swagger() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=OPENAPI,
            title=title,
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
            # No validator: it would be sent the document, over the internet.
            swagger_ui_parameters={"validatorUrl": None, "persistAuthorization": False, "docExpansion": "list"},
        )

    @router.get(REDOC)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(
            openapi_url=OPENAPI,
            title=title,
            redoc_js_url=f"{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=_NO_ICON,
            with_google_fonts=False,
        )

    @router.get(ASSETS + "/{name}")
    async def asset(name: str) -> Response:
        if name not in assets:
            return json_response({"error": {"code": FRAMEWORK_CODES[404], "message": "Not Found; see /docs"}}, 404)
        return Response(assets[name], media_type=_TYPES[name], headers=_A_DAY)

    return router
