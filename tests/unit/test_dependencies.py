"""The dependency audit fails for what is known to be vulnerable, and says so where nothing is known."""

from __future__ import annotations

import sys

from tests import dependencies
from tests.dependencies import ask, installed, verdict
from tests.support.environments import project

FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {
    "name": "b",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def test_a_known_vulnerability_fails_and_names_the_remedy():
    code, lines = verdict([FINE, BAD, UNKNOWN])
    assert code == 1
    assert lines[1:] == ["b 2: PYSEC-1, fixed in 3", "b 2: PYSEC-2, fixed in no version"]


def test_what_is_unknown_is_counted_and_where_all_is_nothing_is_claimed():
    assert verdict([FINE, UNKNOWN]) == (
        0,
        ["dependency audit: no known vulnerabilities (1 packages looked up, 1 unknown to the index)"],
    )
    code, (line,) = verdict([UNKNOWN, UNKNOWN])
    assert code == 0
    assert "SKIPPED" in line


def test_who_does_not_answer_or_is_not_there_skips_it_visibly(monkeypatch, capsys):
    assert "not installed" in ask(["/no/such/pip-audit"])
    monkeypatch.setattr(dependencies, "TIMEOUT_S", 0.3)
    assert "no answer" in ask([sys.executable, "-c", "import threading; threading.Event().wait()"])
    assert "it said so" in ask([sys.executable, "-c", "import sys; sys.exit('it said so')"])
    monkeypatch.setattr(dependencies, "ask", lambda _: "no answer")
    assert dependencies.main() == 0
    assert "SKIPPED: no answer" in capsys.readouterr().out


def test_what_is_asked_about_is_what_is_installed_without_what_is_ours():
    listed = installed()
    assert any(line.startswith("pytest==") for line in listed)
    assert not any(line.startswith("rewardserve") or "+" in line for line in listed)


def test_an_environment_of_a_test_asks_no_index_for_the_project_itself():
    for extra in ("", "train", "vllm"):
        assert not [name for name in project("", extra=extra) if name.startswith("rewardserve")]
        assert {"torch>=2.11", "pytest>=9.0"} <= set(project("", extra=extra))
