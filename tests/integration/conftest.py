"""Fixtures of the tests of whole commands and servers."""

import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the plots of a training report, which take half of the time of a short training."""
    monkeypatch.setattr("rewardserve.training.results.report._drawn", lambda *_: "")
