"""What this machine has, for tests that need it."""

from __future__ import annotations

from model.backends.native import Unavailable, load


def amx_is_missing() -> dict[str, object]:
    """For `pytest.mark.skipif`: whether the kernels in C cannot run here, and why."""
    try:
        load()
    except Unavailable as why:
        return {"condition": True, "reason": str(why)}
    return {"condition": False, "reason": ""}
