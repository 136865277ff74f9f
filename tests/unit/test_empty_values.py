"""A field that is not read is refused by server, trainer and client alike, unless its value is empty: one rule, three places."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import UnsupportedField, is_empty_value
from rewardserve.service.api.dialects.turns import turns_of
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.pairs import to_pair
from rewardserve.training.dataset.source_columns import find_columns
from rewardserve.training.dataset.sources import SourceRow
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve_client.errors import Misconfigured
from rewardserve_client.fields import plain_messages
from tests.support.empty_values import EMPTY, GIVEN


def as_server(message):
    turns_of([message])


def as_client(message):
    plain_messages([message])


def as_trainer(message):
    asked = {"role": "user", "content": "Hi"}
    row = SourceRow("f", 1, {"chosen": [asked, message], "rejected": [asked, {"role": "assistant", "content": "no"}]})
    to_pair(row, find_columns([row], SourceConfig("f")), "score")


@pytest.mark.parametrize("read", [as_server, as_client, as_trainer])
@pytest.mark.parametrize("value", [*EMPTY, *GIVEN], ids=repr)
def test_a_field_that_is_not_read_is_let_through_only_where_it_is_empty(read, value):
    message = {"role": "assistant", "content": "yes", "reasoning_content": value}
    if any(value is each for each in EMPTY):
        read(message)
    else:
        with pytest.raises((UnsupportedField, Misconfigured, FieldError), match="reasoning_content"):
            read(message)


@pytest.mark.parametrize("value", [(), ({}, None), {"a": ()}])
def test_tuples_count_as_lists(value):
    assert is_empty_value(value)
    as_client({"role": "assistant", "content": "yes", "reasoning_content": value})


def test_a_value_of_any_depth_is_looked_at():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert is_empty_value(deep)
    as_client({"role": "assistant", "content": "yes", "reasoning_content": deep})
