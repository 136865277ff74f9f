"""`python -m tests.layout`: compare the tree of the packages with its limits; exit code 1 where a count exceeds one.

Counts files at the top of service/, class names that are defined in two modules, parameters of type `Callable` in service/, and
import cycles, lazy imports included. A limit is lowered with its count, and never raised.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "service", "training")

# Targets: 7, 0, 15, 0.
LIMITS = {
    "files at the top of service": 7,
    "class names defined twice": 0,
    "Callable parameters in service": 13,
    "import cycles": 0,
}


def main() -> int:
    """Print every count beside its limit, and the counted items where it exceeds the limit."""
    modules = {name: ast.parse(path.read_text("utf-8")) for name, path in _modules()}
    found = {
        "files at the top of service": top_files(),
        "class names defined twice": classes_defined_twice(modules),
        "Callable parameters in service": callable_parameters(modules),
        "import cycles": import_cycles(modules),
    }
    for name, items in found.items():
        print(f"{name}: {len(items)}, at most {LIMITS[name]}")
        if len(items) > LIMITS[name] or "--all" in sys.argv:
            print(*(f"  {item}" for item in items), sep="\n")
    return int(any(len(items) > LIMITS[name] for name, items in found.items()))


def top_files() -> list[str]:
    """Modules that lie directly in service/."""
    return sorted(path.name for path in (ROOT / "service").glob("*.py") if path.name != "__init__.py")


def classes_defined_twice(modules: Mapping[str, ast.Module]) -> list[str]:
    """Public classes of one name in several modules. A private class is visible in its module only."""
    places = defaultdict(list)
    for module, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    return [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]


def callable_parameters(modules: Mapping[str, ast.Module]) -> list[str]:
    """Parameters of functions in service/ that are annotated as `Callable`, or with an alias of one."""
    found = []
    for module, tree in modules.items():
        if not module.startswith("rewardserve.service"):
            continue
        aliases = {"Callable"} | {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign) and _mentions(node.value, {"Callable"})
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                found += [
                    f"{module}:{node.lineno} {node.name}({argument.arg})"
                    for argument in arguments
                    if argument.annotation is not None and _mentions(argument.annotation, aliases)
                ]
    return found


def import_cycles(modules: Mapping[str, ast.Module]) -> list[str]:
    """Modules that import one another, directly or indirectly; imports within functions count."""
    imports = {module: set(_imports(module, tree, modules)) for module, tree in modules.items()}
    return [" <-> ".join(sorted(group)) for group in _components(imports) if len(group) > 1]


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(("rewardserve", *(parts[:-1] if parts[-1] == "__init__" else parts))), path


def _mentions(node: ast.expr, names: set[str]) -> bool:
    return any(isinstance(each, ast.Name) and each.id in names for each in ast.walk(node))


def _imports(module: str, tree: ast.Module, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules and alias.name != module)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                target = name if name in modules else node.module
                if target in modules and target != module:
                    yield target


def _components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Strongly connected components: Tarjan (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for each in sorted(graph[node]):
            if each not in index:
                visit(each)
                low[node] = min(low[node], low[each])
            elif each in stack:
                low[node] = min(low[node], index[each])
        if low[node] == index[node]:
            at = stack.index(node)
            components.append(set(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return components


if __name__ == "__main__":
    sys.exit(main())
