"""Shared plots: DataFrame or array in, matplotlib Figure out, one function per figure, no files.

Every figure can be read in grey (markers and line styles differ), names its units and shows
intervals.
"""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "llasa",
    "figure.constrained_layout.use": True,
}

COLOURS = ("#0b3c5d", "#d9731a", "#3a8f5c", "#8e4a9e", "#777777", "#b8a100")

MARKERS = ("o", "s", "^", "D", "v", "P")

LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))


def series_style(place: int) -> dict:
    """Colour, marker and line style of the series number `place`, for `plot` and `errorbar`."""
    looks = {"color": COLOURS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[place % len(values)] for name, values in looks.items()}


class Drawing(Figure):
    """A Figure that is saved in our style and shows itself in a notebook without pyplot."""

    def savefig(self, *args, **kwargs) -> None:
        with matplotlib.rc_context(STYLE):
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        from PIL import Image

        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=80)
        # A palette, a quarter of the bytes: executed notebooks are kept, and kept small
        image = Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
        image.save(small, format="png", optimize=True)
        return small.getvalue()


def new_axes(
    columns: int = 1, width: float = 4.2, height: float = 3.0, rows: int = 1
) -> tuple[Figure, list]:
    """A figure in our style and its axes, row by row; width and height in inches of each."""
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
    return figure, list(axes)


def with_bars(
    rows: pd.DataFrame, metric: str, factor: float = 1
) -> tuple[pd.Series, list[pd.Series]]:
    """METRIC, and how far METRIC_low and METRIC_high lie below and above it, for `errorbar`."""
    value, low, high = (factor * rows[f"{metric}{end}"] for end in ("", "_low", "_high"))
    return value, [(value - low).clip(lower=0), (high - value).clip(lower=0)]


def codec_training(log: pd.DataFrame) -> Figure:
    """Codec losses by `step`: `mel` (mean |log mel| difference, nats), `ctc` (nats a label)."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_axes(2)
        left.plot(log["step"], log["mel"], color=COLOURS[0])
        left.set(xlabel="step", ylabel="log-mel distance (nats)", title="reconstruction")
        right.plot(log["step"], log["ctc"], color=COLOURS[1], linestyle=LINES[1])
        right.set(
            xlabel="step",
            ylabel="CTC loss (nats per label)",
            title="text read from the codes",
        )
        return figure


def lm_training(log: pd.DataFrame) -> Figure:
    """Training and held-out loss of the language model in nats a speech token.

    Columns `step`, `loss`; rows of held-out evaluations carry `eval_loss`.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.2)
        if "loss" in log:
            train = log.dropna(subset=["loss"])
            axis.plot(
                train["step"], train["loss"], color=COLOURS[0], linewidth=0.9, label="training"
            )
        if "eval_loss" in log:
            held_out = log.dropna(subset=["eval_loss"])
            axis.plot(
                held_out["step"],
                held_out["eval_loss"],
                color=COLOURS[1],
                marker="o",
                ms=3,
                ls="--",
                label="held out",
            )
        axis.set(xlabel="optimiser step", ylabel="loss (nats per speech token)")
        axis.legend()
        return figure


def scores(table: pd.DataFrame, metric: str, label: str, percent: bool = False) -> Figure:
    """One metric by system with its 95 % interval.

    Columns `system`, `<metric>`, `<metric>_low`, `<metric>_high`, `<metric>_n`; one row a system,
    drawn top to bottom.
    """
    return score_panels(table, {metric: (label, 100.0 if percent else 1.0)})


