"""What `python -m tests.layout` counts, and that today's counts are within their limits."""

from __future__ import annotations

import ast

from tests import layout

ONE = """
from rewardserve.service import two

class Row: ...
class _Own: ...

def f(a: Callable[[], None], *, b: Handler | None = None) -> Callable[[], None]: ...
Handler = Callable[[int], None]
"""
TWO = """
class Row: ...
class _Own: ...

def lazy():
    from rewardserve.service.one import f
"""


def modules():
    return {"rewardserve.service.one": ast.parse(ONE), "rewardserve.service.two": ast.parse(TWO)}


def test_a_public_class_of_one_name_in_two_modules_is_found():
    assert layout.classes_defined_twice(modules()) == ["Row: rewardserve.service.one, rewardserve.service.two"]


def test_callable_parameters_are_found_also_by_an_alias_and_returned_callables_are_none():
    assert [found.split()[1] for found in layout.callable_parameters(modules())] == ["f(a)", "f(b)"]


def test_a_cycle_over_a_lazy_import_is_found():
    assert layout.import_cycles(modules()) == ["rewardserve.service.one <-> rewardserve.service.two"]


def test_the_tree_is_within_its_limits(capsys):
    assert layout.main() == 0, capsys.readouterr().out
