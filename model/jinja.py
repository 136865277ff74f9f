"""What a chat template is and does, for `model.template`: in this process where it is plain, else in one of its own.

A template comes with a checkpoint, and Jinja's sandbox keeps it from files but not from time and memory: two nested loops, or
a text that doubles, are enough to hold a server up for ever. A template that is *plain* cannot: its loops run over messages and
are not nested, and nothing in it grows with their number but the text that it writes. Any other one is compiled and rendered
by `python -P jinja.py`, a process with limits of CPU time and memory that can be killed. Imports nothing of `model`, so that
this process needs Jinja and transformers only.
"""

from __future__ import annotations

import json
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
"""More than what the process has after its imports."""

_MAX_WALL_S = 120.0
"""Of an answer, on a machine that has no CPU time for it."""

_TEXT_FACTOR, _TEXT_SPARE = 16, 16 * 2**20
"""A rendered text has at most so many times the bytes of the request, and so many more."""

_LONGEST_PLAIN = 32_768
_MOST_SUMS = 8
_MOST_SETS = 64
_MOST_CHARS_HERE = 1 << 30
"""That a plain template could write at the very most, where it is rendered in this process."""

_HEADER_BYTES = 8


class TemplateBroken(Exception):
    """This is no template."""


class TemplateRefuses(Exception):
    """The template does not render these messages."""


class TemplateTooSlow(TemplateRefuses):
    """The template takes too much CPU time or memory for these messages."""


@dataclass(frozen=True, slots=True)
class Description:
    """The names that a template uses and does not define as a macro, its filters, and the formats in which it asks for the date.

    `clocks` None: one of them is not written in the template.
    """

    names: frozenset[str]
    filters: frozenset[str]
    clocks: tuple[str, ...] | None


class Renderer(Protocol):
    """A template that was read. Thread-safe."""

    description: Description

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """Text. Raise `TemplateRefuses`."""
        ...


def renderer(template: str) -> Renderer:
    """Read a template, in this process if that cannot hurt. Raise `TemplateBroken`."""
    cost = cost_if_plain(template)
    return _apart(template) if cost is None else Plain(template, cost)


# -- in this process --------------------------------------------------------------------------------------------


class InProcess:
    """A template in the environment that transformers makes for it."""

    def __init__(self, template: str) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._compiled: Any = _compile_jinja_template(template)
            self.description = _describe(self._compiled.environment.parse(template))
        except MemoryError:
            raise TemplateBroken("it takes too much memory.") from None
        except Exception as error:  # jinja2's syntax errors; whatever a foreign template makes it say
            raise TemplateBroken(str(error)) from None

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """As `apply_chat_template` does, which lets nobody replace its clock. Raise `TemplateRefuses`."""
        try:
            text: str = self._compiled.render(**{**variables, CLOCK: now.strftime})
        except MemoryError:
            raise TemplateTooSlow(_TOO_MUCH) from None
        except Exception as error:  # jinja2 errors: the template's own raise_exception among them
            raise TemplateRefuses(str(error)) from None
        return text


def _describe(tree: Any) -> Description:
    from jinja2 import nodes

    filters = list(tree.find_all(nodes.Filter))
    mapped = [f.args[0].value for f in filters if f.name == "map" and f.args and isinstance(f.args[0], nodes.Const)]
    macros = {node.name for node in tree.find_all(nodes.Macro)}
    used = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    calls = [c for c in tree.find_all(nodes.Call) if isinstance(c.node, nodes.Name) and c.node.name == CLOCK]
    written = [c.args[0].value for c in calls if len(c.args) == 1 and isinstance(c.args[0], nodes.Const)]
    clocks = tuple(dict.fromkeys(written)) if len(written) == len(calls) else None
    return Description(frozenset(used - macros), frozenset([*(f.name for f in filters), *map(str, mapped)]), clocks)


class Plain:
    """A template that is plain, in this process; what is so large that even this could take long is rendered apart."""

    def __init__(self, template: str, cost: int) -> None:
        self._template, self._cost = template, cost
        self._here = InProcess(template)
        self.description = self._here.description

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """As `InProcess.render`."""
        messages = variables["messages"]
        n_chars = sum([len(message["content"]) for message in messages])
        if self._cost * (len(messages) + 1) * n_chars <= _MOST_CHARS_HERE:
            return self._here.render(variables, now)
        try:
            return _apart(self._template).render(variables, now)
        except TemplateBroken as error:
            raise TemplateRefuses(str(error)) from None


def cost_if_plain(template: str) -> int | None:
    """At most how many characters a plain template writes for a message and a character of the conversation; None: not plain.

    Plain, of what a conversation of texts can reach: known nodes only; loops over messages that are not nested; no call that
    repeats, pads or joins; and nothing that a loop carries from one round to the next (attributes of namespaces) is made of a sum,
    directly or by way of another name. What else a loop sets is forgotten each round. Blocks of text are set outside of loops, and
    used there.
    """
    from jinja2 import nodes
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > _LONGEST_PLAIN:
        return None
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(template)
        if sum(1 for _ in tree.find_all((nodes.Assign, nodes.For, nodes.If))) > 4 * _MOST_SETS:
            return None
        tree = reachable(tree)
        every = [tree, *tree.find_all(nodes.Node)]
    except Exception:  # let the other process say what is wrong with it
        return None
    kinds = _plain_nodes()
    sets = [node for node in every if isinstance(node, nodes.Assign)]
    if len(sets) > _MOST_SETS:
        return None
    blocks = {
        node.target.name
        for node in every
        if isinstance(node, nodes.AssignBlock) and isinstance(node.target, nodes.Name)
    }
    sums = {each.target.name for each in sets if isinstance(each.target, nodes.Name) and _n_sums(each.node)}
    summed, of_blocks = _made_of(sets, sums | blocks), _made_of(sets, blocks)
    # Each use of a block that is set may write all of its text once more.
    n_uses = sum(isinstance(node, nodes.Name) and node.ctx == "load" and node.name in of_blocks for node in every)
    n_sums = n_uses + sum(_n_sums(each.node) for each in sets)
    loops = [node for node in every if isinstance(node, nodes.For)]
    is_plain = (
        all(isinstance(node, kinds) for node in every)
        and all(_is_plain_call(node) for node in every)
        and all(_runs_over_messages(loop, sets) for loop in loops)
        and not any(_names_in(loop) & of_blocks or any(loop.find_all(nodes.AssignBlock)) for loop in loops)
        and not any(_n_sums(s.node) or _names_in(s.node) & summed for s in sets if isinstance(s.target, nodes.NSRef))
        and n_sums <= _MOST_SUMS
        # A name that means something here keeps its meaning.
        and not any(isinstance(n, nodes.Name) and n.ctx != "load" and n.name in _KEPT_NAMES for n in every)
    )
    return len(every) << n_sums if is_plain else None


def _made_of(sets: Sequence[Any], names: set[str]) -> set[str]:
    """These names, and those whose value is made of one of them."""
    from jinja2 import nodes

    found = set(names)
    named = [(each.target.name, _names_in(each.node)) for each in sets if isinstance(each.target, nodes.Name)]
    for _ in named:
        found |= {name for name, used in named if used & found}
    return found


_PLAIN_FILTERS = frozenset({"trim", "length", "count", "first", "last", "lower", "string", "safe", "tojson"})
_PLAIN_CALLS = frozenset({"raise_exception", "namespace", CLOCK})
_KEPT_NAMES = _PLAIN_CALLS | {"loop"}
_PLAIN_METHODS = frozenset({"strip", "lstrip", "rstrip", "startswith", "endswith", "split"})


def _plain_nodes() -> tuple[type, ...]:
    from jinja2 import nodes as n

    return (
        n.Template, n.Output, n.TemplateData, n.Name, n.NSRef, n.Const, n.Getattr, n.Getitem, n.Slice, n.Compare, n.Operand,
        n.And, n.Or, n.Not, n.Neg, n.If, n.CondExpr, n.For, n.Filter, n.Test, n.Concat, n.Add, n.Sub, n.Assign, n.Call,
        n.Keyword, n.List, n.Tuple, n.Continue, n.Break, n.Mod, n.AssignBlock,
    )  # fmt: skip


def _is_plain_call(node: Any) -> bool:
    from jinja2 import nodes

    if isinstance(node, nodes.AssignBlock):
        return isinstance(node.target, nodes.Name) and node.filter is None
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(isinstance(each, nodes.Const) for each in node.items)
    if isinstance(node, nodes.Mod):  # of a text it would format
        return (
            isinstance(node.left, nodes.Getattr)
            and isinstance(node.left.node, nodes.Name)
            and node.left.node.name == "loop"
        )
    if isinstance(node, nodes.Filter):
        return node.name in _PLAIN_FILTERS and not node.args and not node.kwargs
    if not isinstance(node, nodes.Call):
        return True
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return False
    if isinstance(node.node, nodes.Getattr):
        return node.node.attr in _PLAIN_METHODS
    return isinstance(node.node, nodes.Name) and node.node.name in _PLAIN_CALLS


def _runs_over_messages(loop: Any, sets: Sequence[Any], *, inner: bool = False) -> bool:
    """Whether a loop runs over messages or a part of them, once. `inner`: it may have loops within."""
    from jinja2 import nodes

    if loop.recursive or (not inner and any(loop.find_all(nodes.For))) or not isinstance(loop.target, nodes.Name):
        return False
    if not _is_part_of(loop.iter):
        return False
    name = loop.iter.name if isinstance(loop.iter, nodes.Name) else loop.iter.node.name
    values = [each.node for each in sets if isinstance(each.target, nodes.Name) and each.target.name == name]
    is_set = bool(values) and all(_is_part_of(value) and "messages" in _names_in(value) for value in values)
    return is_set if name != "messages" else all(map(_is_part_of, values))


def _is_part_of(value: Any) -> bool:
    from jinja2 import nodes

    if isinstance(value, nodes.Getitem):
        return isinstance(value.node, nodes.Name) and isinstance(value.arg, nodes.Slice)
    return isinstance(value, nodes.Name)


def _names_in(value: Any) -> set[str]:
    from jinja2 import nodes

    return {node.name for node in [value, *value.find_all(nodes.Name)] if isinstance(node, nodes.Name)}


def _n_sums(value: Any) -> int:
    """How often, at most, the text in a value is doubled. `tojson` writes up to six characters for one."""
    from jinja2 import nodes

    n = 0
    for node in [value, *value.find_all(nodes.Node)]:
        if isinstance(node, nodes.Concat):
            n += len(node.nodes) - 1
        elif isinstance(node, nodes.Filter) and node.name == "tojson":
            n += 3
        else:
            n += isinstance(node, nodes.Add)
    return n


# -- what a conversation of texts can reach ---------------------------------------------------------------------------

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", CLOCK})
"""The variables of a rendering besides special tokens, whose names end with `_token` or `_tokens`."""

_NONE = frozenset({"tools", "documents"})
_FIELDS = frozenset({"role", "content"})
"""Of a message; both are texts."""

_OF_A_TEXT = {"defined": True, "string": True, "none": False, "mapping": False, "undefined": False, "iterable": True}
_OF_NONE = {"defined": True, "string": False, "none": True, "mapping": False, "undefined": False}
_OF_NOTHING = {"defined": False, "string": False, "none": False, "mapping": False, "undefined": True}


def reachable(tree: Any) -> Any:
    """A tree without the branches and loops that no conversation of texts without tools enters, as ours are."""
    for _ in range(_MOST_SUMS):
        n_before = sum(1 for _ in tree.find_all(_node_type()))
        facts = _facts(tree)
        tree.body = _without_dead(tree.body, facts)
        if sum(1 for _ in tree.find_all(_node_type())) == n_before:
            break
    return tree


@dataclass(frozen=True, slots=True)
class _Facts:
    """Names that a template gives a value, and those that are messages in every loop, and nothing else."""

    set: frozenset[str]
    messages: frozenset[str]


def _node_type() -> type:
    from jinja2 import nodes

    return nodes.Node


