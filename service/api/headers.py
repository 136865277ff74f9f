"""Look up headers in the ASGI scope: pairs of bytes, names in lower case. Few look-ups are needed, so no dictionary is built."""

from __future__ import annotations

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of this name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
