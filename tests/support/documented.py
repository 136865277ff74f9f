"""The replies that the OpenAPI document describes, with no further fields: what a client that is generated from it can read."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from docs.reference import openapi, operations

MOST_BYTES = 20_000
"""Larger replies have the same fields more often."""


@cache
def document():
    with ThreadPoolExecutor(1) as own_thread:  # an event loop may run on this one
        return own_thread.submit(openapi).result()


def closed(schema):
    """A copy of a schema in which no object has a field that is not described."""
    if isinstance(schema, dict):
        schema = {name: part if name in ("example", "examples") else closed(part) for name, part in schema.items()}
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        return schema
    return [closed(part) for part in schema] if isinstance(schema, list) else schema


@cache
def components():
    return closed(document()["components"])


def validator(schema):
    return Draft202012Validator({**closed(copy.deepcopy(schema)), "components": components()})


@cache
def routes():
    """Method, pattern and path of every route, the longer ones first, since names of models and runs may have slashes."""
    found = []
    for method, path, _ in operations(document()):
        pattern = re.sub(
            r"\\\{(\w+)\\\}", lambda name: "[^/]+" if name[1] in ("version", "wire") else ".+", re.escape(path)
        )
        found.append((method, re.compile(pattern), path))
    return sorted(found, key=lambda route: -len(route[2]))


def route_of(method, path):
    """The path in the document; None: there is no such route."""
    return next((name for verb, pattern, name in routes() if verb == method and pattern.fullmatch(path)), None)


@cache
def reply_validator(method, path, status, media_type):
    """For one reply of a route. Fails where the document has none."""
    described = document()["paths"][path][method.lower()]["responses"]
    assert str(status) in described, f"{method} {path}: {status} is not in the document"
    content = described[str(status)]["content"]
    assert media_type in content, f"{method} {path}: {status} has {media_type}, not {', '.join(content)}"
    return validator(content[media_type]["schema"])


def faults(method, path, status, media_type, value):
    """What is wrong with a reply, in words."""
    return [
        f"{method} {path} {status} {error.json_path}: {error.message}"
        for error in reply_validator(method, path, status, media_type).iter_errors(value)
    ]


def check(response: httpx.Response) -> None:
    """Check a reply of a running server. A hook of httpx."""
    method = response.request.method
    path = route_of(method, response.request.url.path)
    response.read()
    if path is None or len(response.content) > MOST_BYTES:
        return
    media_type = response.headers.get("content-type", "")
    value = response.json() if media_type == "application/json" else response.text
    found = faults(method, path, response.status_code, media_type, value)
    assert not found, found
