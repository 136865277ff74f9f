"""`make test` runs some cases of a sweep, evenly spaced."""

from types import SimpleNamespace

import pytest

from tests.conftest import pytest_collection_modifyitems


class Case:
    parent, originalname = SimpleNamespace(nodeid="tests/test_a.py"), "test_a"

    def __init__(self, i, n_kept):
        self.i, self._n_kept = i, n_kept

    def get_closest_marker(self, name):
        return None if self._n_kept is None else SimpleNamespace(args=(self._n_kept,))


def kept(n_cases, n_kept, argument="tests"):
    items, dropped = [Case(i, n_kept) for i in range(n_cases)], []
    hook = SimpleNamespace(pytest_deselected=lambda items: dropped.extend([*items]))
    pytest_collection_modifyitems(SimpleNamespace(args=[argument], hook=hook), items)
    found = [item.i for item in items]
    assert sorted(found + [item.i for item in dropped]) == list(range(n_cases))
    return found


@pytest.mark.parametrize(
    ("n_cases", "n_kept", "expected"),
    [(9, 3, [0, 3, 6]), (5, 2, [0, 2]), (3, 3, [0, 1, 2]), (3, 5, [0, 1, 2]), (3, 0, []), (3, None, [0, 1, 2])],
)
def test_a_sweep_keeps_evenly_spaced_cases_and_all_where_there_are_fewer(monkeypatch, n_cases, n_kept, expected):
    monkeypatch.delenv("SWEEPS", raising=False)
    assert kept(n_cases, n_kept) == expected


@pytest.mark.parametrize(("sweeps", "expected"), [("all", [0, 1, 2, 3]), ("1", [0])])
def test_a_variable_chooses_all_cases_or_one(monkeypatch, sweeps, expected):
    monkeypatch.setenv("SWEEPS", sweeps)
    assert kept(4, 2) == expected


def test_a_test_that_is_named_on_the_command_line_keeps_all_cases(monkeypatch):
    monkeypatch.delenv("SWEEPS", raising=False)
    assert kept(4, 2, "tests/test_a.py::test_a") == [0, 1, 2, 3]
