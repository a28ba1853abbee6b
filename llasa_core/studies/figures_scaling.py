"""Figures of train-time scaling: DataFrame in, Figure out, in the style and with the promises of
`figures`.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llasa_core.plots import COLOURS, LINES, MARKERS, STYLE, new_axes, with_bars

BELOW = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.16),
    "ncols": 2,
}  # a legend that hides no point


def loss_by_data_and_size(
    runs: pd.DataFrame, curves: pd.DataFrame, y_label: str = "bits per second of audio"
) -> Figure:
    """Held-out loss against hours (left, a series a model) and parameters (right, a series an
    amount of speech).

    runs: a row a run; columns `model`, `parameters`, `hours`, `loss`, `loss_low`, `loss_high`.
    curves: the fitted law at such places; columns `parameters`, `hours`, `loss`, `loss_low`,
    `loss_high`, drawn as lines with their bands.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(2, width=4.6, height=3.4)
        sides = (
            ("hours", "parameters", "training speech (h)"),
            ("parameters", "hours", "parameters"),
        )
        for axis, (x, series, x_label) in zip(axes, sides, strict=True):
            for place, (value, rows) in enumerate(runs.groupby(series, sort=True)):
                style = {
                    "color": COLOURS[place % len(COLOURS)],
                    "marker": MARKERS[place % len(MARKERS)],
                    "ms": 4,
                }
                label = (
                    f"{rows['model'].iloc[0]}, {value / 1e6:.2g} M"
                    if series == "parameters"
                    else f"{value:g} h"
                )
                loss, bars = with_bars(rows, "loss")
                axis.errorbar(
                    rows[x], loss, yerr=bars, linestyle="none", capsize=2, label=label, **style
                )
                line = curves[curves[series] == value].sort_values(x)
                axis.plot(
                    line[x],
                    line["loss"],
                    color=style["color"],
                    linestyle=LINES[place % len(LINES)],
                    linewidth=1,
                )
                axis.fill_between(
                    line[x],
                    line["loss_low"],
                    line["loss_high"],
                    color=style["color"],
                    alpha=0.15,
                    linewidth=0,
                )
            _log_ticks(axis, runs[x])
            axis.set(xlabel=x_label, ylabel=y_label)
            axis.legend(**BELOW)
        return figure


def speech_by_data_and_size(
    speech: pd.DataFrame, panels: Mapping[str, tuple[str, float]]
) -> Figure:
    """Scores of speech: a row of panels a metric, against hours (left, a series a model) and
    parameters (right).

    speech: a row a system; columns `model`, `parameters`, `hours` and METRIC, METRIC_low,
    METRIC_high, METRIC_n for each of `panels`, which are {metric: (axis label, factor)}. On the
    right only amounts that several models heard.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(2, width=4.6, height=3.2, rows=len(panels))
        sides = (
            ("hours", "parameters", "training speech (h)"),
            ("parameters", "hours", "parameters"),
        )
        amounts = speech.assign(hours=speech["hours"].round(1))
        for place, axis in enumerate(axes):
            metric, (label, factor) = list(panels.items())[place // 2]
            x, series, x_label = sides[place % 2]
            shown = amounts
            if series == "hours":
                shown = amounts[amounts.groupby("hours")["hours"].transform("size") > 1]
            for number, (value, rows) in enumerate(shown.groupby(series, sort=True)):
                middle, bars = with_bars(rows, metric, factor)
                axis.errorbar(
                    rows[x],
                    middle,
                    yerr=bars,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle=LINES[number % len(LINES)],
                    capsize=2,
                    ms=4,
                    label=f"{rows['model'].iloc[0]}, {value / 1e6:.2g} M"
                    if series == "parameters"
                    else f"{value:g} h",
                )
            _log_ticks(axis, shown[x])
            counts = sorted({int(n) for n in speech[f"{metric}_n"]})
            axis.set(xlabel=x_label, ylabel=f"{label}, n = {'/'.join(map(str, counts))}")
            axis.legend()
        return figure


def fit_residuals(runs: pd.DataFrame) -> Figure:
    """Residuals of a fit (share of the fitted loss) against that loss; columns `model`, `fitted`,
    `residual`.
    """
    with rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.0)
        for place, (name, rows) in enumerate(runs.groupby("model", sort=False)):
            style = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
            }
            axis.plot(
                rows["fitted"],
                100 * rows["residual"],
                linestyle="none",
                ms=4,
                label=str(name),
                **style,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(
            xlabel="fitted loss (bits per second of audio)",
            ylabel="measured - fitted (% of fitted)",
        )
        axis.legend()
        return figure


def iso_flop(curves: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Loss against parameters, one curve a training compute; the least of each is marked, the runs
    stand as points.

    curves: `flops`, `parameters`, `loss`, `measured` (whether parameters and hours lie inside the
    grid: a solid line there, dotted outside). runs: `parameters`, `loss`.
    """
    with rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.4, height=3.4)
        for place, (flops, rows) in enumerate(curves.groupby("flops", sort=True)):
            rows, style = rows.sort_values("parameters"), {"color": COLOURS[place % len(COLOURS)]}
            axis.plot(rows["parameters"], rows["loss"], linestyle=":", linewidth=1, **style)
            style |= {
                "marker": MARKERS[place % len(MARKERS)],
                "markevery": [int(rows["loss"].to_numpy().argmin())],
            }
            inside = rows["loss"].where(rows["measured"])
            axis.plot(
                rows["parameters"],
                inside,
                linewidth=1.5,
                label=f"{flops:.1e} FLOPs".replace("e+", "e"),
                **style,
            )
            axis.plot(rows["parameters"], rows["loss"], linestyle="none", ms=6, **style)
        axis.plot(
            runs["parameters"],
            runs["loss"],
            "x",
            color="black",
            ms=3,
            linestyle="none",
            label="runs",
        )
        _log_ticks(axis, runs["parameters"])
        low, high = min(runs["loss"].min(), curves["loss"].min()), runs["loss"].max()
        axis.set(
            xlabel="parameters", ylabel="bits per second of audio", ylim=(0.97 * low, 1.05 * high)
        )
        axis.legend()
        return figure