def score_panels(table: pd.DataFrame, panels: Mapping[str, tuple[str, float]]) -> Figure:
    """One panel a metric, `panels` being {metric: (axis label, factor)}; table as in `scores`.

    A system keeps its colour and marker in every panel and is left out where it has no such score.
    """
    with matplotlib.rc_context(STYLE):
        width = 5.6 if len(panels) == 1 else 4.4
        figure, axes = new_axes(len(panels), width=width, height=0.7 + 0.42 * len(table))
        for axis, (metric, (label, factor)) in zip(axes, panels.items(), strict=True):
            scored = [
                (style, row)
                for style, (_, row) in enumerate(table.iterrows())
                if np.isfinite(row[metric])
            ]
            for place, (style, row) in enumerate(scored):
                value, low, high = (factor * row[f"{metric}{end}"] for end in ("", "_low", "_high"))
                axis.errorbar(
                    value,
                    place,
                    xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                    color=COLOURS[style % len(COLOURS)],
                    marker=MARKERS[style % len(MARKERS)],
                    capsize=3,
                )
            names = [f"{row['system']} (n={int(row[f'{metric}_n'])})" for _, row in scored]
            axis.set_yticks(range(len(scored)), names)
            axis.invert_yaxis()
            axis.margins(y=0.15)
            axis.set_xlabel(label)
        return figure


def paired_scatter(pairs: pd.DataFrame, label: str, title: str = "") -> Figure:
    """Two systems; columns `before`, `after`. Above the diagonal: the second wins."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=3.8, height=3.8)
        low, high = pairs[["before", "after"]].min().min(), pairs[["before", "after"]].max().max()
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=LINES[1])
        axis.scatter(
            pairs["before"], pairs["after"], s=14, color=COLOURS[0], alpha=0.6, linewidths=0
        )
        axis.set(xlabel=f"{label}, before", ylabel=f"{label}, after", title=title, aspect="equal")
        return figure


def spectrogram(wave: np.ndarray, sample_rate: int = 16_000, title: str = "") -> Figure:
    """Log-magnitude spectrogram of a mono wave (T,), 0 to 8 kHz, 60 dB of range."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, (axis,) = new_axes(1, width=4.6, height=1.9)
        if len(wave) < 512:
            wave = np.pad(wave, (0, 512 - len(wave)))
        frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::160] * np.hanning(512)
        level = 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T + 1e-6)
        axis.imshow(
            level,
            origin="lower",
            aspect="auto",
            extent=(0, len(wave) / sample_rate, 0, sample_rate / 2000),
            vmin=level.max() - 60,
            vmax=level.max(),
            cmap="magma",
        )
        axis.set(xlabel="time (s)", ylabel="frequency (kHz)", title=title)
        return figure


def learning_curve(
    held_out: pd.DataFrame,
    fit: pd.DataFrame | None,
    uniform_bits: float | None = None,
    law: str = "",
) -> Figure:
    """Held-out loss of ONE run against its training tokens, and the same as bits per second of
    audio.

    held_out: columns `tokens`, `eval_loss` (nats a speech token), `eval_bits_per_second`, one row
    an evaluation. fit: columns `x`, `y`, `y_low`, `y_high` in the loss; law: its formula for the
    legend. uniform_bits: bits per second when every code is equally likely, drawn as a line.
    """
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_axes(2)
        left.plot(
            held_out["tokens"],
            held_out["eval_loss"],
            "o",
            color=COLOURS[0],
            ms=4,
            label="held-out loss, one run",
        )
        if fit is not None:
            left.plot(fit["x"], fit["y"], color="black", linewidth=1, label=law or "power law")
            left.fill_between(
                fit["x"],
                fit["y_low"],
                fit["y_high"],
                color="black",
                alpha=0.15,
                linewidth=0,
                label="95 % bootstrap band",
            )
        left.set(
            xlabel="training tokens",
            ylabel="loss (nats per speech token)",
            title="learning curve of one run",
        )
        right.plot(
            held_out["tokens"],
            held_out["eval_bits_per_second"],
            "s",
            color=COLOURS[1],
            ms=4,
            label="held-out speech",
        )
        if uniform_bits:
            right.axhline(
                uniform_bits,
                color="black",
                linestyle=LINES[2],
                linewidth=1,
                label="all codes equally likely",
            )
        right.set(
            xlabel="training tokens",
            ylabel="bits per second of audio",
            title="information in the codes",
        )
        for axis in (left, right):
            axis.set_xscale("log")
            axis.legend()
        return figure


