"""Render a chat template in a separate process, which has limits of CPU time and memory and can be killed.

`python -P jinja_process.py` reads a template and then conversations from stdin, and writes texts to stdout. Imports nothing of
`model`, so that this process needs Jinja and transformers only. `jinja_budget` decides which renderings need it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Any, Protocol

CLOCK = "strftime_now"
MAX_CPU_S = 3
MAX_MEMORY_BYTES = 1 << 30
"""Memory beyond that of the process after its imports."""

_MAX_WALL_S = 120.0
"""Longest wait for a reply, for a machine that has no CPU time for the process."""

_TEXT_FACTOR, _TEXT_SPARE = 16, 16 * 2**20
"""A reply has at most `_TEXT_FACTOR` times the bytes of the request, plus `_TEXT_SPARE` bytes."""

_HEADER_BYTES = 8


class TemplateBroken(Exception):
    """The text is no valid template."""


class TemplateRefuses(Exception):
    """The template does not render these messages."""


class TemplateTooSlow(TemplateRefuses):
    """The template takes too much CPU time or memory for these messages."""


@dataclass(frozen=True, slots=True)
class TemplateDescription:
    """The names that a template uses and does not define as a macro, its filters, and its date formats.

    `clocks` None: one of the date formats is computed.
    """

    names: frozenset[str]
    filters: frozenset[str]
    clocks: tuple[str, ...] | None


class Renderer(Protocol):
    """Renderer of a template. Thread-safe."""

    description: TemplateDescription

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """Render the text. Raise `TemplateRefuses`."""
        ...


# -- in this process --------------------------------------------------------------------------------------------


class PlainTemplate:
    """A template in the environment of transformers, without a budget."""

    def __init__(self, template: str) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._compiled: Any = _compile_jinja_template(template)
            self.description = describe(self._compiled.environment.parse(template))
        except MemoryError:
            raise TemplateBroken("it takes too much memory.") from None
        except Exception as error:  # jinja2's syntax errors; a foreign template may raise anything
            raise TemplateBroken(str(error)) from None

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """Render as `apply_chat_template` does, but with the clock at `now`. Raise `TemplateRefuses`."""
        try:
            text: str = self._compiled.render(**{**variables, CLOCK: now.strftime})
        except MemoryError:
            raise TemplateTooSlow(_TOO_MUCH) from None
        except Exception as error:  # jinja2 errors: the template's own raise_exception among them
            raise TemplateRefuses(str(error)) from None
        return text


def describe(tree: Any) -> TemplateDescription:
    from jinja2 import nodes

    filters = list(tree.find_all(nodes.Filter))
    mapped = [f.args[0].value for f in filters if f.name == "map" and f.args and isinstance(f.args[0], nodes.Const)]
    macros = {node.name for node in tree.find_all(nodes.Macro)}
    used = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    calls = [c for c in tree.find_all(nodes.Call) if isinstance(c.node, nodes.Name) and c.node.name == CLOCK]
    written = [c.args[0].value for c in calls if len(c.args) == 1 and isinstance(c.args[0], nodes.Const)]
    clocks = tuple(dict.fromkeys(written)) if len(written) == len(calls) else None
    return TemplateDescription(
        frozenset(used - macros), frozenset([*(f.name for f in filters), *map(str, mapped)]), clocks
    )


# -- in a separate process ----------------------------------------------------------------------------------------

_TOO_MUCH = "it takes too much CPU time or memory, or writes too much text"


class RenderingProcess:
    """A template in a separate process, which is started again after it was killed. One rendering at a time.

    Raise `TemplateBroken`, or `OSError` where no process can be started.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        with self._lock:
            self.description = self._start()
        _all.add(self)

    @classmethod
    def of(cls, template: str) -> RenderingProcess:
        """The process of this template, shared by all its users."""
        with _known_lock:
            found = _known.get(template)
        if found is None:
            found = cls(template)
            with _known_lock:
                found = _known.setdefault(template, found)
        return found

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """Render as `PlainTemplate.render`. Raise `TemplateRefuses`, or `OSError` where no process can be started."""
        with self._lock:
            if self._process is None:
                try:
                    self._start()
                except TemplateBroken as error:
                    raise TemplateRefuses(str(error)) from None
            reply = self._request({"variables": variables, "now": now.isoformat()})
        if reply is None or reply.get("refused") == _TOO_MUCH:
            raise TemplateTooSlow(_TOO_MUCH)
        if "text" not in reply:
            raise TemplateRefuses(str(reply.get("refused")))
        return str(reply["text"])

    def _start(self) -> TemplateDescription:
        # A new session: a signal of the terminal to the server does not end it while the server drains.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(MAX_CPU_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        self._wait_until_ready(process)
        reply = self._request({"template": self._template})
        if reply is None:
            raise TemplateBroken(f"{_TOO_MUCH}.")
        if "broken" in reply:
            self._kill()
            raise TemplateBroken(str(reply["broken"]))
        clocks = reply["clocks"]
        return TemplateDescription(
            frozenset(reply["names"]), frozenset(reply["filters"]), None if clocks is None else tuple(clocks)
        )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            _receive(process.stdout, _max_reply_bytes(0))
        except (OSError, EOFError, ValueError) as error:
            process.kill()
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            self._kill()
            reason = lines[-1] if lines else type(error).__name__
            raise ChildProcessError(
                errno.ECHILD, f"the process that renders chat templates cannot be started: {reason}"
            ) from None

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a request and return the reply of the process; None: the process has ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        data = json.dumps(request).encode()
        try:
            # The process reads a whole request before it replies, so this write cannot deadlock with its write.
            _send(process.stdin, data)
            return _receive(process.stdout, _max_reply_bytes(len(data)))
        except (OSError, EOFError, ValueError):
            self._kill()
            return None

    def leave(self) -> None:
        """Forget the process, which belongs to the parent of a fork."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._end.detach()
            self._process.returncode = 0  # the parent waits for it
        self._process = None

    def _kill(self) -> None:
        if self._process is not None:
            self._end()
        self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.wait()


_known: weakref.WeakValueDictionary[str, RenderingProcess] = weakref.WeakValueDictionary()
_known_lock = threading.Lock()
_all: weakref.WeakSet[RenderingProcess] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked process, forget the rendering processes: the parent keeps them and their pipes, and new ones are started here."""
    global _known_lock
    _known_lock = threading.Lock()  # another thread of the parent may have held it
    for each in list(_all):
        each.leave()


os.register_at_fork(after_in_child=_leave_to_parent)


def _max_reply_bytes(n_request: int) -> int:
    return _TEXT_FACTOR * n_request + _TEXT_SPARE


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_HEADER_BYTES, "big"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes], max_bytes: int) -> dict[str, Any]:
    """Read a reply. Raise `EOFError`, `TimeoutError`, or `ValueError` for more than `max_bytes`."""
    with DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        if not selector.select(_MAX_WALL_S):
            raise TimeoutError
    n = int.from_bytes(_exactly(pipe, _HEADER_BYTES), "big")
    if n > max_bytes:
        raise ValueError("too long")
    reply: dict[str, Any] = json.loads(_exactly(pipe, n))
    return reply


def _exactly(pipe: IO[bytes], n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


# -- the rendering process ----------------------------------------------------------------------------------------


def main() -> None:
    """Read a template, then render conversations until stdin is closed. A request beyond the CPU limit ends the process."""
    requests, replies, max_cpu_s = sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1])
    import transformers.utils.chat_template_utils  # before the limits are set

    _ = transformers
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MAX_MEMORY_BYTES,) * 2)
    _send(replies, b"{}")  # ready
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the server reads stderr only until here
    template: PlainTemplate | None = None
    with suppress(EOFError):
        while True:
            n = int.from_bytes(_exactly(requests, _HEADER_BYTES), "big")
            request = json.loads(_exactly(requests, n))
            _allow_cpu_time(max_cpu_s)
            if "template" in request:
                template, reply = _read(request["template"])
            else:
                reply = _rendered(template, request)
            data = json.dumps(reply).encode()
            if len(data) > _max_reply_bytes(n):
                data = json.dumps({"refused": _TOO_MUCH}).encode()
            _send(replies, data)


def _read(text: str) -> tuple[PlainTemplate | None, dict[str, Any]]:
    try:
        template = PlainTemplate(text)
    except TemplateBroken as error:
        return None, {"broken": str(error)}
    known = template.description
    clocks: Sequence[str] | None = known.clocks
    return template, {"names": sorted(known.names), "filters": sorted(known.filters), "clocks": clocks}


def _rendered(template: PlainTemplate | None, request: Mapping[str, Any]) -> dict[str, Any]:
    assert template is not None
    try:
        return {"text": template.render(request["variables"], datetime.fromisoformat(request["now"]))}
    except TemplateRefuses as error:
        return {"refused": str(error)}


def _allow_cpu_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(used.ru_utime + used.ru_stime) + seconds, most))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