def _log_ticks(axis: Axes, values: pd.Series) -> None:
    """A logarithmic x axis whose ticks are the values that were run, in plain numbers or
    millions.
    """
    ticks = sorted({float(f"{value:.2g}") for value in values})
    names = [f"{tick / 1e6:g} M" if tick >= 1e5 else f"{tick:g}" for tick in ticks]
    axis.set_xscale("log")
    axis.set_xticks(ticks, names)
    axis.set_xticks([], minor=True)


def predicted_run(cells: pd.DataFrame, outcome: dict[str, float], run: dict) -> Figure:
    """A run beside what was said of it before: measured and predicted loss against hours, with the
    smaller runs.

    cells: `model`, `parameters`, `hours`, `loss`, `loss_low`, `loss_high`. outcome: of
    scaling_study.prediction_error; run: the row of the larger run.
    """
    with rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.0, height=3.4)
        for place, (value, rows) in enumerate(cells.groupby("parameters", sort=True)):
            label = f"{rows['model'].iloc[0]}, {value / 1e6:.2g} M"
            style = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "ms": 4,
            }
            axis.plot(
                rows["hours"],
                rows["loss"],
                linestyle=LINES[place % len(LINES)],
                linewidth=1,
                label=label,
                **style,
            )
        said, low, high = (outcome[f"prediction{end}"] for end in ("", "_low", "_high"))
        name = f"{run['model']}, {run['parameters'] / 1e6:.3g} M"
        axis.errorbar(
            run["hours"] * 0.96,
            said,
            yerr=[[max(said - low, 0)], [max(high - said, 0)]],
            color="black",
            marker="o",
            fillstyle="none",
            capsize=4,
            linestyle="none",
            label=f"{name}: predicted before (95 % of a run)",
        )
        value, low, high = (outcome[f"target_measured{end}"] for end in ("", "_low", "_high"))
        axis.errorbar(
            run["hours"] * 1.04,
            value,
            yerr=[[value - low], [high - value]],
            color="black",
            marker="*",
            ms=9,
            capsize=2,
            linestyle="none",
            label=f"{name}: measured",
        )
        _log_ticks(axis, pd.concat([cells["hours"], pd.Series([run["hours"]])]))
        axis.set(xlabel="training speech (h)", ylabel="bits per second of audio")
        axis.legend(**BELOW)
        return figure
