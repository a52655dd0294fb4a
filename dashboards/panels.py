"""How headrace's panels look: thin helpers over grafana-foundation-sdk, so that the dashboards say what they show only.

A dashboard is 24 columns wide; panels flow from left to right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common as c
from grafana_foundation_sdk.builders import dashboard as d
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as cm
from grafana_foundation_sdk.models import dashboard as dm
from grafana_foundation_sdk.models import heatmap as hm
from grafana_foundation_sdk.models import prometheus as pm

from cluster.metrics import Metric
from dashboards.queries import ENVIRONMENT

__all__ = ["HERE", "board", "cells", "lines", "number", "over_time", "row", "spread_over_time", "states", "variable"]

HERE: dict[str, str] = {ENVIRONMENT: '=~"$environment"'}
"""The matcher of every query: the environments that are chosen above."""
_SOURCE = dm.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "headrace"
_HEIGHT = 8


def board(uid: str, title: str, about: str, *, variables: Sequence[d.QueryVariable] = ()) -> d.Dashboard:
    """An empty dashboard with the variables that all have, and links to its sisters."""
    made = (
        d.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([_TAG])
        .editable()
        .timezone("browser")
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(dm.DashboardCursorSync.CROSSHAIR)
        .link(
            d.DashboardLink(_TAG)
            .type(dm.DashboardLinkType.DASHBOARDS)
            .tags([_TAG])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(False)
        )
        .with_variable(d.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for item in variables:
        made = made.with_variable(item)
    return made


def variable(label: str, metric: Metric, *, within: Mapping[str, str] | None = None) -> d.QueryVariable:
    """A choice of the values that `label` has in a metric; all of them at first."""
    if label not in (*metric.labels, ENVIRONMENT):
        raise ValueError(f"{metric.name} has no label {label}")
    matchers = ",".join(f"{name}{matcher}" for name, matcher in (within or {}).items())
    name = metric.exported + ("_count" if metric.buckets else "")
    return (
        d.QueryVariable(label)
        .label(label)
        .datasource(_SOURCE)
        .query(f"label_values({name}{{{matchers}}}, {label})")
        .refresh(dm.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dm.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dm.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def row(title: str) -> d.Row:
    return d.Row(title)


def number(title: str, expr: str, *, unit: str, about: str, alarm: float | None = None) -> stat.Panel:
    """One figure of now; red from `alarm` on."""
    steps = [dm.Threshold(value=None, color="green")]
    if alarm is not None:
        steps.append(dm.Threshold(value=alarm, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(_SOURCE)
        .unit(unit)
        .height(4)
        .span(4)
        .no_value("–")
        .thresholds(d.ThresholdsConfig().mode(dm.ThresholdsMode.ABSOLUTE).steps(steps))
        .color_scheme(d.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS))
        .color_mode(cm.BigValueColorMode.VALUE)
        .graph_mode(cm.BigValueGraphMode.AREA)
        .reduce_options(c.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(expr, "{{environment}}"))
    )


def lines(expr: str, legend: str) -> prometheus.Dataquery:
    """One query of `over_time`: a line per series."""
    return _target(expr, legend)


def over_time(
    title: str,
    *queries: prometheus.Dataquery,
    unit: str,
    about: str,
    span: int = 8,
    stacked: bool = False,
    top: float | None = None,
) -> timeseries.Panel:
    """Lines over time, from 0 on; `stacked`: parts of a whole. `top`: the axis ends there."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(_SOURCE)
        .unit(unit)
        .min(0)
        .height(_HEIGHT)
        .span(span)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(cm.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(c.VizTooltipOptions().mode(cm.TooltipDisplayMode.MULTI).sort(cm.SortOrder.DESCENDING))
    )
    if stacked:
        panel = panel.stacking(c.StackingConfig().mode(cm.StackingMode.NORMAL).group("A"))
    if top is not None:
        panel = panel.max(top)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(query.ref_id(letter))
    return panel


def states(
    title: str, expr: str, legend: str, *, names: Mapping[int, tuple[str, str]], about: str, span: int = 8
) -> Any:
    """A band per series, coloured by what its value means: `names` maps values to (name, colour)."""
    options = {
        str(value): dm.ValueMappingResult(text=text, color=colour, index=place)
        for place, (value, (text, colour)) in enumerate(names.items())
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(_SOURCE)
        .height(_HEIGHT)
        .span(span)
        .mappings([dm.ValueMap(options=options)])
        .show_value(cm.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_legend())
        .tooltip(c.VizTooltipOptions().mode(cm.TooltipDisplayMode.SINGLE).sort(cm.SortOrder.NONE))
        .with_target(_target(expr, legend))
    )


def cells(
    title: str, expr: str, legend: str, *, unit: str, about: str, span: int = 12, top: float | None = None
) -> Any:
    """A heat map with a row per series: the darker, the higher; `top`: the value of the darkest."""
    colours = _colours("Reds").min(0)
    if top is not None:
        colours = colours.max(top)
    return (
        _heatmap(title, about, span, colours)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(cm.HeatmapCellLayout.AUTO))
        .cell_values(heatmap.CellValues().unit(unit))
        .y_axis(heatmap.YAxisConfig().unit("short").axis_placement(cm.AxisPlacement.LEFT))
        .with_target(_target(expr, legend))
    )


def spread_over_time(title: str, expr: str, *, unit: str, about: str, span: int = 12) -> Any:
    """A heat map of a histogram's buckets (see `queries.spread`, without further labels)."""
    return (
        _heatmap(title, about, span, _colours("Oranges"))
        .filter_values(heatmap.FilterValueRange().le(1e-9))  # empty buckets stay empty
        .cell_values(heatmap.CellValues().unit("reqps"))
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(cm.AxisPlacement.LEFT))
        .with_target(_target(expr, "{{le}}").format(pm.PromQueryFormat.HEATMAP))
    )


def _heatmap(title: str, about: str, span: int, colours: heatmap.HeatmapColorOptions) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(_SOURCE)
        .height(_HEIGHT)
        .span(span)
        .calculate(False)
        .color(colours)
        .show_value(cm.VisibilityMode.NEVER)
        .cell_gap(1)
        .show_legend()
        .show_tooltip()
    )


def _colours(scheme: str) -> heatmap.HeatmapColorOptions:
    return (
        heatmap.HeatmapColorOptions()
        .mode(hm.HeatmapColorMode.SCHEME)
        .scheme(scheme)
        .fill("dark-orange")
        .scale(hm.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
        .reverse(False)
    )


def _legend() -> c.VizLegendOptions:
    return (
        c.VizLegendOptions()
        .display_mode(cm.LegendDisplayMode.LIST)
        .placement(cm.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _target(expr: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).range().ref_id("A").datasource(_SOURCE)
