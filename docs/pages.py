"""Collect the pages of the site in one folder: `python -m docs.pages FOLDER`. Without a folder, write the lists of the reference.

The site has the pages of `docs/` and pages that stand beside the code that they are about. The part of a page between the lines
`<!-- list: NAME -->` and `<!-- end of the list -->` is written from the code. Links between files of the repository become links
between pages; a link to a file that is no page becomes its words.
"""

from __future__ import annotations

import argparse
import json
import os.path
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from docs import reference
from docs.log_events import LOG_EVENTS
from docs.markdown import code, spaced, table, text
from rewardserve.exit_codes import EXIT_CODES

ROOT = reference.ROOT

BESIDE_CODE = {
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "DECISIONS.md": "project/decisions.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "project/benchmarks.md",
    "client/README.md": "how-to/client.md",
    "examples/README.md": "examples/index.md",
    "k8s/README.md": "how-to/kubernetes.md",
    "model/default/MODEL_CARD.md": "reference/default-model.md",
    "monitoring/README.md": "how-to/monitoring.md",
}
"""Pages of the site that lie beside the described code."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
LIST = re.compile(r"^<!-- list: ([a-z-]+) -->\n.*?^<!-- end of the list -->$", re.MULTILINE | re.DOTALL)
"""A list that is generated from the code, between its markers."""
_SHARED_BY = 5
"""A parameter of more routes than these is described once."""
_LONGEST_EXAMPLE = 60
_LONGEST_LINE = 100


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.pages", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="is emptied first; none: write the lists in docs/reference again"
    )
    folder: Path | None = parser.parse_args(argv).folder
    if folder is None:
        for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
            path.write_text(with_lists(path.read_text("utf-8")), encoding="utf-8")
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    for name, page in site().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "site.css", folder)
    shutil.copytree(ROOT / "docs" / "images", folder / "images")
    return 0


def site() -> dict[str, str]:
    """All pages by their path in the site."""
    places = sources()
    return {
        place: spaced(linked(source, with_lists((ROOT / source).read_text("utf-8")), places))
        for source, place in places.items()
    }


def sources() -> dict[str, str]:
    """Files of the repository that are pages of the site, with their path there."""
    here = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    examples = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*/README.md"))
    return {
        **{name: name.removeprefix("docs/") for name in here},
        **{name: f"examples/{name.split('/')[1]}.md" for name in examples},
        **BESIDE_CODE,
    }


def linked(source: str, page: str, places: Mapping[str, str]) -> str:
    """A page with its links as the site has them. A folder means its README."""
    here, site_folder = os.path.dirname(source), os.path.dirname(places[source])

    def link(found: re.Match[str]) -> str:
        image, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = os.path.normpath(os.path.join(here, target))
        place = path.removeprefix("docs/") if image else places.get(path) or places.get(f"{path}/README.md")
        return words if place is None else f"{image}[{words}]({os.path.relpath(place, site_folder or '.')}{anchor})"

    return _LINK.sub(link, page)


def with_lists(page: str) -> str:
    """Write the lists of a page again. Raise `KeyError` for an unknown list."""
    return LIST.sub(
        lambda found: f"<!-- list: {found[1]} -->\n\n{LISTS[found[1]]().strip()}\n\n<!-- end of the list -->", page
    )


# -- lists --------------------------------------------------------------------------------------------------------------


def _settings_of_sections() -> str:
    sections = dict.fromkeys(entry.name.rpartition(".")[0] for entry in reference.settings())
    parts = []
    for section in filter(None, sections):
        entries = [entry for entry in reference.settings() if entry.name.rpartition(".")[0] == section]
        parts += [f"### {section}\n", reference.section_description(section) + "\n", _settings(entries)]
    return "\n".join(parts)


def _settings_at_top(of_score: bool) -> str:
    at_top = [entry for entry in reference.settings() if "." not in entry.name]
    return _settings([entry for entry in at_top if ("score" in entry.commands) == of_score])


def _settings(entries: Iterable[reference.Setting]) -> str:
    rows = [(f"{code(e.name)}<br>{code(e.variable)}", e.default, e.range, text(e.description)) for e in entries]
    return table(("name and environment variable", "default", "values", "description"), rows)


def _metrics() -> str:
    rows = [(code(e.name), e.kind, ", ".join(map(code, e.labels)), text(e.description)) for e in reference.metrics()]
    return table(("name", "type", "labels", "description"), rows)


def _errors_of_requests() -> str:
    rows = [(code(e.code), str(e.status), text(e.meaning), text(e.remedy)) for e in reference.errors() if e.status]
    return table(("code", "HTTP status", "meaning", "remedy"), rows)


def _errors_of_samples() -> str:
    rows = [(code(e.code), text(e.meaning), text(e.remedy)) for e in reference.errors() if not e.status]
    return table(("code", "meaning", "remedy"), rows)


def _alerts() -> str:
    rows = [
        (f"[{e.name}](../how-to/runbook.md#{e.anchor})", e.severity, e.wait, text(e.meaning), text(e.action))
        for e in reference.alerts()
    ]
    return table(("alert", "severity", "after", "meaning", "first step"), rows)


def _wires() -> str:
    rows = [
        (code(e.name), e.severity, text(e.threshold), "yes" if e.votes else "", text(e.meaning), text(e.sure))
        for e in reference.wires()
    ]
    return table(("wire", "severity", "trips above", "votes", "meaning", "how sure"), rows)


def _log_events() -> str:
    found = reference.log_events()
    rows = []
    for name, meaning in LOG_EVENTS.items():
        matching = sorted((event for event in found if event.is_of(name)), key=lambda each: each.name != name)
        if not matching:
            raise LookupError(f"docs/log_events.py has {name}, which the server does not log")
        event = matching[0]
        levels = ", ".join("by severity" if level == "level" else level for level in event.levels)
        rows.append((code(name), levels, ", ".join(map(code, event.fields)), text(meaning)))
    return table(("event", "level", "fields", "meaning"), rows)


def _commands() -> str:
    parts = []
    for each in reference.commands():
        parts += [
            f"## {each.name}\n",
            f"`rewardserve {' '.join((each.name, each.arguments)).strip()}`: {text(each.summary)}.\n",
        ]
        parts.append(f"```text\n{each.help.strip()}\n```\n")
    return "\n".join(parts)


def _exit_codes() -> str:
    numbers = sorted({number for codes in EXIT_CODES.values() for number in codes})
    rows = [(code(name), *(text(codes.get(number, "")) for number in numbers)) for name, codes in EXIT_CODES.items()]
    return table(("command", *map(str, numbers)), rows)


def _recipes() -> str:
    parts = []
    for section in reference.recipe():
        rows = [
            (
                code(e.name),
                e.kind,
                e.default if e.default == "required" else code(e.default),
                e.range,
                text(e.description),
            )
            for e in section.fields
        ]
        parts += [f"## {section.name or 'The whole recipe'}\n", section.description + "\n"]
        parts += [table(("field", "values", "default", "range", "meaning"), rows)] if rows else []
    return "\n".join(parts)


# -- routes -------------------------------------------------------------------------------------------------------------


@cache
def _document() -> dict[str, Any]:
    return reference.openapi()


def _shared_parameters() -> dict[tuple[str, str], Mapping[str, Any]]:
    """By place and name: those of many routes."""
    listed = [
        parameter
        for _, _, operation in reference.operations(_document())
        for parameter in operation.get("parameters", ())
        if parameter["in"] != "path"
    ]
    names = [(each["in"], each["name"]) for each in listed]
    return {name: each for name, each in zip(names, listed, strict=True) if names.count(name) > _SHARED_BY}


def _parameters_of_scoring() -> str:
    return _parameters(_shared_parameters().values())


def _routes() -> str:
    operations = list(reference.operations(_document()))
    parts = []
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in operations):
        parts.append(f"## {tag[0].upper()}{tag[1:]}\n")
        parts += [_operation(*each) for each in operations if each[2]["tags"][0] == tag]
    return "\n".join(parts)


def _records() -> str:
    parts = []
    for name, schema in sorted(_document()["components"]["schemas"].items()):
        parts += [f"### {name}\n", text(schema.get("description", "")) + "\n"]
        parts += [_fields(schema)] if schema.get("properties") else []
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method} {path}\n", text(operation.get("description") or operation["summary"]) + "\n"]
    parameters = operation.get("parameters", [])
    shared = _shared_parameters()
    if own := [p for p in parameters if shared.get((p["in"], p["name"])) != p]:
        parts.append(_parameters(own))
    if len(own) < len(parameters):
        parts.append("Also the [parameters of every route that scores](#parameters-of-every-route-that-scores).\n")
    if body := operation.get("requestBody"):
        parts.append(_content("Body", body["content"]["application/json"]))
    good = operation["responses"].get("200", {})
    if answer := good.get("content", {}).get("application/json"):
        parts.append(_content("Reply", answer))
    refusals = [
        f"{status} {', '.join(dict.fromkeys(re.findall(r'`[a-z]+(?:_[a-z]+)*`', refusal['description'])))}"
        for status, refusal in operation["responses"].items()
        if int(status) >= 400
    ]
    return "\n".join([*parts, f"Errors: {'; '.join(refusals)}.\n"])


def _parameters(parameters: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            code(p["name"]),
            p["in"],
            reference.range_of(p["schema"]),
            text(p["description"]),
            code(str(p["example"])) if "example" in p else "",
        )
        for p in parameters
    ]
    return table(("parameter", "in", "values", "meaning", "example"), rows)


def _content(what: str, content: Mapping[str, Any]) -> str:
    schema = content.get("schema", {})
    examples = (
        [content["example"]] if "example" in content else [e["value"] for e in content.get("examples", {}).values()]
    )
    parts = []
    if schema.get("properties"):
        parts += [f"{what}:\n", _fields(schema)]
    elif schema and (kind := reference.type_of(schema)) != "any value":
        parts.append(f"{what}: {kind}\n")
    for example in examples:
        parts.append(f"```json\n{_json(example)}\n```\n")
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, of_field in schema["properties"].items():
        default = (
            "required" if name in required else code(json.dumps(of_field["default"])) if "default" in of_field else ""
        )
        example = next(iter(of_field.get("examples", ())), None)
        shown = json.dumps(example, ensure_ascii=False)
        rows.append(
            (code(name), reference.range_of(of_field), default, text(of_field.get("description", "")),
             code(shown) if len(shown) <= _LONGEST_EXAMPLE else "")
        )  # fmt: skip
    return table(("field", "values", "default", "meaning", "example"), rows)


def _json(value: object) -> str:
    """On one line where it fits."""
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= _LONGEST_LINE else json.dumps(value, indent=2, ensure_ascii=False)


LISTS: dict[str, Callable[[], str]] = {
    "settings-of-serve-and-score": lambda: _settings_at_top(of_score=True),
    "settings-of-serve": lambda: _settings_at_top(of_score=False),
    "settings-of-sections": _settings_of_sections,
    "metrics": _metrics,
    "errors-of-requests": _errors_of_requests,
    "errors-of-samples": _errors_of_samples,
    "alerts": _alerts,
    "wires": _wires,
    "log-events": _log_events,
    "recipes": _recipes,
    "exit-codes": _exit_codes,
    "commands": _commands,
    "parameters": _parameters_of_scoring,
    "routes": _routes,
    "records": _records,
}
"""The generated lists, by the name in a page of the reference."""


if __name__ == "__main__":
    sys.exit(main())