def by_model(
    table: pd.DataFrame,
    panels: Mapping[str, str],
    title: str,
    references: pd.DataFrame | None = None,
) -> Figure:
    """Published scores by model, one line a search strategy, one panel a score; no intervals, as
    none were published.

    table: columns `model`, `search` and those of `panels` ({column: axis label}). references: rows
    with `system` and the same columns, drawn as level lines where they have a value.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(len(panels), width=3.4)
        for axis, (column, label) in zip(axes, panels.items(), strict=True):
            for place, (name, rows) in enumerate(table.groupby("search", sort=False)):
                style = {
                    "color": COLOURS[place],
                    "marker": MARKERS[place],
                    "linestyle": LINES[place],
                    "ms": 4,
                }
                axis.plot(rows["model"], rows[column], label=f"search: {name}", **style)
            for place, (_, row) in enumerate(() if references is None else references.iterrows()):
                if np.isfinite(row[column]):
                    grey = {
                        "color": "black",
                        "linewidth": 0.8,
                        "linestyle": LINES[(3 + place) % len(LINES)],
                    }
                    axis.axhline(row[column], label=row["system"], **grey)
            axis.set(ylabel=label)
            axis.tick_params(axis="x", rotation=30)
        figure.suptitle(title, fontsize=9)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def search_frontier(
    table: pd.DataFrame,
    panels: Mapping[str, tuple[str, float]],
    cost: str = "cpu_seconds",
    cost_label: str = "",
) -> Figure:
    """What search buys: scores against the cost of an utterance, verifiers included, one line a
    strategy.

    table: one row an arm; columns `strategy`, `n` (candidates, written at the point), the cost,
    and for each METRIC of `panels` ({metric: (axis label, factor)}) METRIC, METRIC_low, METRIC_high
    by held-out judges and, where there are, METRIC_n (utterances) and verifier_METRIC by the models
    that searched: drawn hollow, so that the gap is seen.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(len(panels), width=4.6, height=3.6)
        for axis, (metric, (label, factor)) in zip(axes, panels.items(), strict=True):
            own = f"verifier_{metric.removeprefix('corpus_')}"
            if counts := sorted({int(n) for n in table.get(f"{metric}_n", ())}):
                label += f", n = {'/'.join(map(str, counts))}"
            for place, (name, rows) in enumerate(table.groupby("strategy", sort=False)):
                style = {
                    "color": COLOURS[place % len(COLOURS)],
                    "marker": MARKERS[place % len(MARKERS)],
                    "ms": 5,
                }
                rows = rows.sort_values(cost)
                value, error = with_bars(rows, metric, factor)
                line = LINES[place % len(LINES)]
                axis.errorbar(
                    rows[cost],
                    value,
                    yerr=error,
                    linestyle=line,
                    capsize=2,
                    label=str(name),
                    **style,
                )
                for x, y, n in zip(rows[cost], value, rows["n"], strict=True):
                    axis.annotate(
                        f"{n:.0f}", (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7
                    )
                if own in rows:
                    axis.plot(
                        rows[cost], factor * rows[own], linestyle="none", fillstyle="none", **style
                    )
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel=cost_label or cost, ylabel=label)
        axes[0].plot(
            [], [], "o", color="black", fillstyle="none", label="by the search's own verifier"
        )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def length_histogram(utterances: pd.DataFrame) -> Figure:
    """Utterances by length, stacked by split; columns `split`, `seconds`."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = new_axes(1, width=5.2)
        names = [name for name in ("train", "dev", "test") if (utterances["split"] == name).any()]
        lengths = [utterances.loc[utterances["split"] == name, "seconds"] for name in names]
        axis.hist(lengths, bins=40, stacked=True, color=COLOURS[: len(names)], label=names)
        axis.set_yscale("log")
        axis.set(xlabel="length (s)", ylabel="utterances")
        axis.legend()
        return figure