def _facts(tree: Any) -> _Facts:
    from jinja2 import nodes

    loops = list(tree.find_all(nodes.For))
    sets = list(tree.find_all(nodes.Assign))
    # None for what is None: Llama 3.1 does that.
    idle = {id(each.target) for each in sets if isinstance(each.node, nodes.Const) and each.node.value is None}
    stored = [
        node.name
        for node in tree.find_all(nodes.Name)
        if node.ctx != "load" and not (node.name in _NONE and id(node) in idle)
    ]
    blocks = [node.target.name for node in tree.find_all(nodes.AssignBlock) if isinstance(node.target, nodes.Name)]
    macros = [node.name for node in tree.find_all(nodes.Macro)]
    over = [
        loop.target.name
        for loop in loops
        if isinstance(loop.target, nodes.Name) and _runs_over_messages(loop, sets, inner=True)
    ]
    once = {name for name in over if over.count(name) == stored.count(name)}
    return _Facts(frozenset([*stored, *blocks, *macros]), frozenset(once))


def _without_dead(body: Sequence[Any], facts: _Facts) -> list[Any]:
    from jinja2 import nodes

    alive: list[Any] = []
    for node in body:
        if isinstance(node, nodes.If):
            alive += _without_dead_branches(node, facts)
        elif isinstance(node, nodes.For):
            if _is_true(node.iter, facts) is not False:
                node.body = _without_dead(node.body, facts)
                node.else_ = _without_dead(node.else_, facts)
                alive.append(node)
            else:
                alive += _without_dead(node.else_, facts)
        else:
            if isinstance(node, nodes.AssignBlock):
                node.body = _without_dead(node.body, facts)
            alive.append(node)
    return alive


def _without_dead_branches(node: Any, facts: _Facts) -> list[Any]:
    """What is left of an `if`: nothing, one of its bodies, or an `if` of the branches that may be entered."""
    from jinja2 import nodes

    kept: list[Any] = []
    otherwise = node.else_
    for branch in [node, *node.elif_]:
        truth = _is_true(branch.test, facts)
        if truth is True:
            otherwise = branch.body
            break
        if truth is None:
            kept.append(nodes.If(branch.test, _without_dead(branch.body, facts), [], []))
    otherwise = _without_dead(otherwise, facts)
    if not kept:
        return otherwise
    first, *others = kept
    first.elif_, first.else_ = others, otherwise
    return [first]


def _is_true(test: Any, facts: _Facts) -> bool | None:
    """Whether a test holds for every conversation of texts, or for none; None: that depends."""
    from jinja2 import nodes

    if isinstance(test, nodes.Not):
        truth = _is_true(test.node, facts)
        return None if truth is None else not truth
    if isinstance(test, nodes.And | nodes.Or):
        sides = {_is_true(test.left, facts), _is_true(test.right, facts)}
        decides = isinstance(test, nodes.Or)
        return decides if decides in sides else None if None in sides else not decides
    if isinstance(test, nodes.Test) and not test.args and not test.kwargs:
        kind = _kind(test.node, facts)
        return None if kind is None else kind.get(test.name)
    if isinstance(test, nodes.Compare) and len(test.ops) == 1 and test.ops[0].op in ("in", "notin"):
        holder, field = test.ops[0].expr, test.expr
        if isinstance(holder, nodes.Name) and holder.name in facts.messages and isinstance(field, nodes.Const):
            return (field.value in _FIELDS) == (test.ops[0].op == "in")
        return None
    kind = _kind(test, facts)
    return False if kind is _OF_NONE or kind is _OF_NOTHING else None


def _kind(value: Any, facts: _Facts) -> dict[str, bool] | None:
    """What is known of a value: a text, none, nothing at all, or None."""
    from jinja2 import nodes

    if isinstance(value, nodes.Name):
        is_given = value.name in _GIVEN or value.name.endswith(("_token", "_tokens"))
        if value.name in facts.set or value.name in _globals():
            return None
        return (_OF_NONE if value.name in _NONE else None) if is_given else _OF_NOTHING
    if isinstance(value, nodes.Getattr):
        field = value.attr
    elif isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Const) and isinstance(value.arg.value, str):
        field = value.arg.value
    else:
        return None
    if not isinstance(value.node, nodes.Name) or value.node.name not in facts.messages or hasattr(dict, field):
        return None
    return _OF_A_TEXT if field in _FIELDS else _OF_NOTHING


def _globals() -> frozenset[str]:
    from jinja2.defaults import DEFAULT_NAMESPACE

    return frozenset(DEFAULT_NAMESPACE) | {"raise_exception", "loop", "self", "caller", "varargs", "kwargs"}


