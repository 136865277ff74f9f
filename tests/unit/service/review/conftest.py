"""The databases in which the review store is tested: SQLite, and Postgres where `REWARDSERVE_TEST_POSTGRES` has a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardserve.service.review.store import ReviewStore

POSTGRES = os.environ.get("REWARDSERVE_TEST_POSTGRES", "")


@pytest.fixture(params=["sqlite", *(["postgres"] if POSTGRES else [])])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The place of an empty store."""
    if request.param == "sqlite":
        yield str(tmp_path / "review.db")
        return
    store = ReviewStore(POSTGRES)
    store.downgrade("base")
    store.close()
    yield POSTGRES


@pytest.fixture
def store(database: str) -> Iterator[ReviewStore]:
    """An empty store."""
    store = ReviewStore.open(database)
    yield store
    store.close()
