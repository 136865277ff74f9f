"""Values that count as empty in a field that no component reads. Server, trainer and client have one rule."""

from __future__ import annotations

from math import inf, nan

EMPTY = [
    None,
    "",
    [],
    {},
    nan,
    [{}],
    [None, ""],
    {"a": None, "b": [], "c": {"d": ""}},
    [{"function": {"name": None, "arguments": ""}, "id": None}],
    [[[[[[[[[]]]]]]]]],
    {"a": {"b": {"c": {"d": {"e": {"f": None}}}}}},
    [nan, {"a": nan}],
]
"""Null, NaN (a null of pandas), an empty text, and lists and objects of these alone: Parquet fills the missing fields of a
row with such values."""

GIVEN = [
    0,
    0.0,
    False,
    True,
    " ",
    "\n",
    "0",
    inf,
    [0],
    [False],
    [[], [""], " "],
    {"a": None, "b": 0},
    [{"function": {"name": "get", "arguments": ""}}],
    [[[[[[[[["x"]]]]]]]]],
    {"a": {"b": {"c": {"d": {"e": {"f": "x"}}}}}},
]
"""All other values, also those that a template treats as false."""
