"""Models that are loaded and then not served: each is closed."""

from __future__ import annotations

import pytest

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.echo import EchoScorer
from rewardserve.model.reward import PipelineError
from rewardserve.service.models import loading
from rewardserve.service.models.loading import load_model
from rewardserve.service.settings import ServeSettings


@pytest.fixture
def closed(monkeypatch):
    """The scorers that were closed."""
    found = []

    def close(scorer):
        found.append(scorer)

    monkeypatch.setattr(EchoScorer, "close", close)
    return found


def test_the_members_before_one_that_cannot_be_loaded_are_closed(closed):
    members = "a=echo,b=echo:delay_ms=1,c=echo:no_such_option=1,d=echo"
    with pytest.raises(LoadError, match="c=echo:no_such_option=1 cannot be served"):
        load_model(ServeSettings(backend="echo", ensemble=members, _cli_parse_args=[]))
    assert len({id(scorer) for scorer in closed}) == len(closed) == 2


@pytest.mark.parametrize(("models", "n"), [({"model": "echo"}, 1), ({"ensemble": "a=echo,b=echo"}, 2)])
def test_a_model_whose_pipeline_cannot_be_built_is_closed(closed, monkeypatch, models, n):
    def refuse(*_):
        raise PipelineError("no pipeline")

    monkeypatch.setattr(loading, "build_pipeline", refuse)
    with pytest.raises(PipelineError):
        load_model(ServeSettings(backend="echo", **models, _cli_parse_args=[]))
    assert len({id(scorer) for scorer in closed}) == len(closed) == n
