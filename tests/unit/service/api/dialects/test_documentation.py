"""A wire format documents itself: the OpenAPI document has the texts and examples of its own file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI

from rewardserve.service.api import openapi
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, sample_from_pair
from rewardserve.service.api.dialects.routes import DialectPolicy, dialect_routes
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.app import create_app
from rewardserve.service.auth.api_keys import ApiKeys
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.settings import ServeSettings
from tests.support.service_fakes import StillClock


class NovelRequest(msgspec.Struct, frozen=True):
    question: Annotated[str, msgspec.Meta(description="the question", examples=["Why?"])]
    reply: Annotated[str, msgspec.Meta(description="the reply to score", examples=["Because."])]


class NovelReply(ReplyRecord, frozen=True):
    novel: Annotated[float, msgspec.Meta(description="the reward", examples=[0.41])]


NOVEL = Dialect(
    path="/novel",
    clients="a new trainer",
    body_formats=(
        BodyFormat(
            text_fields=("question", "reply"),
            body=NovelRequest,
            to_samples=lambda body, served: [sample_from_pair(body.question, body.reply, served)],
            to_reply=lambda _, scored_request: NovelReply(scored_request.scores[0]),
            replies=(NovelReply,),
        ),
    ),
    score_kind="reward",
    example_reply={"novel": 0.41},
)


def test_fields_and_reply_of_a_new_format_are_those_of_its_file():
    api = FastAPI()
    api.include_router(
        dialect_routes((NOVEL,), ActiveModels(), ServerLimits(8, 1000, 8, 1000), StillClock(), DialectPolicy())
    )
    openapi.install_openapi(api)
    document = api.openapi()
    reply = document["paths"]["/novel"]["post"]["responses"]["200"]["content"]["application/json"]
    assert reply["schema"] == {"$ref": "#/components/schemas/NovelReply"}
    schemas = document["components"]["schemas"]
    assert schemas["NovelReply"]["properties"]["novel"]["description"] == "the reward"
    fields = schemas["NovelRequest"]["properties"]
    assert reply["example"] == {"novel": 0.41}
    assert {name: (field["description"], field["examples"]) for name, field in fields.items()} == {
        "question": ("the question", ["Why?"]),
        "reply": ("the reply to score", ["Because."]),
    }


async def test_routes_make_no_schema_of_a_record(monkeypatch):
    """Those of 40 routes with their errors take most of a second, which every start of a server would wait for."""
    made = []
    schema_components = msgspec.json.schema_components
    monkeypatch.setattr(
        msgspec.json,
        "schema_components",
        lambda types, **options: made.extend(types) or schema_components(types, **options),
    )
    create_app(ServeSettings(_cli_parse_args=[]), ApiKeys())
    assert [each for each in made if isinstance(each, type) and issubclass(each, msgspec.Struct)] == []
