"""Figures of search by model size and by guidance: DataFrame in, Figure out, with the promises of
`figures`.
"""

from collections.abc import Mapping

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llasa_core.plots import COLOURS, LINES, MARKERS, STYLE, Drawing, with_bars


def cost_curves(
    table: pd.DataFrame,
    panels: Mapping[str, tuple[str, float]],
    costs: Mapping[str, tuple[str, float]],
    title: str,
    hollow: str = "",
) -> Figure:
    """Scores against cost: a row a metric of `panels`, a column a cost of `costs`, both {column:
    (label, factor)}.

    table: columns `series` (a line each, in the order of the table), `note` (written beside the
    point; `title` of the legend says what it is), `apart` (drawn hollow and not joined; `hollow`
    says what those are), the costs, and METRIC, METRIC_low, METRIC_high, METRIC_n.
    """
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(4.6 * len(costs), 3.2 * len(panels) + 0.7), layout="constrained")
        grid = figure.subplots(len(panels), len(costs), squeeze=False, sharex="col", sharey="row")
        named = {}
        for line, (metric, (label, factor)) in zip(grid, panels.items(), strict=True):
            for axis, (cost, (_, unit)) in zip(line, costs.items(), strict=True):
                for place, (name, rows) in enumerate(table.groupby("series", sort=False)):
                    style = {
                        "color": COLOURS[place % len(COLOURS)],
                        "marker": MARKERS[place % len(MARKERS)],
                        "ms": 5,
                    }
                    for apart, part in rows.sort_values(cost).groupby("apart"):
                        value, bars = with_bars(part, metric, factor)
                        drawn = axis.errorbar(
                            unit * part[cost],
                            value,
                            yerr=bars,
                            linestyle="none" if apart else LINES[place % len(LINES)],
                            fillstyle="none" if apart else "full",
                            elinewidth=0.8,
                            capsize=2,
                            **style,
                        )
                        named |= {} if apart else {str(name): drawn}
                        for x, y, note in zip(unit * part[cost], value, part["note"], strict=True):
                            axis.annotate(
                                note, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7
                            )
            counts = sorted({int(n) for n in table[f"{metric}_n"]})
            line[0].set_ylabel(f"{label}, n = {'/'.join(map(str, counts))}")
        for axis, (label, _) in zip(grid[-1], costs.values(), strict=True):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(label)
        if hollow:
            named[hollow] = grid[0][0].plot([], [], "o", color="black", fillstyle="none")[0]
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=3, title=title
        )
        return figure
