"""YAML with the core schema of YAML 1.2 (chapter 10.3), on PyYAML, whose schema is that of 1.1.

In 1.1, `010` is 8, `1:30` is 90, `no` is false and `1e-5` is text. Here a value is a number or a word only by the core
schema, and everything else is text. Merge keys (`<<`) are read as in 1.1; a repeated key is an error. Independent of
recipes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import yaml

from rewardserve.model.text.text_files import decode_text

_MOST_CHARS = 1_000
"""Limit of a number: Python writes no whole number of more than 4,300 digits into a message."""

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": re.compile(r"(?:null|Null|NULL|~|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    "merge": re.compile(r"<<\Z"),
}
"""In the order in which they are tried."""


def load(text: str | bytes) -> Any:
    """Parse the value of one document. Raise `yaml.YAMLError`, `ValueError` (bad text, a number too long), `RecursionError`."""
    # A subclass of SafeLoader: it makes plain values only.
    return yaml.load(text if isinstance(text, str) else decode_text(text), Loader=_Loader)


def line_of(data: bytes, path: Sequence[str]) -> int | None:
    """The line, from 1, of the key at a path in a document, or of the last of its parents that there is; None: there is none."""
    node, line = yaml.compose(decode_text(data), Loader=_Loader), None
    for step in path:
        if isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
            node = node.value[int(step)]
            line = node.start_mark.line + 1
            continue
        keys = {key.value: (key, value) for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
        if step not in keys:
            break
        key, node = keys[step]
        line = key.start_mark.line + 1
    return line


def dump(value: Any) -> str:
    """Write a value so that readers of YAML 1.1 and of 1.2 read the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping. Raise `ConstructorError` with the place of a repeated key: one of the values would be lost."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} occurs twice; keep one of them", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        """Construct a value whose tag is one of the core schema, resolved or explicit."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        found = next((each for each, pattern in _CORE.items() if pattern.match(text)), "str")
        if len(text) > _MOST_CHARS or (found != kind and (found, kind) != ("int", "float")):
            raise yaml.constructor.ConstructorError(None, None, f"{text[:80]!r} is not of type {kind}", node.start_mark)
        return _VALUES[found](text) if kind != "float" else float(_VALUES[found](text))


def _int(text: str) -> int:
    return int(text, 16) if text.startswith("0x") else int(text[2:], 8) if text.startswith("0o") else int(text)


_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}

for _name, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, None)
for _name in _VALUES:
    _Loader.add_constructor(_TAG + _name, _Loader.construct_core)
for _name in ("str", "seq", "map"):
    _Loader.add_constructor(_TAG + _name, yaml.SafeLoader.yaml_constructors[_TAG + _name])
_Loader.add_constructor(None, yaml.SafeLoader.yaml_constructors[None])


class _Dumper(yaml.SafeDumper):
    """Quotes text that either of the two schemas would not read as text."""

    def represent_text(self, text: str) -> yaml.Node:
        """Represent text in quotes with escapes if a plain line would change it (PyYAML writes U+0085 as a line break)."""
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


for _name, _pattern in _CORE.items():
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, None)
_Dumper.add_representer(str, _Dumper.represent_text)
