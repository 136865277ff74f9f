"""Render a chat template in this process within a budget, and in a separate process where that is not enough.

A template is a program that comes with a checkpoint. Jinja's sandbox denies it files, but limits neither time nor memory, and
a single call (`'a' * 10**11`) can block this process for good. So the syntax tree is changed before it is compiled: every step of
a loop, every call, and every new text or list is paid for in characters, before the work is done. An operation without a
known price (padding, formatting, powers, an unknown filter) is not run here, nor is one beyond the rest of the budget:
`jinja_process` renders the conversation then. Every result equals that of transformers' environment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import add, length_hint, mod, mul, sub
from types import BuiltinMethodType
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.runtime import Macro
from jinja2.visitor import NodeTransformer

from rewardserve.model.templates.jinja_process import (
    CLOCK,
    Renderer,
    RenderingProcess,
    TemplateBroken,
    TemplateDescription,
    TemplateRefuses,
    TemplateTooSlow,
    describe,
)

_MAX_TEMPLATE_CHARS, _MAX_NODES = 32_768, 8_192
"""Limits of a template that is compiled in this process."""

_MAX_BUDGET = 1 << 26
"""Characters."""

_MAX_WORK = 1 << 34
"""Characters times nodes of the syntax tree: each node may read all text once for every step that is paid for."""

_STEP, _ITEM = 512, 64
"""Price in characters of a step of a loop or a call, and of an item of a list, besides the text that they may read."""

_MAX_DATE_FORMAT = 256
_SCALARS = (str, int, float, bool, type(None), Undefined)


class NeedsProcess(Exception):
    """The template uses an operation without a known price, or exceeds the budget."""


def build_renderer(template: str) -> Renderer:
    """Build the renderer of a template. Raise `TemplateBroken`."""
    try:
        return BudgetedTemplate(template)
    except Exception:  # the separate process reports any error safely
        return RenderingProcess.of(template)


class BudgetedTemplate:
    """A template that is rendered in this process within its budget. Raise any exception where it cannot be parsed."""

    def __init__(self, template: str) -> None:
        if len(template) > _MAX_TEMPLATE_CHARS:
            raise NeedsProcess
        environment = _environment()
        tree = environment.parse(template)
        self.description: TemplateDescription = describe(tree)
        tree = _priced(tree)
        n_nodes = _n_nodes(tree)
        if n_nodes > _MAX_NODES:
            raise NeedsProcess
        code = environment.compile(tree)
        self._compiled = environment.template_class.from_code(environment, code, environment.make_globals(None))
        self._template = template
        self._budget = min(_MAX_BUDGET, _MAX_WORK // n_nodes)
        self._process: RenderingProcess | None = None

    def render(self, variables: Mapping[str, Any], now: datetime) -> str:
        """Render the text. Raise `TemplateRefuses`."""
        _thread_budget.budget = _Budget(self._budget, len(self._template) + _n_chars(variables.values()))
        try:
            text: str = self._compiled.render(**{**variables, CLOCK: now.strftime})
            return text
        except NeedsProcess:
            pass
        except MemoryError:
            raise TemplateTooSlow("it takes too much memory") from None
        except Exception as error:  # jinja2 errors: the template's own raise_exception among them
            raise TemplateRefuses(str(error)) from None
        return self._render_in_process(variables, now)

    def _render_in_process(self, variables: Mapping[str, Any], now: datetime) -> str:
        if self._process is None:
            try:
                self._process = RenderingProcess.of(self._template)
            except TemplateBroken as error:
                raise TemplateRefuses(str(error)) from None
        return self._process.render(variables, now)


class _Budget:
    """The remaining budget of a rendering, in characters. `n_chars`: all text so far, given or made."""

    __slots__ = ("left", "n_chars")

    def __init__(self, left: int, n_chars: int) -> None:
        self.left, self.n_chars = left, n_chars

    def pay_steps(self, n: int) -> None:
        """Pay for steps, each of which may read all text once. Raise `NeedsProcess`."""
        self.left -= n * (self.n_chars + _STEP)
        if self.left < 0:
            raise NeedsProcess

    def pay_text(self, n: int) -> None:
        """Pay for new text before it is made. Raise `NeedsProcess`."""
        self.left -= n
        self.n_chars += n
        if self.left < 0:
            raise NeedsProcess


class _ThreadBudget(threading.local):
    """The budget of the rendering on this thread; 0 without one."""

    budget = _Budget(0, 0)


_thread_budget = _ThreadBudget()


def _n_chars(given: Iterable[Any]) -> int:
    """Characters in the variables of a template: texts, lists of them, and mappings of them."""
    n = 0
    for value in given:
        if isinstance(value, str):
            n += len(value)
        elif isinstance(value, list | tuple):
            n += _n_chars(value)
        elif isinstance(value, dict):
            n += _n_chars(value.values())
    return n


# -- prices -------------------------------------------------------------------------------------------------------


def _scalar(value: Any) -> Any:
    """Return a text, a number, None or undefined, whose text has a bounded length. Raise `NeedsProcess` for anything else."""
    if not isinstance(value, _SCALARS):
        raise NeedsProcess
    return value


def _size(value: Any) -> int:
    """Characters in a scalar or in a flat mapping. Raise `NeedsProcess` for anything else."""
    if isinstance(value, dict):
        return sum(_size(_scalar(key)) + _size(_scalar(item)) for key, item in value.items()) + _ITEM
    return len(value) + _ITEM if isinstance(_scalar(value), str) else _ITEM


def _paid_list(values: Any) -> Any:
    """Pay for a list or a tuple. Its items are scalars or mappings of scalars, so that no nesting doubles its size."""
    _thread_budget.budget.pay_text(sum(map(_size, values)))
    return values


def _paid_mapping(value: dict[Any, Any]) -> dict[Any, Any]:
    _thread_budget.budget.pay_text(_size(value))
    return value


def _paid_output(value: Any) -> Any:
    if isinstance(value, str):
        _thread_budget.budget.pay_text(len(value))
    elif isinstance(_scalar(value), int) and abs(value) >= _SMALL:
        raise NeedsProcess
    else:
        _thread_budget.budget.pay_text(_ITEM)
    return value


def _paid_loop(values: Any) -> Any:
    """Pay for all steps of a loop at once."""
    if not isinstance(values, str | list | tuple | dict | range | Undefined | _ListIterator | _DictView):
        raise NeedsProcess
    _thread_budget.budget.pay_steps(length_hint(values) + 1)
    return values


_ListIterator: Any = type(iter([]))
_DictView: Any = type({}.items()) | type({}.keys()) | type({}.values())


def _paid_concatenation(values: list[Any]) -> str:
    """Pay for `~` and compute it, as Jinja's `str_join`."""
    texts = [str(_scalar(value)) for value in values]
    _thread_budget.budget.pay_text(sum(map(len, texts)))
    return "".join(texts)


