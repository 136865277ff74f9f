"""Panels of Grafana, each made by one call: the sdk's builders with the choices that all our panels share.

Knows Grafana and the runbook; knows neither metrics nor dashboards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from zlib import crc32

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    statushistory,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import xychart as xy
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

P = TypeVar(
    "P", bargauge.Panel, heatmap.Panel, stat.Panel, statetimeline.Panel, statushistory.Panel, table.Panel,
    timeseries.Panel, xychart.Panel,
)  # fmt: skip

Panel = Builder[model.Panel]

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, YELLOW, RED = "green", "yellow", "red"

_CONNECTED_MS = 600_000
"""Steps of a training may lie minutes apart: a line through them reads better than single dots."""

Steps = Sequence[tuple[float | None, str]]
AT_ONE: Steps = ((None, GREEN), (1.0, RED))
PLAIN: Steps = ((None, "text"),)

_LINE_OF: Mapping[str, tuple[str, tuple[int, int]]] = {"limit": (RED, (8, 6)), "baseline": ("gray", (2, 6))}
"""Colour and dashes of thresholds and baselines."""


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL with the legend of its series. `limit` is the threshold of an alert, `baseline` the usual level."""

    expr: str
    legend: str = ""
    kind: Literal["measured", "limit", "baseline"] = "measured"


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a panel. `description` is one sentence or two; `alerts` are those whose entries in the runbook it links to."""

    title: str
    description: str
    alerts: tuple[str, ...] = ()
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title, from left to right, about three per line."""

    title: str
    panels: tuple[Panel, ...]


def lines(
    header: Header, *queries: Query, unit: str = "short", least: float | None = 0.0, most: float | None = None
) -> timeseries.Panel:
    """Values over time. `least` and `most` are ends of the axis; None: those of the data."""
    panel = _with_header(timeseries.Panel(), header).unit(unit).line_width(2).fill_opacity(5).span_nulls(_CONNECTED_MS)
    panel = panel.show_points(shapes.VisibilityMode.AUTO).legend(_legend())
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    )
    panel = panel if least is None else panel.min(least)
    panel = panel if most is None else panel.max(most)
    for name, query in _named(queries):
        panel.with_target(_target(name, query).range())
        if query.kind != "measured":
            panel.override_by_query(name, _dashed(*_LINE_OF[query.kind]))
    return panel


def number(
    header: Header, query: Query, unit: str = "short", steps: Steps = PLAIN, decimals: int | None = None
) -> stat.Panel:
    """One current number. `steps` are colours from values on."""
    panel = _with_header(stat.Panel(), header).unit(unit).thresholds(_thresholds(steps))
    panel = panel.color_mode(shapes.BigValueColorMode.VALUE).graph_mode(shapes.BigValueGraphMode.NONE)
    panel = panel if decimals is None else panel.decimals(decimals)
    return panel.reduce_options(_latest()).with_target(_target("A", query).instant())


def heat_map(header: Header, query: Query, axis: str) -> heatmap.Panel:
    """Frequency of values over time, from the buckets of a histogram."""
    colours = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    colours = colours.scale(heat.HeatmapColorScale.EXPONENTIAL).exponent(0.5).reverse(False)
    panel = (
        _with_header(heatmap.Panel(), header).unit("short").calculate(False).color(colours).cell_gap(0).show_legend()
    )
    panel = panel.y_axis(heatmap.YAxisConfig().axis_label(axis).unit("short").decimals(1)).max_data_points(240)
    panel = panel.rows_frame(heatmap.RowsHeatmapOptions().layout(shapes.HeatmapCellLayout.LE)).show_y_histogram()
    return panel.with_target(_target("A", query).range().format(PromQueryFormat.HEATMAP))


def states(header: Header, query: Query, names: Mapping[str, tuple[str, str]]) -> statetimeline.Panel:
    """Bars of states over time; `names` are words and colours of values."""
    words = {value: model.ValueMappingResult(text=text, color=colour) for value, (text, colour) in names.items()}
    panel = (
        _with_header(statetimeline.Panel(), header)
        .mappings([model.ValueMap(options=words)])
        .thresholds(_thresholds(AT_ONE))
    )
    panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)).merge_values(True)
    panel = panel.show_value(shapes.VisibilityMode.NEVER).per_page(20).row_height(0.8).legend(_legend())
    return panel.with_target(_target("A", query).range())


def history(header: Header, query: Query, steps: Steps, unit: str) -> statushistory.Panel:
    """A row of coloured cells for each series."""
    panel = _with_header(statushistory.Panel(), header).unit(unit).thresholds(_thresholds(steps)).max_data_points(60)
    panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)).legend(_legend())
    panel = panel.show_value(shapes.VisibilityMode.NEVER).row_height(0.9).per_page(32)
    return panel.with_target(_target("A", query).range())


