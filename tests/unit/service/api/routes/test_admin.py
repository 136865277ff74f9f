"""What a body of `POST /admin/models` loads: only a model that it names."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.requests import Request

from rewardserve.service.api import body
from rewardserve.service.api.routes.admin import LoadRequest, PinRequest
from rewardserve.service.api.validation import check
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.deployment import Source


def source(**fields):
    return check(fields, LoadRequest).source


def test_a_model_is_named_or_the_default_one_by_its_word():
    assert source(model="/models/a") == Source("/models/a", "")
    assert source(ensemble="a=/models/a,b=/models/b") == Source("", "a=/models/a,b=/models/b")
    assert source(model="default") == Source("", "")
    assert source(model="./default") == Source("./default", "")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "model"), ({"model": ""}, "model"), ({"model": " "}, "model"), ({"model": None}, "model"),
        ({"ensemble": ""}, "ensemble"), ({"ensemble": " "}, "ensemble"), ({"model": "a", "ensemble": ""}, "ensemble"),
        ({"model": "", "ensemble": "a=b"}, "model"), ({"model": "a", "ensemble": "a=b"}, "ensemble"), ({"shadow": 0.5}, "model"),
        ({"model": "a", "pin": [""]}, "pin"), ({"model": "a", "pin": ""}, "pin"),
    ],
)  # fmt: skip
def test_a_body_that_names_no_model_or_two_is_refused(fields, named):
    with pytest.raises(InvalidRequest) as refused:
        _ = source(**fields)
    assert refused.value.details["field"].startswith(named)


@pytest.mark.parametrize(("schema", "known"), [(LoadRequest, {"model": "a"}), (PinRequest, {"run": "r", "version": 1})])
def test_an_unknown_field_is_called_unknown_and_not_missing_from_a_text(schema, known):
    content = json.dumps({**known, "name": "x"}).encode()

    async def receive():
        return {"type": "http.request", "body": content}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(InvalidRequest) as refused:
        asyncio.run(body.read_admin_body(request, schema))
    assert refused.value.details["field"] == "name"
    assert "unknown" in refused.value.message
    assert "scored" not in refused.value.message


def test_a_pin_names_a_run():
    with pytest.raises(InvalidRequest) as refused:
        check({"run": "", "version": 1}, PinRequest)
    assert refused.value.details["field"] == "run"
