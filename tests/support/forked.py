"""Commands of this project as forks of a process that has imported their libraries, which takes 3 s of CPU.

`python -m tests.support.forked FD MODULE...` imports the modules, then forks a child for each request on the socket FD; the child
runs a module as `python -m` does. The process of a test has threads, so it cannot be forked itself.

Servers without a model are forked from two processes in turn, so that a server and its replica, or the next one on its state, have
different seeds of hashes.

Not for variables of the environment that libraries read as they are imported, nor for measurements of memory.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ("rewardserve.service.app",)
MODEL = (*SERVICE, "rewardserve.model.backends.engine_choice", "transformers.modeling_utils")
_turns = {SERVICE: cycle((0, 1)), MODEL: cycle((0,))}
_MAX_REQUEST_BYTES = 1 << 20
_INT_BYTES = 4


class ForkedProcess:
    """`python -m COMMAND`, with the methods of `subprocess.Popen`. `stderr` is a pipe, stdout is discarded."""

    def __init__(self, modules: tuple[str, ...], command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it. `modules`: the imports that it shares."""
        self.returncode: int | None = None
        self._status, status = os.pipe()
        read, write = os.pipe()
        request = json.dumps({"command": list(command), "env": dict(env)}).encode()
        socket.send_fds(_parent(modules, next(_turns[modules]))[1], [request], [write, status])
        os.close(write)
        os.close(status)
        self.stderr = open(read, encoding="utf-8")  # noqa: SIM115
        self.pid = self._read_status()

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raise `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = self._read_status()
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read_status(self) -> int:
        if not (status := os.read(self._status, _INT_BYTES)):
            raise RuntimeError("the process that forks has ended")
        return int.from_bytes(status, signed=True)


@cache
def _parent(modules: tuple[str, ...], _turn: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process that forks. It ends, with its children, when this process does."""
    requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
    command = [sys.executable, "-m", "tests.support.forked", str(other.fileno()), *modules]
    with other:
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
    atexit.register(_end, process, requests)
    return process, requests


def _end(process: subprocess.Popen[bytes], requests: socket.socket) -> None:
    requests.close()
    process.wait()


def _fork_on_request(requests: socket.socket) -> tuple[list[str], dict[str, str]]:
    """Fork for each request and report process ids and exit codes. Return command and environment, in the child alone."""
    running: dict[int, tuple[int, int]] = {}  # descriptor of a child -> its process id, pipe for its exit code
    while True:
        for ready in select.select([requests.fileno(), *running], [], [])[0]:
            if ready in running:
                pid, status = running.pop(ready)
                _, how = os.waitpid(pid, 0)
                _write_status(status, os.waitstatus_to_exitcode(how))
                os.close(ready)
                os.close(status)
                continue
            data, descriptors, *_ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 2)
            if not data:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            stderr, status = descriptors
            if not (pid := os.fork()):
                os.dup2(stderr, 2)
                for each in (*descriptors, *running, *(other for _, other in running.values())):
                    os.close(each)
                requests.close()
                request = json.loads(data)
                return request["command"], request["env"]
            _write_status(status, pid)
            os.close(stderr)
            running[os.pidfd_open(pid)] = pid, status


def _write_status(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test does not ask for it any more
        os.write(pipe, number.to_bytes(_INT_BYTES, signed=True))


def main() -> None:
    """Import the modules, and run a command in each child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[2:]:
        import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    gc.freeze()
    command, env = _fork_on_request(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
