"""The dashboards: files equal the code, every query names existing metrics, and a real Prometheus answers it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from rewardserve.model.calibration import Calibration, HeadCalibration
from rewardserve.service.observability.metrics import PREFIX, TABLE
from rewardserve.service.tripwires.alert import VOTE
from rewardserve.service.tripwires.config import WireConfig
from rewardserve.service.tripwires.honeypots import hashed
from rewardserve.service.tripwires.prometheus import rules_text
from rewardserve.service.tripwires.promql import Windows
from tests.support.checkpoints import reward_model
from tests.support.dashboards import FILES, FOLDER, names_in, panels, queries, read, substituted
from tests.support.prometheus import JOB, Prometheus
from tests.support.service_server import Server
from tests.support.trainers import BAIT, HACKED, HEALTHY, PROMPT, Trainers

MONITORING = FOLDER.parents[1]
RULES = MONITORING / "prometheus/rules"
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def rules():
    return [
        rule for path in RULES.glob("*.yml") for g in yaml.safe_load(path.read_text())["groups"] for rule in g["rules"]
    ]


def metrics():
    """What a scrape of our server may hold."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    ends = {"histogram": ("_bucket", "_count", "_sum")}
    ours = {PREFIX + row.name + end for row in TABLE for end in ends.get(row.kind, ("",))}
    return ours | {sample.name for family in registry.collect() for sample in family.samples}


# -- without a server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_the_files_are_what_the_code_writes(file):
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from monitoring.grafana.build import text_of as written

    assert (FOLDER / file).read_text() == written(file), "write them again: python -m monitoring.grafana.build"


@pytest.mark.parametrize("file", FILES)
def test_every_panel_says_what_it_shows_and_asks_the_chosen_data_source(file):
    board = read(file)
    for panel in panels(board):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["pluginVersion"], "Grafana would migrate it as one of before versions"
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["expr"] for target in panel["targets"]), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for of in ("id", "title"):
        named = [panel[of] for panel in board["panels"]]
        assert sorted(named) == sorted(set(named))


@pytest.mark.parametrize("file", FILES)
def test_panels_fill_the_grid_without_overlap(file):
    taken = {}
    for panel in read(file)["panels"]:
        at = panel["gridPos"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]
    lines = {y for _, y in taken}
    assert {x for x, _ in taken} == set(range(24))
    assert lines == set(range(len(lines)))
    assert len(taken) == 24 * len(lines), "a line has a hole"


@pytest.mark.parametrize("file", FILES)
def test_every_metric_that_is_asked_for_exists(file):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = metrics() | recorded | {"up", "ALERTS"}
    for asked in queries(file):
        assert names_in(asked.expr) <= known, asked
        assert names_in(asked.expr), asked


@pytest.mark.parametrize("file", FILES)
def test_queries_heed_the_choice_of_job_model_and_run(file):
    of_nobodys_model = {"ALERTS", "rewardserve:tripwire_threshold", "rewardserve_tripwire_threshold"}
    of_all_runs = {"Samples that are inspected"}
    for asked in queries(file):
        names = names_in(asked.expr)
        assert "$job" in asked.expr or names == {"rewardserve:tripwire_threshold"}, asked
        assert "$model" in asked.expr or names <= of_nobodys_model or asked.kind == "annotation", asked
        if any(re.match(r"rewardserve[:_](run_|tripwire_(statistic|tripped|votes))", name) for name in names):
            assert "$run" in asked.expr or asked.panel in of_all_runs, asked


def test_names_are_found_in_an_expression():
    left, right = 'sum by (le) (rate(a_b{c="d"}[5m]) and on (e) f:g{h!~"i"})', "(k > bool 0)"
    found = names_in(f"{left} / ignoring (j) group_left () {right} or -vector(1)")
    assert found == {"a_b", "f:g", "k"}


