"""Write the dashboards: `python -m monitoring.grafana.build [--runbook URL]`.

Needs `grafana-foundation-sdk`, which has Grafana's types; no other part of this project needs it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from monitoring.grafana import queries, rewards, serving
from monitoring.grafana.panels import DATASOURCE, RED, panel_id
from rewardserve.service.tripwires.prometheus import RUNBOOK

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS: dict[str, ModuleType] = {"reward-health.json": rewards, "service.json": serving}
TAG = "rewardserve"
WRITTEN_FOR = "11.6.0"
"""Version of XY charts: without it Grafana reads their options as those of an older one, and drops them."""


class _Annotations(model.AnnotationQuery):
    """An annotation of Prometheus: the sdk knows its `expr` and none of its other fields."""

    def __init__(self, marks: Annotations) -> None:
        super().__init__(name=marks.name, datasource=DATASOURCE, icon_color=marks.colour, expr=marks.expr)
        self._more = {"titleFormat": marks.title, "tagKeys": marks.tags, "useValueForTime": marks.value_is_time}

    def to_json(self) -> dict[str, object]:
        """Convert to the JSON of Grafana."""
        target = {"expr": self.expr, "refId": self.name, "datasource": DATASOURCE}
        return super().to_json() | self._more | {"target": target}


@dataclass(frozen=True)
class Annotations(Builder[model.AnnotationQuery]):
    """Events that are marked on every panel with a time axis."""

    name: str
    colour: str
    expr: str
    title: str
    tags: str
    value_is_time: bool = False

    def build(self) -> model.AnnotationQuery:
        """Build for the sdk."""
        return _Annotations(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.grafana.build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--runbook", default=RUNBOOK, help="where the runbook can be read in a browser")
    given = parser.parse_args(argv)
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / name).write_text(text_of(name, given.runbook))
        print(FOLDER / name, file=sys.stderr)
    return 0


def text_of(name: str, runbook: str = RUNBOOK) -> str:
    """Render the file of a dashboard."""
    made = json.loads(json.dumps(built(DASHBOARDS[name], runbook), cls=JSONEncoder))
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def built(content: ModuleType, runbook: str) -> model.Dashboard:
    """Build a dashboard with its rows."""
    board = dashboard.Dashboard(content.TITLE).uid(content.UID).description(content.DESCRIPTION).tags([TAG]).readonly()
    board = board.time("now-1h", "now").refresh("10s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
    board = board.variables(_variables(runbook)).annotations(_annotations()).links([_other_dashboards()]).version(1)
    for row in content.dashboard_rows():
        board.with_row(dashboard.Row(row.title).id(panel_id(f"row {row.title}")))
        for panel in row.panels:
            board.with_panel(panel)
    return _versioned(board.build())


def _versioned(board: model.Dashboard) -> model.Dashboard:
    for panel in board.panels or []:
        if isinstance(panel, model.Panel):
            panel.plugin_version = WRITTEN_FOR
    return board


def _variables(runbook: str) -> list[Builder[model.VariableModel]]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        # It is there, as 0, before there is a model.
        _variable("job", "Job", "label_values(rewardserve_model_version, job)"),
        _variable("model", "Model", f"label_values(rewardserve_model_info{{{queries.JOB}}}, name)", all_value=".*"),
        _variable("run", "Run", f"label_values(rewardserve_run_sum_total{{{queries.JOB}}}, run)", all_value=".*"),
        dashboard.ConstantVariable("runbook").value(runbook),
    ]


def _variable(name: str, label: str, query: str, all_value: str | None = None) -> dashboard.QueryVariable:
    """A variable with several values. Without an `all_value`, *All* means the known values, not all jobs of Prometheus."""
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    asked: dict[str, object] = {"query": query, "refId": name, "qryType": 1}
    variable = (
        dashboard.QueryVariable(name).label(label).query(asked).datasource(DATASOURCE).multi(True).include_all(True)
    )
    variable = variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    variable = variable.current(everything)
    return variable.all_value(all_value) if all_value else variable


def _annotations() -> list[Builder[model.AnnotationQuery]]:
    started = f"{queries.series('process_start_time_seconds')} * 1000"
    return [
        Annotations("Alerts", RED, rewards.FIRING, title="{{alertname}}", tags="severity,run,wire,instance"),
        Annotations("Starts", "blue", started, title="{{instance}} started", tags="instance", value_is_time=True),
    ]


def _other_dashboards() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("RewardServe").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.keep_time(True).include_vars(True).as_dropdown(False)


if __name__ == "__main__":
    sys.exit(main())
