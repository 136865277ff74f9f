"""Run mutmut in the folder of an area, but test its mutants in children of one pytest session: `python -P judge.py N_CHILDREN`.

mutmut mutates, finds out which tests reach a function, and keeps the results. Its own runner starts pytest anew for each mutant,
which takes longer than the tests do, and runs the quickest test first, not the one that is likely to fail.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import mutmut.__main__ as mutmut
import pytest
from _pytest.config import _prepareconfig
from mutmut.configuration import config
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import ForkRunner, MutantResult, RunningWorker

_MAX_CPU_S, _MAX_RATIO = 5, 5
"""A test that computes for ever ends its child after so many seconds of CPU time, and so many times what it usually takes."""
_TEST_S = 0.001
"""What pytest adds to the duration of a test."""
_NO_MUTANT = "none"
_PASSED, _FAILED, _CRASHED = 0, 1, 3


class SessionRunner(ForkRunner):
    """Fork a child for each mutant from a session that has collected all tests.

    `folder`: for temporary files.
    """

    def __init__(self, max_workers: int, folder: Path) -> None:
        super().__init__(max_workers, PytestRunner())
        self._folder = folder
        self._n_noticed: Counter[tuple[str, str]] = Counter()
        self._n_noticed_by: Counter[str] = Counter()

    @cached_property
    def _session(self) -> pytest.Session:
        options = ["--rootdir=.", "--tb=no", "-x", "-q", "-s"]
        arguments = [*options, *config().pytest_add_cli_args, *config().pytest_add_cli_args_test_selection]
        with change_cwd("mutants"):
            # What `pytest.main` does before it runs the tests.
            parsed = _prepareconfig(arguments)
            parsed._do_configure()
            session = pytest.Session.from_config(parsed)
            parsed.hook.pytest_sessionstart(session=session)
            parsed.hook.pytest_collection(session=session)
        return session

    @cached_property
    def _items(self) -> dict[str, pytest.Item]:
        return {item.nodeid: item for item in self._session.items}

    def run_clean_tests(self, tests: Iterable[str]) -> int:
        """Run all tests without a mutant, as mutants are tested."""
        code = self._exit_code(self._fork(list(tests) or list(self._items)))
        if code:
            print("without a mutant, this fails:", (self._folder / _NO_MUTANT).read_text(), file=sys.__stderr__)
        return code

    def run_forced_fail(self) -> int:
        """Run them where every function under test raises."""
        return self._exit_code(self._fork(list(self._items)))

    def submit(self, mutant_name: str, tests: list[str], cpu_time_limit: int, estimated_time: float) -> None:
        """Test a mutant in a child."""
        function = mangled_name_from_mutant_name(mutant_name)
        ordered = sorted(tests, key=lambda test: self._promise(function, test), reverse=True)
        pid = self._fork(ordered, mutant_name)
        self._running[pid] = RunningWorker(mutant_name, datetime.now(), estimated_time)

    def wait_for_result(self, timeout: float | None = None) -> MutantResult:
        """Wait for a child, and count the test that noticed its mutant."""
        result = super().wait_for_result(timeout)
        note = self._folder / result.mutant_name
        if note.exists():
            test = note.read_text()
            self._n_noticed[mangled_name_from_mutant_name(result.mutant_name), test] += 1
            self._n_noticed_by[test] += 1
            note.unlink()
        return result

    def _promise(self, function: str, test: str) -> float:
        """How many mutants of a function a test may notice a second: as many as so far, of this function above all."""
        n = 1 + self._n_noticed_by[test] + 100 * self._n_noticed[function, test]
        return n / (state().duration_by_test[test] + _TEST_S)

    def _fork(self, tests: Sequence[str], mutant: str = _NO_MUTANT) -> int:
        """Run these tests in a child. The process id."""
        items = [self._items[test] for test in tests]
        if pid := os.fork():
            return pid
        code = _CRASHED
        try:
            if mutant != _NO_MUTANT:
                set_mutant_under_test(mutant)
            os.chdir("mutants")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            failed = self._first_failed(items)
            if failed:
                (self._folder / mutant).write_text(failed)
            code = _FAILED if failed else _PASSED
        finally:
            os._exit(code)

    def _first_failed(self, items: Sequence[pytest.Item]) -> str | None:
        for item, following in zip(items, [*items[1:], None], strict=True):
            limit = _MAX_CPU_S + _MAX_RATIO * state().duration_by_test[item.nodeid]
            signal.setitimer(signal.ITIMER_PROF, limit)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._session.testsfailed:
                return item.nodeid
        return None

    @staticmethod
    def _exit_code(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Command-line entry."""
    with TemporaryDirectory() as folder:
        # A child ends without clearing up.
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        mutmut.get_mutant_runner = lambda max_workers: SessionRunner(max_workers, Path(folder))
        mutmut._run((), int(sys.argv[1]))


if __name__ == "__main__":
    main()