def test_every_link_to_the_runbook_is_of_an_alert_and_every_alert_has_one():
    linked = {
        re.fullmatch(r"\$\{runbook\}#(\w+)", link["url"]).group(1)
        for file in FILES
        for panel in panels(read(file))
        for link in panel.get("links", [])
    }
    assert linked == {rule["alert"].lower() for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("file", FILES)
def test_a_dashboard_keeps_its_name_and_its_variables(file):
    board = read(file)
    assert (
        board["uid"] == {"reward-health.json": "rewardserve-reward-health", "service.json": "rewardserve-service"}[file]
    )
    assert (board["refresh"], board["time"], board["editable"]) == ("10s", {"from": "now-1h", "to": "now"}, False)
    known = [variable["name"] for variable in board["templating"]["list"]]
    assert known == ["datasource", "job", "model", "run", "runbook"]
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board)))
    assert used <= set(known)


def test_grafana_finds_dashboards_and_data_where_the_files_say():
    provisioning = FOLDER.parent / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((MONITORING / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((provisioning / "dashboards/rewardserve.yml").read_text())["providers"]
    assert Path(provider["options"]["path"]).name == FOLDER.name


# -- with a server under load, and a Prometheus -----------------------------------------------------------------------


CANNOT_HAVE_DATA: dict[str, str] = {}
"""Queries that a healthy server on a CPU has no answer to, with the reason. There are none: what has not happened is 0."""

SHARES = (
    "Memory of the device",
    "Components of the reward",
    "Rewards at a cap",
    "Shares of tokens",
    "Capped rewards of a run",
)


def server_flags(folder):
    """Two heads as members, a judge, a trap, and a cap: so that there is something to show on every panel."""
    of_heads = (HeadCalibration("good", 4.5, 1.5, 0.7), HeadCalibration("kind", 1.0, 1.5, 0.4))
    known = {"std": 1.5, "temperature": 0.8, "n": 100}
    for name, heads, mean, by_head in (
        ("served", {"good": 1.0, "kind": 0.5}, 0.0, of_heads),
        ("judge", None, 1.0, ()),
    ):
        reward_model(folder / name, heads=heads, contract=False)
        (folder / name / "calibration.json").unlink()
        Calibration(mean=mean, **known, heads=by_head).save(folder / name)
    key = b"a key that has enough bytes"
    (folder / "key").write_bytes(key)
    bait = json.dumps({"prompt": PROMPT, "answers": [BAIT]})
    (folder / "baits.jsonl").write_text("\n".join(hashed([bait], key)))
    return [
        f"{folder / 'served'}", "--combine.method=mean", "--shape=cap", "--cap-low=-1", "--cap-high=1",
        f"--audit-model={folder / 'judge'}", "--tripwires.audit-share=1", "--tripwires.cpu-share=1",
        "--tripwires.window=16", f"--tripwires.honeypots-file={folder / 'baits.jsonl'}",
        f"--tripwires.honeypots-key-file={folder / 'key'}", "--truncation=error",
    ]  # fmt: skip


@pytest.mark.slow
@needs_prometheus
def test_a_real_prometheus_answers_every_query_with_what_its_panel_says(tmp_path):
    (tmp_path / "tripwires.yml").write_text(rules_text(WireConfig(), Windows(("1s", "10s", "1m"), samples=64)))
    with (
        Server(*server_flags(tmp_path)) as server,
        Prometheus(tmp_path, [server.url], [tmp_path / "tripwires.yml", RULES / "service.yml"]) as prometheus,
        Trainers(server.url) as trainers,
    ):
        shadow = {"model": str(tmp_path / "served"), "shadow": 1.0}
        server.client.post("/admin/models", json=shadow).raise_for_status()
        for wire in ("divergence", "honeypots"):  # the slowest
            prometheus.wait_for(f'rewardserve:tripwire_statistic:recent{{wire="{wire}"}}', 240)
        every_query_is_answered(prometheus)
        choices_are_offered_and_heeded(prometheus)
        numbers_are_what_the_titles_say(prometheus, trainers)
        exploits_are_shown(prometheus)


def ask(prometheus, asked, **chosen):
    expr = substituted(asked.expr, **{"job": JOB, **chosen})
    return prometheus.instant(expr) if asked.is_instant else prometheus.over(expr, 15)


def panel(prometheus, title, ref_id="A", **chosen):
    """What a panel shows last, by the values of the labels in its legend."""
    (asked,) = [q for file in FILES for q in queries(file) if (q.panel, q.ref_id) == (title, ref_id)]
    by = re.findall(r"\{\{(\w+)\}\}", asked.legend) or ["run"]
    return {tuple(labels.get(name) for name in by): values[-1] for labels, values in ask(prometheus, asked, **chosen)}


def every_query_is_answered(prometheus):
    silent = set()
    for asked in (asked for file in FILES for asked in queries(file)):
        found = ask(prometheus, asked)
        if not any(not math.isnan(value) for _, values in found for value in values):
            silent.add(str(asked))
        for label in re.findall(r"\{\{(\w+)\}\}", asked.legend):
            assert any(label in labels for labels, _ in found), (str(asked), label)
    assert silent == set(CANNOT_HAVE_DATA)


def choices_are_offered_and_heeded(prometheus):
    for file in FILES:
        offered = {}
        for variable in read(file)["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                offered[variable["name"]] = prometheus.values(label, substituted(series, job=JOB))
        assert (offered["job"], len(offered["model"])) == ([JOB], 1)
        assert set(offered["run"]) >= {HEALTHY, HACKED}
        for asked in queries(file):
            if asked.kind == "annotation":
                continue
            of_run = ask(prometheus, asked, run=HEALTHY)
            assert {labels.get("run", HEALTHY) for labels, _ in of_run} <= {HEALTHY} or asked.panel == "Alerts", asked
            of_nobody = ask(prometheus, asked, model="another")
            assert all(set(values) == {0.0} for _, values in of_nobody) or "$model" not in asked.expr, asked


def numbers_are_what_the_titles_say(prometheus, trainers):
    half, most, nearly_all = (panel(prometheus, "How long scoring takes", ref)[None,] for ref in "ABC")
    assert 0 < half <= most <= nearly_all
    for title in SHARES:
        assert all(0 <= share <= 1 for share in panel(prometheus, title).values()), title
    parts = panel(prometheus, "Components of the reward")
    for run in (HEALTHY, HACKED):
        assert sum(share for (name, _), share in parts.items() if name == run) == pytest.approx(1.0)
    for title in ("Raw scores", "Rewards as sent"):
        counts = [n for _, n in sorted((float(le), n) for (le,), n in panel(prometheus, title).items())]
        assert counts == sorted(counts), "buckets of a histogram add up"
        assert counts[-1] > 0
    newest = trainers.levels[-1024:]
    assert min(newest) < 0 < max(newest), "of both signs: they are counted apart"
    assert panel(prometheus, "Score")[HEALTHY,] == pytest.approx(fmean(newest), abs=0.3)
    assert panel(prometheus, "Spread of scores")[HEALTHY,] == pytest.approx(pstdev(newest), abs=0.3)
    assert panel(prometheus, "Rewards at a cap").keys() == {("low",), ("high",)}
    assert panel(prometheus, "Score against length").keys() == panel(prometheus, "Score against length", "B").keys()
    steps, scores = (panel(prometheus, "Score against step", ref) for ref in "AB")
    assert {(HEALTHY,), (HACKED,)} <= steps.keys() <= scores.keys()


def exploits_are_shown(prometheus):
    tripped = {key for key, value in panel(prometheus, "Tripped").items() if value == 1.0}
    wires = ("judge_injection", "flattery", "empty_opener", "control_tokens", "duplicate_across_prompts", "honeypots")
    assert tripped >= {(HACKED, wire) for wire in (*wires, VOTE)}
    assert not tripped & {(HEALTHY, wire) for wire in wires}
    fires = {
        (labels["alertname"], labels.get("run")) for labels, _ in prometheus.instant('ALERTS{alertstate="firing"}')
    }
    assert {("RewardJudgeInjection", HACKED), ("RewardHacking", HACKED)} <= fires
    (alerts,) = [q for q in queries("reward-health.json") if q.panel == "Alerts"]
    shown = [labels.get("run") for labels, _ in ask(prometheus, alerts)]
    assert 1 < shown.count(HACKED) <= 5, "the first row has a few lines a run, however many wires trip"
    for title, least in (
        ("Judge injection", 0.02),
        ("Control tokens", 0.02),
        ("Missing ends", 0.05),
        ("Duplicates across prompts", 0.01),
    ):
        found = panel(prometheus, title)
        assert found[HACKED,] > least > found[HEALTHY,], title
