"""What every process of Ray does first: it learns the backend for drills, as `tests.support.service_backends` does."""

from __future__ import annotations


def register():
    from rewardserve.model.backends import BACKENDS

    BACKENDS["drill"] = "tests.support.service_backends:load"
