"""The names of uvicorn that our HTTP protocol and server use without a promise of uvicorn: present, with the arguments expected.

pyproject.toml bounds uvicorn from above; a newer version may be allowed once this passes with it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import tomllib
from pathlib import Path

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http import httptools_impl

from rewardserve.service import app
from rewardserve.service.api.http import protocol

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def attributes_of(node: ast.AST, owner: str, context: type[ast.expr_context]) -> set[str]:
    """The attributes of `self` (or of `self.cycle`) that code reads or writes."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, context) and ast.unparse(each.value) == owner
    }


def source_of(cls: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(cls)))


def methods_of(cls: type) -> dict[str, inspect.Signature]:
    return {name: inspect.signature(each) for name, each in vars(cls).items() if inspect.isfunction(each)}


def known(cls: type) -> set[str]:
    return attributes_of(source_of(cls), "self", ast.Store) | {*dir(cls)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(protocol.HttpProtocol, httptools_impl.HttpToolsProtocol), (app._UvicornServer, uvicorn.Server)],
)
def test_each_name_that_is_used_of_the_base_class_is_there(ours, theirs):
    used = attributes_of(source_of(ours), "self", ast.Load) | attributes_of(source_of(ours), "super()", ast.Load)
    own = attributes_of(source_of(ours), "self", ast.Store) - known(theirs) | {*vars(ours)} - {*dir(theirs)}
    assert used - own
    assert used - own <= known(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(protocol.HttpProtocol, httptools_impl.HttpToolsProtocol), (app._UvicornServer, uvicorn.Server)],
)
def test_methods_that_are_overridden_take_what_uvicorn_gives_them(ours, theirs):
    overridden = methods_of(ours).keys() & methods_of(theirs).keys() - {"__init__"}
    assert overridden
    for name in overridden:
        a, b = methods_of(ours)[name], methods_of(theirs)[name]
        assert [p.kind for p in a.parameters.values()] == [p.kind for p in b.parameters.values()], name


def test_a_request_in_flight_has_the_attributes_that_are_read_and_set():
    used = attributes_of(source_of(protocol.HttpProtocol), "self.cycle", ast.Load)
    used |= attributes_of(source_of(protocol.HttpProtocol), "self.cycle", ast.Store)
    assert used
    assert used <= known(httptools_impl.RequestResponseCycle)


def test_uvicorn_is_bounded_from_above():
    listed = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    [wanted] = [each for each in map(Requirement, listed) if each.name == "uvicorn"]
    assert uvicorn.__version__ in wanted.specifier
    assert any(each.operator == "<" for each in wanted.specifier)