def bars(
    header: Header,
    query: Query,
    steps: Steps,
    unit: str = "short",
    least: float | None = 0.0,
    most: float | None = None,
) -> bargauge.Panel:
    """A bar with the current value of each series."""
    panel = _with_header(bargauge.Panel(), header).unit(unit).thresholds(_thresholds(steps))
    panel = panel.orientation(shapes.VizOrientation.HORIZONTAL).display_mode(shapes.BarGaugeDisplayMode.BASIC)
    panel = panel.name_placement(shapes.BarGaugeNamePlacement.LEFT)
    panel = panel if least is None else panel.min(least)
    panel = panel if most is None else panel.max(most)
    return panel.reduce_options(_latest()).with_target(_target("A", query).instant())


def scatter(header: Header, x: Query, y: Query) -> xychart.Panel:
    """One query against another, a colour for each run; their legends name the axes.

    Both come as tables of time, run and value. They are merged where time and run are the same, then parted by run.
    """
    panel = _with_header(xychart.Panel(), header).show(xy.XYShowMode.POINTS).legend(_legend())
    panel = panel.point_size(xychart.XychartFieldConfigPointSize().fixed(4)).mapping(xy.SeriesMapping.AUTO)
    for name, query in _named((x, y)):
        panel.with_target(_target(name, query).range().format(PromQueryFormat.TABLE))
        panel.override_by_name(f"Value #{name}", [model.DynamicConfigValue("custom.axisLabel", query.legend)])
    panel.series([_axes("Value #A", "Value #B")])
    parted = {"fields": ["run"], "keepFields": False}
    return panel.transformations([_transformer("merge"), _transformer("partitionByValues", parted)])


def rows(header: Header, columns: Mapping[str, Query], shown: Sequence[str]) -> table.Panel:
    """A table of current values: a row for each set of labels, a column for each query, besides the labels in `shown`."""
    panel = _with_header(table.Panel(), header).unit("none").cell_height(shapes.TableCellHeight.SM)
    for name, query in _named(tuple(columns.values())):
        panel.with_target(_target(name, query).instant().format(PromQueryFormat.TABLE))
    values = [f"Value #{name}" for name, _ in _named(tuple(columns.values()))] if len(columns) > 1 else ["Value"]
    titles = dict(zip(values, columns, strict=True))
    named = {value: title for value, title in titles.items() if title}
    order = {name: i for i, name in enumerate((*shown, *values))}
    return panel.transformations(
        [
            _transformer("merge"),
            _transformer("filterFieldsByName", {"include": {"names": [*shown, *named]}}),
            _transformer("organize", {"indexByName": order, "renameByName": named}),
        ]
    )


def panel_id(title: str) -> int:
    """Panel id from its title, so that links to a panel stay valid when other panels change."""
    return crc32(title.encode()) % 1_000_000 + 1


def _with_header(panel: P, header: Header) -> P:
    panel.id(panel_id(header.title)).title(header.title).description(header.description).datasource(DATASOURCE)
    return panel.span(header.width).height(header.height).links([_to_runbook(alert) for alert in header.alerts])


def _to_runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").type(model.DashboardLinkType.LINK).icon("doc")
    return link.url(f"${{runbook}}#{alert.lower()}").target_blank(True)


def _named(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return [(chr(ord("A") + i), query) for i, query in enumerate(queries)]


def _target(name: str, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(name).datasource(DATASOURCE).expr(query.expr)
    return target.legend_format(query.legend) if query.legend else target


def _dashed(colour: str, dashes: tuple[int, int]) -> list[model.DynamicConfigValue]:
    return [
        model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour}),
        model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": list(dashes)}),
        model.DynamicConfigValue("custom.lineWidth", 1),
        model.DynamicConfigValue("custom.fillOpacity", 0),
    ]


def _axes(x: str, y: str) -> xychart.XYSeriesConfig:
    by_name = [xychart.MatcherConfig().id("byName").options(name) for name in (x, y)]
    config = xychart.XYSeriesConfig().x(xychart.XychartXYSeriesConfigX().matcher(by_name[0]))
    return config.y(xychart.XychartXYSeriesConfigY().matcher(by_name[1]))


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.LIST)
    return legend.placement(shapes.LegendPlacement.BOTTOM).show_legend(True)


def _latest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [model.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def _transformer(name: str, options: Mapping[str, object] | None = None) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val=name, options=dict(options or {}))
