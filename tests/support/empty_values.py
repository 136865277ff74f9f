"""Values of fields that are read by no component: which count as left out. Server, trainer and client have one rule."""

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
"""Null, NaN (a null of pandas), an empty text, and lists and objects of nothing but such: Parquet fills up so the fields that
only some rows have."""

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
"""All else, also a value that a template would take for false."""
