"""Headers as ASGI brings them: pairs of bytes, names in lower case. A few look-ups need no dictionary of them."""

from __future__ import annotations

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
