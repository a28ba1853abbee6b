"""Figures of a data report: counts and columns in, matplotlib Figure out, in the style of `figures`."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llasa_core.figures import COLOURS, LINES, STYLE, new_axes

MOST_BARS = 20
MOST_POINTS = 20_000


def hours(by_language: Mapping[str, Mapping], by_speaker: Mapping[str, Mapping]) -> Figure:
    """Hours of each language and of the speakers with the most; {name: {"hours": ..}} with the most hours first."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(2, width=4.6, height=3.6)
        for axis, table, label in zip(axes, (by_language, by_speaker), ("language", "speaker"), strict=True):
            shown = list(table.items())[:MOST_BARS][::-1]
            axis.barh([name or "(none)" for name, _ in shown], [one["hours"] for _, one in shown], color=COLOURS[0])
            axis.set(xlabel="hours", title=f"{label}s" + (f" (of {len(table)})" if len(table) > MOST_BARS else ""))
            axis.set_ylim(min(len(shown), 6) - 6.6, len(shown) - 0.4)  # a single bar is not a wall
            axis.grid(axis="y", visible=False)
        return figure


def lengths(seconds: pd.Series, rate: pd.Series) -> Figure:
    """Histograms of utterance length (s) and of characters a second, with their medians."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(2, width=4.6)
        for axis, values, label in zip(axes, (seconds, rate), ("length (s)", "characters per second"), strict=True):
            top = float(values.quantile(0.999)) or 1.0
            axis.hist(values.clip(upper=top), bins=60, color=COLOURS[0])
            middle = float(values.median())
            axis.axvline(middle, color=COLOURS[1], linestyle=LINES[1], label=f"median {middle:.2f}")
            axis.set(xlabel=label, ylabel="utterances")
            axis.legend()
        return figure


def code_usage(usage: np.ndarray) -> Figure:
    """How often each code occurs, the commonest first (logarithmic), and the share that the commonest make up."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_axes(2, width=4.6)
        counts = np.sort(usage)[::-1]
        counts = counts[counts > 0]
        rank = np.arange(1, len(counts) + 1)
        points = (
            np.unique(np.geomspace(1, max(len(counts), 1), 2000).astype(int)) - 1 if len(counts) else np.zeros(0, int)
        )
        left.loglog(rank[points], counts[points], color=COLOURS[0])
        left.set(xlabel="rank of the code", ylabel="occurrences", title=f"{len(counts):,} of {len(usage):,} in use")
        right.plot(rank[points] / len(usage), (np.cumsum(counts) / max(counts.sum(), 1))[points], color=COLOURS[0])
        right.set(xlabel="share of the codebook, commonest first", ylabel="share of all codes", ylim=(0, 1))
        return figure


def rates(frame: pd.DataFrame) -> Figure:
    """Characters against seconds, outliers marked; columns `seconds`, `characters`, `deviation` (robust deviations)."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.6, height=3.6)
        far = frame["deviation"].abs() > 5
        plain = frame[~far]
        if len(plain) > MOST_POINTS:
            plain = plain.sample(MOST_POINTS, random_state=0)
        dots = {"linestyle": "none", "alpha": 0.3, "rasterized": True}
        axis.plot(plain["seconds"], plain["characters"], marker=".", markersize=2, color=COLOURS[0], **dots)
        some = frame[far].head(MOST_POINTS)
        axis.plot(some["seconds"], some["characters"], "x", color=COLOURS[1], label=f"{int(far.sum())} outliers")
        axis.set(xlabel="length (s)", ylabel="characters of the text")
        axis.legend()
        return figure
