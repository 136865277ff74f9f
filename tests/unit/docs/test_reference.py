"""The generated reference has everything that the code has, nothing else, and no empty description."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs import pages, reference
from docs.log_events import LOG_EVENTS
from docs.markdown import anchors
from docs.markdown import text as markdown_text
from rewardserve.service.api import body
from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.requests import ScoreRequest
from rewardserve.service.api.validation import check
from rewardserve.service.cli.options import from_command_line, unknown_variables
from rewardserve.service.errors import RequestRefused
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.settings import ServeSettings
from rewardserve.service.tripwires.alert import CANARY, VOTE
from rewardserve.training.settings.validation import RANGES

ROOT = Path(__file__).parents[3]
RULES = [ROOT / name for name in reference.RULES]


@pytest.fixture(scope="module")
def site():
    return pages.site()


def source_of(*folders):
    return "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


def test_settings_are_the_flags_of_the_command(capsys):
    with pytest.raises(SystemExit):
        from_command_line(ServeSettings, "serve", ["--help-all"])
    flags = set(re.findall(r"^  (--[a-z][a-z.-]*)", capsys.readouterr().out, re.MULTILINE))
    assert len(flags) > 80
    assert {entry.flag for entry in reference.settings()} - flags == {"--model"}, "the model is an argument of `serve`"
    assert flags <= {entry.flag for entry in reference.settings()} | {"--help-all"}


def test_variables_of_settings_are_read():
    assert unknown_variables(ServeSettings, {entry.variable: "1" for entry in reference.settings()}) == []


def test_values_that_the_meaning_of_a_log_event_names_are_in_the_code():
    """A field of the event, a route, a setting, or a text in the code, such as a state."""
    code = [node for path in (ROOT / "service").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    texts = {node.value for node in code if isinstance(node, ast.Constant)}
    variables = {entry.variable for entry in reference.settings()}
    events = reference.log_events()
    for name, meaning in LOG_EVENTS.items():
        fields = {field for event in events if event.is_of(name) for field in event.fields}
        words = {word.removeprefix("GET ").partition("=")[0] for word in re.findall(r"`([^`]+)`", meaning)}
        assert words - fields - texts - variables == set(), name


def test_a_setting_has_the_default_that_it_has_without_an_environment(monkeypatch):
    for entry in reference.settings():
        monkeypatch.delenv(entry.variable, raising=False)
    settings = ServeSettings(_cli_parse_args=[])
    for entry in reference.settings():
        value = settings
        for name in entry.name.split("."):
            value = getattr(value, name)
        if value is None or value == "" or value == {}:
            assert entry.default in ("none", "empty"), entry.name
        elif entry.name not in reference.DEFAULTS:
            assert entry.default == f"`{str(value).lower() if isinstance(value, bool) else value}`", entry.name


def test_metrics_are_those_that_are_exported_and_those_that_rules_and_dashboards_read():
    listed = {entry.name: entry for entry in reference.metrics()}
    exported = dict(re.findall(r"^# TYPE (\S+) (\w+)$", Metrics().render().decode(), re.MULTILINE))
    ours = {name: kind for name, kind in exported.items() if not name.startswith("process_")}
    assert len(ours) > 25
    assert {name: listed[name].kind for name in ours} == ours
    files = [*RULES, *(ROOT / "monitoring/grafana/dashboards").glob("*.json")]
    read = {name for path in files for name in re.findall(r"\brewardserve_[a-z0-9_]+", path.read_text())}
    histograms = [name for name, entry in listed.items() if entry.kind == "histogram"]
    of_histograms = {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    assert read - listed.keys() - of_histograms == set()


def test_errors_are_the_codes_of_the_code():
    source = (ROOT / "service/errors.py").read_text() + (ROOT / "model/conversation.py").read_text()
    codes = set(re.findall(r'^    code(?:: ClassVar\[str\])? = "(\w+)"', source, re.MULTILINE)) - {"invalid_sample"}
    listed = [entry.code for entry in reference.errors()]
    assert set(listed) == codes | {"not_found", "method_not_allowed"}
    assert len(listed) == len(set(listed))


def test_errors_of_the_openapi_document_are_listed():
    listed = {entry.code for entry in reference.errors()}
    for _, path, operation in reference.operations(reference.openapi()):
        for status, said in operation["responses"].items():
            if int(status) >= 400:
                named = re.findall(r"`([a-z]+(?:_[a-z]+)*)`", said["description"])
                assert named, (path, status)
                assert set(named) <= listed, (path, status)


def test_alerts_are_those_of_the_rules_and_each_has_its_entry_in_the_runbook():
    in_rules = [name for path in RULES for name in re.findall(r"^ *- alert: (\w+)$", path.read_text(), re.MULTILINE)]
    assert [entry.name for entry in reference.alerts()] == in_rules
    entries = anchors((ROOT / "docs/how-to/runbook.md").read_text())
    assert [entry.name for entry in reference.alerts() if entry.anchor not in entries] == []
    assert [entry.name for entry in reference.alerts() if "{{" in entry.meaning + entry.action] == []


def test_commands_are_those_of_the_help():
    output = subprocess.run(
        [sys.executable, "-m", "rewardserve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    in_help = re.findall(r"^  ([a-z-]+)\b", output, re.MULTILINE)
    assert [entry.name for entry in reference.commands()] == in_help
    assert [entry.name for entry in reference.commands() if not entry.summary] == []
    assert [entry.name for entry in reference.commands() if "usage: rewardserve" not in entry.help] == []


def test_wires_are_those_that_the_rules_have():
    in_rules = {name for path in RULES for name in re.findall(r"^      wire: (\w+)$", path.read_text(), re.MULTILINE)}
    assert {entry.name for entry in reference.wires()} == in_rules - {VOTE, CANARY}


def test_log_events_are_those_that_the_server_logs():
    source = source_of("service")
    logged = set(re.findall(r'\b(?:debug|info|warning|error|exception|level)\(\s*"([a-z]+(?:_[a-z]+)*)"', source))
    prefixes = tuple(re.findall(r'\b(?:debug|info|warning|error|exception)\(\s*f"([a-z_]+_)\{', source))
    assert len(logged) > 25
    assert prefixes
    assert logged - LOG_EVENTS.keys() == set()
    assert [name for name in LOG_EVENTS.keys() - logged if not name.startswith(prefixes)] == []


def test_fields_of_recipes_are_those_that_shipped_recipes_and_ranges_name():
    listed = {field.name for section in reference.recipe() for field in section.fields}
    assert RANGES.keys() - listed == set()
    for path in (ROOT / "training/recipes").glob("*.yaml"):
        assert set(names_in(yaml.safe_load(path.read_text()))) - listed == set(), path


def names_in(value, name=""):
    if isinstance(value, dict):
        for key, each in value.items():
            yield from names_in(each, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for each in value:
            yield from names_in(each, name.replace("eval_sources", "sources"))
    else:
        yield name


def test_nothing_is_without_a_description():
    assert [e.name for e in reference.settings() if len(e.description) < 4 or not e.range or not e.default] == []
    assert [e.name for e in reference.metrics() if len(e.description) < 4] == []
    assert [e.code for e in reference.errors() if len(e.meaning) < 4 or len(e.remedy) < 4] == []
    assert [e.name for e in reference.alerts() if len(e.meaning) < 4 or len(e.action) < 4] == []
    assert [e.name for e in reference.wires() if len(e.meaning) < 4 or len(e.sure) < 4] == []
    assert [name for name, meaning in LOG_EVENTS.items() if len(meaning) < 4] == []
    assert [section.name for section in reference.recipe() if len(section.description) < 4] == []
    fields = [field for section in reference.recipe() for field in section.fields]
    assert [field.name for field in fields if len(field.description) < 4 or not field.kind or not field.default] == []


def test_the_page_of_recipes_says_what_each_field_does_beside_its_type_and_default(site):
    page = site["reference/recipes.md"]
    assert (
        "| `optim.head_lr` | number or null | `null` | above 0 and at most 100 | Learning rate of the heads; null: that of `lr`. |"
    ) in page
    for section in reference.recipe():
        for field in section.fields:
            (row,) = re.findall(rf"^\| `{re.escape(field.name)}` \|.*$", page, re.MULTILINE)
            assert markdown_text(field.description) in row, field.name


def test_pages_show_every_entry(site):
    shown = {
        "settings": [name for e in reference.settings() for name in (e.name, e.variable)],
        "metrics": [e.name for e in reference.metrics()],
        "errors": [e.code for e in reference.errors()],
        "log-events": list(LOG_EVENTS),
        "tripwires": [e.name for e in reference.wires()],
        "recipes": [field.name for section in reference.recipe() for field in section.fields],
    }
    for page, names in shown.items():
        assert [name for name in names if f"`{name}`" not in site[f"reference/{page}.md"]] == []
    assert [e.name for e in reference.alerts() if f"[{e.name}](" not in site["reference/alerts.md"]] == []


def test_the_page_of_routes_shows_every_route_and_every_field(site):
    page, document = site["reference/routes.md"], reference.openapi()
    for method, path, _ in reference.operations(document):
        assert f"### {method} {path}\n" in page
    for name, schema in document["components"]["schemas"].items():
        section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert [field for field in schema.get("properties", {}) if f"| `{field}` |" not in section] == [], name


def test_the_example_of_an_error_is_the_answer_of_the_server():
    page = (ROOT / "docs/reference/errors.md").read_text()
    sent = re.search(r"-d '(.+)'$", page, re.MULTILINE)[1]
    with pytest.raises(RequestRefused) as refused:
        check(body.parse(sent.encode()), ScoreRequest)
    assert error_response(refused.value).body.decode() in page.splitlines()[6]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda path: path.stem)
def test_the_lists_of_a_page_are_those_of_the_code(path):
    if path.stem == "commands" and sys.version_info[:2] != (3, 11):
        pytest.skip("argparse of another Python writes --help in another way")
    page = path.read_text()
    assert page.count("<!-- list: ") == page.count("<!-- end of the list -->")
    assert page == pages.with_lists(page), "run make reference"


def test_the_page_of_routes_shows_the_example_of_every_parameter(site):
    page = site["reference/routes.md"]
    for method, path, operation in reference.operations(reference.openapi()):
        for parameter in operation.get("parameters", ()):
            example = re.escape(f"`{parameter['example']}`") if "example" in parameter else ""
            row = rf"^\| `{parameter['name']}` \| {parameter['in']} \|.*\| {example} ?\|$"
            assert re.search(row, page, re.MULTILINE), (method, path, parameter["name"])


def test_every_list_is_on_one_page():
    asked = [
        name
        for path in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"<!-- list: ([a-z-]+) -->", path.read_text())
    ]
    assert sorted(asked) == sorted(pages.LISTS)


def test_a_route_has_a_sentence_for_its_summary_and_not_the_name_of_its_function():
    for method, path, operation in reference.operations(reference.openapi()):
        assert " ".join(operation["description"].split()).startswith(operation["summary"]), (method, path)


def test_the_example_of_a_score_has_one_reward_for_its_one_result():
    (score,) = [
        each for method, path, each in reference.operations(reference.openapi()) if (method, path) == ("POST", "/score")
    ]
    example = score["responses"]["200"]["content"]["application/json"]["example"]
    assert (len(example["rewards"]), len(example["results"]), example["usage"]["samples"]) == (1, 1, 1)


def test_the_navigation_has_every_page_once(site):
    def listed(entries):
        for entry in entries:
            for each in entry.values() if isinstance(entry, dict) else [entry]:
                yield from listed(each) if isinstance(each, list) else [each]

    assert sorted(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == sorted(site)
