"""Fixtures of the tests of models."""

import pytest

from rewardserve.model.templates import jinja_process


@pytest.fixture
def kept_rendering_processes(monkeypatch):
    """Keep each template's process until the test ends: it takes a second to start, and ends with the model that uses it."""
    monkeypatch.setattr(jinja_process, "_known", {})