# -- in a process of its own --------------------------------------------------------------------------------------

_TOO_MUCH = "it takes too much CPU time or memory, or writes too much text"


class Apart:
    """A template in a process of its own, which is started again when it was killed. One rendering at a time."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        with self._lock:
            self.description = self._start()

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """As `InProcess.render`. Raise `TemplateRefuses`."""
        with self._lock:
            if self._process is None:
                try:
                    self._start()
                except TemplateBroken as error:
                    raise TemplateRefuses(str(error)) from None
            reply = self._ask({"variables": variables, "now": now.isoformat()})
        if reply is None or reply.get("refused") == _TOO_MUCH:
            raise TemplateTooSlow(_TOO_MUCH)
        if "text" not in reply:
            raise TemplateRefuses(str(reply.get("refused")))
        return str(reply["text"])

    def _start(self) -> Description:
        # A session of its own: what a terminal sends to the server does not end it, and the server may still have work for it.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(MAX_CPU_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        reply = self._ask({"template": self._template})
        if reply is None:
            raise TemplateBroken(f"{_TOO_MUCH}.")
        if "broken" in reply:
            self._kill()
            raise TemplateBroken(str(reply["broken"]))
        clocks = reply["clocks"]
        return Description(
            frozenset(reply["names"]), frozenset(reply["filters"]), None if clocks is None else tuple(clocks)
        )

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The reply of the process; None: it did not survive."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        data = json.dumps(request).encode()
        try:
            # It reads a request as a whole before it answers, so writing it cannot wait for reading.
            _send(process.stdin, data)
            return _receive(process.stdout, _most_bytes(len(data)))
        except (OSError, EOFError, ValueError):
            self._kill()
            return None

    def _kill(self) -> None:
        if self._process is not None:
            self._end()
        self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.wait()


_known: weakref.WeakValueDictionary[str, Apart] = weakref.WeakValueDictionary()
_known_lock = threading.Lock()


def _apart(template: str) -> Apart:
    """One process for all that render one template."""
    with _known_lock:
        found = _known.get(template)
    if found is None:
        found = Apart(template)
        with _known_lock:
            found = _known.setdefault(template, found)
    return found


def _most_bytes(n_asked: int) -> int:
    return _TEXT_FACTOR * n_asked + _TEXT_SPARE


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_HEADER_BYTES, "big"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes], most: int) -> dict[str, Any]:
    """Raise `EOFError`, `TimeoutError`, or `ValueError` for more bytes than there may be."""
    with DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        if not selector.select(_MAX_WALL_S):
            raise TimeoutError
    n = int.from_bytes(_exactly(pipe, _HEADER_BYTES), "big")
    if n > most:
        raise ValueError("too long")
    reply: dict[str, Any] = json.loads(_exactly(pipe, n))
    return reply


def _exactly(pipe: IO[bytes], n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


# -- that process -------------------------------------------------------------------------------------------------


def main() -> None:
    """Read a template, then render what comes, until the other side is gone. A request that takes too much ends it."""
    asked, answered, max_cpu_s = sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1])
    import transformers.utils.chat_template_utils  # before there are limits

    _ = transformers
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MAX_MEMORY_BYTES,) * 2)
    template: InProcess | None = None
    with suppress(EOFError):
        while True:
            n = int.from_bytes(_exactly(asked, _HEADER_BYTES), "big")
            request = json.loads(_exactly(asked, n))
            _allow_cpu_time(max_cpu_s)
            if "template" in request:
                template, reply = _read(request["template"])
            else:
                reply = _rendered(template, request)
            data = json.dumps(reply).encode()
            if len(data) > _most_bytes(n):
                data = json.dumps({"refused": _TOO_MUCH}).encode()
            _send(answered, data)


def _read(text: str) -> tuple[InProcess | None, dict[str, Any]]:
    try:
        template = InProcess(text)
    except TemplateBroken as error:
        return None, {"broken": str(error)}
    known = template.description
    clocks: Sequence[str] | None = known.clocks
    return template, {"names": sorted(known.names), "filters": sorted(known.filters), "clocks": clocks}


def _rendered(template: InProcess | None, request: Mapping[str, Any]) -> dict[str, Any]:
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
