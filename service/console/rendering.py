"""Templates and static files of the console, and the headers of its replies."""

from __future__ import annotations

from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import DictLoader, Environment, StrictUndefined
from starlette.responses import HTMLResponse, Response

from rewardserve.service.console.text import visible

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
_TYPES = {"css": "text/css", "js": "text/javascript"}

_folder = files(__package__)
_pages = Environment(
    loader=DictLoader(
        {
            each.name: each.read_text("utf-8")
            for each in (_folder / "templates").iterdir()
            if each.name.endswith(".html")
        }
    ),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.filters["visible"] = visible
_pages.filters["in_path"] = lambda text: quote(text, safe="")
_static = {
    each.name: each.read_bytes() for each in (_folder / "static").iterdir() if each.name.rpartition(".")[2] in _TYPES
}


def render(template: str, status: int = 200, **view: Any) -> HTMLResponse:
    """A page of this template."""
    return HTMLResponse(_pages.get_template(template).render(view), status, HEADERS)


def static_file(name: str) -> Response | None:
    """A static file; None: there is none with this name."""
    content = _static.get(name)
    if content is None:
        return None
    headers = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=300"}
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)
