"""Read the query of a URL as a record: the counterpart of `body` for routes that have no body."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import Request

from rewardserve.service.api.requests import StrictRecord
from rewardserve.service.api.run_context import query_parameters
from rewardserve.service.errors import InvalidRequest

Q = TypeVar("Q", bound=StrictRecord)


def read_query(request: Request, record: type[Q]) -> Q:
    """The query parameters of a request. Raise `InvalidRequest` for one that is unknown, given twice, missing or out of range."""
    known = [field.encode_name for field in msgspec.structs.fields(record)]
    given = query_parameters(request.scope["query_string"], known, "")
    try:
        return msgspec.convert(given, record, strict=False)
    except msgspec.ValidationError as error:
        # msgspec names the field at the end, and quotes no value.
        text, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or next((name for name in known if f"`{name}`" in text), "query")
        raise InvalidRequest(
            f"the query parameter {field} is invalid: {text[:1].lower()}{text[1:]}", field=field
        ) from None