def _pay_replacement(*args: Any, **kwargs: Any) -> None:
    """Pay for the replacement of `old` by `new` in a text."""
    if kwargs or len(args) != 3 or not all(isinstance(each, str) for each in args):
        raise NeedsProcess
    text, old, new = args
    n = len(text) // len(old) if old else len(text) + 1
    _thread_budget.budget.pay_text(len(text) + n * len(new))


def _pay_join(values: Any, between: Any, **kwargs: Any) -> None:
    if kwargs or not isinstance(values, list | tuple) or not isinstance(between, str):
        raise NeedsProcess
    _thread_budget.budget.pay_text(sum(len(str(_scalar(value))) + len(between) for value in values))


def _paid_operation(context: Any, operator: str, left: Any, right: Any) -> Any:
    """Pay for an operator and compute it; for `environment.call_binop`."""
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        _thread_budget.budget.pay_text(len(left) + len(right))
        return left + right
    if operator == "+" and isinstance(left, list) and isinstance(right, list):
        return _paid_list(left + right)
    are_small = all(isinstance(each, int | float) and abs(each) < _SMALL for each in (left, right))
    if operator not in _OF_NUMBERS or not are_small:
        raise NeedsProcess
    return _OF_NUMBERS[operator](left, right)


_SMALL = 1 << 62
_OF_NUMBERS: Mapping[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "%": mod}
_OPERATORS = frozenset({*_OF_NUMBERS, "**"})


# Methods of a text, and of a message: reading is paid for as a step; their result is not longer than three texts.
_TEXT_METHODS = frozenset({
    "strip", "lstrip", "rstrip", "startswith", "endswith", "lower", "upper", "title", "capitalize", "find", "rfind", "index",
    "count", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "removeprefix", "removesuffix",
})  # fmt: skip
_STRIPS = frozenset({"strip", "lstrip", "rstrip"})
_MAX_STRIPPED = 64
"""Characters in the argument of a strip; each is compared with each character of the text."""

_SPLITS = frozenset({"split", "rsplit", "splitlines"})
_MAPPING_METHODS = frozenset({"get", "items", "keys", "values"})


def _paid_call(environment: Any) -> Callable[..., Any]:
    """Make an `environment.call` that pays for each call."""
    call = type(environment).call
    free = [environment.globals[name] for name in ("raise_exception", "namespace", "range")]
    owners = list(environment.extensions.values())

    def paid(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        _thread_budget.budget.pay_steps(1)
        if isinstance(function, BuiltinMethodType):
            _pay_method(function.__self__, function.__name__, args)
        elif not (
            isinstance(function, Macro | Undefined)
            or _is_any_of(function, free)
            or _is_any_of(_owner(function), owners)
        ):
            raise NeedsProcess
        return call(environment, context, function, *args, **kwargs)

    return paid


def _is_any_of(value: Any, known: Sequence[Any]) -> bool:
    return any(value is each for each in known)


def _owner(function: Any) -> Any:
    return getattr(function, "__self__", None)


def _pay_method(value: Any, name: str, args: tuple[Any, ...]) -> None:
    if isinstance(value, str) and name in _TEXT_METHODS:
        if name in _STRIPS and any(isinstance(each, str) and len(each) > _MAX_STRIPPED for each in args):
            raise NeedsProcess
        _thread_budget.budget.pay_text(3 * len(value))
    elif isinstance(value, str) and name in _SPLITS:
        _thread_budget.budget.pay_text(_ITEM * len(value))
    elif isinstance(value, str) and name == "replace":
        _pay_replacement(value, *args)
    elif isinstance(value, str) and name == "join" and len(args) == 1:
        _pay_join(args[0], value)
    elif isinstance(value, datetime) and name == "strftime" and len(args) == 1 and isinstance(args[0], str):
        if len(args[0]) > _MAX_DATE_FORMAT:
            raise NeedsProcess
    elif not (isinstance(value, dict) and name in _MAPPING_METHODS):
        raise NeedsProcess


# -- filters and tests --------------------------------------------------------------------------------------------


def _no_price(*_: Any, **__: Any) -> Any:
    raise NeedsProcess


def _text_filter(original: Callable[..., Any]) -> Callable[..., Any]:
    """Pay for a filter from a scalar to a text at most six times as long, as JSON may be."""

    def paid(value: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            raise NeedsProcess
        _thread_budget.budget.pay_text(6 * len(value) if isinstance(_scalar(value), str) else _ITEM)
        return original(value)

    return paid


def _filters(originals: Mapping[str, Any]) -> dict[str, Any]:
    """All filters of the environment; those without a price raise `NeedsProcess` when they are used."""

    def replaced(*args: Any, **kwargs: Any) -> Any:
        _pay_replacement(*args, **kwargs)
        return args[0].replace(*args[1:])

    def joined(values: Any, between: Any = "", **kwargs: Any) -> Any:
        _pay_join(values, between, **kwargs)
        return between.join([str(value) for value in values])

    def listed(values: Any) -> Any:
        if not isinstance(values, str | list | tuple | range | _ListIterator | _DictView):
            raise NeedsProcess
        _thread_budget.budget.pay_text(_ITEM * length_hint(values))
        return _paid_list(list(values))

    def picked(original: Callable[..., Any]) -> Callable[..., Any]:
        @pass_context
        def paid(context: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(values, list | tuple | _ListIterator):
                raise NeedsProcess
            _thread_budget.budget.pay_steps(length_hint(values))
            return iter(list(original(context, values, *args, **kwargs)))

        return paid

    filters: dict[str, Any] = dict.fromkeys(originals, _no_price)
    for name in ("length", "count", "first", "last", "default", "d"):  # their results take no memory
        filters[name] = originals[name]
    for name in ("trim", "lower", "upper", "capitalize", "title", "string", "safe", "tojson", "int"):
        filters[name] = _text_filter(originals[name])
    for name in ("map", "select", "reject", "selectattr", "rejectattr"):
        filters[name] = picked(originals[name])
    return filters | {"replace": replaced, "join": joined, "list": listed, **_INTERNAL}


_INTERNAL = {
    "_output": _paid_output, "_loop": _paid_loop, "_concatenation": _paid_concatenation, "_list": _paid_list,
    "_mapping": _paid_mapping,
}  # fmt: skip


def _tests(originals: Mapping[str, Any]) -> dict[str, Any]:
    """All tests of the environment; those that divide accept numbers only, since `%` formats a text."""

    def of_numbers(original: Callable[..., Any]) -> Callable[..., Any]:
        def paid(value: Any, *args: Any) -> Any:
            if not isinstance(value, int | float):
                raise NeedsProcess
            return original(value, *args)

        return paid

    return {**originals, **{name: of_numbers(originals[name]) for name in ("odd", "even", "divisibleby")}}


def _environment() -> Any:
    """The environment of transformers for a chat template, with prices."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment.overlay(optimized=False)
    environment.filters, environment.tests = _filters(environment.filters), _tests(environment.tests)
    environment.intercepted_binops = _OPERATORS
    environment.call_binop = _paid_operation
    environment.call = _paid_call(environment)
    return environment


# -- the syntax tree ----------------------------------------------------------------------------------------------


def _is_constant(node: Any) -> bool:
    return all(isinstance(each, nodes.Const) for each in node.items)


def _n_nodes(tree: Any) -> int:
    return sum(1 for _ in tree.find_all(nodes.Node))


_ARGUMENTS = frozenset({"varargs", "kwargs"})
"""Names inside a macro for a tuple and a mapping of any values, which could be nested without end."""


def _priced(tree: Any) -> Any:
    """Wrap loops, output, `~`, lists and mappings of a tree in the filters of `_INTERNAL`. Raise `NeedsProcess`."""
    unknown = (
        nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.EvalContextModifier,
        nodes.ScopedEvalContextModifier, nodes.OverlayScope,
    )  # fmt: skip
    if tree.find(unknown) is not None or any(name.name in _ARGUMENTS for name in tree.find_all(nodes.Name)):
        raise NeedsProcess

    def through(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Pricing(NodeTransformer):
        def visit_Output(self, node: Any) -> Any:
            self.generic_visit(node)
            node.nodes = [
                each if isinstance(each, nodes.TemplateData | nodes.Const) else through(each, "_output")
                for each in node.nodes
            ]
            return node

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = through(node.iter, "_loop")
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return through(nodes.List(node.nodes, lineno=node.lineno), "_concatenation")

        def visit_List(self, node: Any) -> Any:
            self.generic_visit(node)
            return node if _is_constant(node) else through(node, "_list")

        def visit_Tuple(self, node: Any) -> Any:
            self.generic_visit(node)
            return node if node.ctx != "load" or _is_constant(node) else through(node, "_list")

        def visit_Dict(self, node: Any) -> Any:
            self.generic_visit(node)
            return through(node, "_mapping")

    return Pricing().visit(tree)
