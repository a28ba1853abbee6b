"""Figure of fine-tuning by minutes: DataFrame in, Figure out, in the style and with the promises of
`figures`.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from llasa_core.plots import COLOURS, LINES, MARKERS, STYLE, new_axes, with_bars

SHADES = ("0.45", "0.6", "0.75")

APART = (
    0.02  # of log10 minutes, between the methods, so that their intervals do not hide each other
)


def by_minutes(
    tunes: pd.DataFrame, levels: pd.DataFrame, panels: Mapping[str, tuple[str, float]]
) -> Figure:
    """Scores against minutes of the new voice, a line a method, and levels that no amount of speech
    changes.

    tunes: columns `method`, `minutes`, and METRIC, METRIC_low, METRIC_high, METRIC_n for each of
    `panels`, which are {metric: (axis label, factor)}. levels: `label` and the same, drawn as level
    lines with their intervals as bands; a panel leaves out those without its metric.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(len(panels), width=4.0, height=3.6)
        for axis, (metric, (label, factor)) in zip(axes, panels.items(), strict=True):
            shown = levels.dropna(subset=[metric]) if metric in levels else levels.iloc[:0]
            for place, (_, row) in enumerate(shown.iterrows()):
                value, low, high = (factor * row[f"{metric}{end}"] for end in ("", "_low", "_high"))
                shade, line = SHADES[place % len(SHADES)], LINES[1 + place % (len(LINES) - 1)]
                axis.axhspan(low, high, color=shade, alpha=0.2, linewidth=0)
                axis.axhline(value, color="black", linestyle=line, linewidth=1, label=row["label"])
            for place, (method, rows) in enumerate(tunes.groupby("method", sort=True)):
                value, bars = with_bars(rows, metric, factor)
                axis.errorbar(
                    rows["minutes"] * 10 ** (APART * (2 * place - 1)),
                    value,
                    yerr=bars,
                    color=COLOURS[place],
                    marker=MARKERS[place],
                    linestyle=LINES[place],
                    capsize=2,
                    ms=5,
                    label=f"fine-tuned, {method}",
                )
            axis.set_xscale("log")
            axis.set_xticks(sorted({round(minutes, 1) for minutes in tunes["minutes"]}))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
            counts = sorted({int(n) for n in tunes[f"{metric}_n"]})
            axis.set(
                xlabel="speech of the new voice (min)",
                ylabel=f"{label}, n = {'/'.join(map(str, counts))}",
            )
        fullest = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1]))
        figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure
