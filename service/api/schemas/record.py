"""The base of the records of replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec


class ReplyRecord(msgspec.Struct, frozen=True, gc=False):
    """Base of replies and of their parts. A field with the value UNSET is left out of the reply."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = None
    """JSON schema of fields besides those of the record, whose names are not fixed; None: there are none."""


def with_fields(record: ReplyRecord, further: Mapping[str, Any]) -> dict[str, Any]:
    """Build the fields of a record with `FURTHER_FIELDS`, and these."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {**further, **fields}
