"""Figures of search by model size and by guidance: DataFrame in, Figure out, with the promises of `figures`."""

from collections.abc import Mapping

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from llasa_core.figures import COLOURS, LINES, MARKERS, STYLE, Drawing


def cost_curves(
    table: pd.DataFrame, panels: Mapping[str, tuple[str, float]], axes: Mapping[str, str], hollow: str = ""
) -> Figure:
    """Scores against cost, a row a metric of `panels` ({metric: (axis label, factor)}), a column a cost of `axes`.

    table: columns `series` (a line each, in the order of the table), `note` (written beside the point), `apart` (drawn
    hollow and not joined; `hollow` says in the legend what that is), the costs, and METRIC, METRIC_low, METRIC_high,
    METRIC_n.
    """
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(4.6 * len(axes), 3.2 * len(panels) + 0.5), layout="constrained")
        grid = figure.subplots(len(panels), len(axes), squeeze=False, sharex="col", sharey="row")
        for line, (metric, (label, factor)) in zip(grid, panels.items(), strict=True):
            for axis, cost in zip(line, axes, strict=True):
                for place, (name, rows) in enumerate(table.groupby("series", sort=False)):
                    style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "ms": 5}
                    for apart, part in rows.sort_values(cost).groupby("apart"):
                        value, low, high = (factor * part[f"{metric}{end}"] for end in ("", "_low", "_high"))
                        axis.errorbar(
                            part[cost],
                            value,
                            yerr=[(value - low).clip(lower=0), (high - value).clip(lower=0)],
                            linestyle="none" if apart else LINES[place % len(LINES)],
                            fillstyle="none" if apart else "full",
                            elinewidth=0.8,
                            capsize=2,
                            label=None if apart else str(name),
                            **style,
                        )
                        for x, y, note in zip(part[cost], value, part["note"], strict=True):
                            axis.annotate(note, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
                axis.set_xscale("log")
            counts = sorted({int(n) for n in table[f"{metric}_n"]})
            line[0].set_ylabel(f"{label}, n = {'/'.join(map(str, counts))}")
        for axis, cost_label in zip(grid[-1], axes.values(), strict=True):
            axis.set_xlabel(cost_label)
        if hollow:
            grid[0][0].plot([], [], "o", color="black", fillstyle="none", label=hollow)
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure
