"""DataFrame or array in, matplotlib Figure out: one function a figure, no file access.

Every figure reads in grey (markers and line styles differ, not only colours), names its units and shows intervals.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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


def _axes(columns: int = 1, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def codec_training(log: pd.DataFrame) -> Figure:
    """Codec losses by step; columns `step`, `mel` (mean |log mel| difference, nats), `ctc` (nats a character)."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = _axes(2)
        left.plot(log["step"], log["mel"], color=COLOURS[0])
        left.set(xlabel="step", ylabel="log-mel distance (nats)", title="reconstruction")
        right.plot(log["step"], log["ctc"], color=COLOURS[1], linestyle=LINES[1])
        right.set(xlabel="step", ylabel="CTC loss (nats per character)", title="characters read from the codes")
        return figure


def lm_training(log: pd.DataFrame) -> Figure:
    """Training and held-out loss of the language model in nats a speech token.

    Columns `step`, `loss`; rows of held-out evaluations carry `eval_loss`.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(1, width=5.2)
        train = log.dropna(subset=["loss"]) if "loss" in log else log.iloc[:0]
        axis.plot(train["step"], train["loss"], color=COLOURS[0], linewidth=0.9, label="training")
        if "eval_loss" in log:
            held_out = log.dropna(subset=["eval_loss"])
            axis.plot(
                held_out["step"], held_out["eval_loss"], color=COLOURS[1], marker="o", ms=3, ls="--", label="held out"
            )
        axis.set(xlabel="optimiser step", ylabel="loss (nats per speech token)")
        axis.legend()
        return figure


def scores(table: pd.DataFrame, metric: str, label: str, percent: bool = False) -> Figure:
    """One metric by system with its 95 % interval.

    Columns `system`, `<metric>`, `<metric>_low`, `<metric>_high`, `<metric>_n`; one row a system, drawn top to bottom.
    """
    factor = 100.0 if percent else 1.0
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(1, width=5.6, height=0.7 + 0.42 * len(table))
        for place, (_, row) in enumerate(table.iterrows()):
            value, low, high = (factor * row[f"{metric}{end}"] for end in ("", "_low", "_high"))
            axis.errorbar(
                value,
                place,
                xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                capsize=3,
            )
        names = [f"{row['system']} (n={int(row[f'{metric}_n'])})" for _, row in table.iterrows()]
        axis.set_yticks(range(len(table)), names)
        axis.invert_yaxis()
        axis.margins(y=0.15)
        axis.set_xlabel(label)
        return figure


def similarity_by_speaker(rows: pd.DataFrame) -> Figure:
    """Similarity to the own speaker's recordings, one box a speaker; columns `speaker`, `similarity` (cosine)."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(1, width=6.0)
        names = sorted(rows["speaker"].unique())
        axis.boxplot([rows.loc[rows["speaker"] == name, "similarity"] for name in names], tick_labels=names, widths=0.6)
        axis.set(ylabel="cosine similarity to the speaker", xlabel="speaker")
        return figure


def spectrogram(wave: np.ndarray, sample_rate: int = 16_000, title: str = "") -> Figure:
    """Log-magnitude spectrogram of a mono wave (T,), 0 to 8 kHz, 60 dB of range."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, (axis,) = _axes(1, width=4.6, height=1.9)
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


def scaling_curve(points: pd.DataFrame, fit: pd.DataFrame | None, x_label: str, y_label: str) -> Figure:
    """Measured points `x`, `y`, `y_low`, `y_high`, `series` on logarithmic x, with an optional fitted curve.

    `fit` holds `x`, `y`, `y_low`, `y_high`.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(1, width=5.2)
        for place, (name, series) in enumerate(points.groupby("series", sort=True)):
            style = place % len(COLOURS)
            error = [(series["y"] - series["y_low"]).clip(lower=0), (series["y_high"] - series["y"]).clip(lower=0)]
            axis.errorbar(
                series["x"],
                series["y"],
                yerr=error,
                color=COLOURS[style],
                marker=MARKERS[style],
                linestyle="none",
                capsize=2,
                ms=4,
                label=str(name),
            )
        if fit is not None:
            axis.plot(fit["x"], fit["y"], color="black", linewidth=1)
            axis.fill_between(fit["x"], fit["y_low"], fit["y_high"], color="black", alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.legend()
        return figure


def length_histogram(utterances: pd.DataFrame) -> Figure:
    """Utterances by length, stacked by split; columns `split`, `seconds`."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(1, width=5.2)
        names = [name for name in ("train", "dev", "test") if (utterances["split"] == name).any()]
        lengths = [utterances.loc[utterances["split"] == name, "seconds"] for name in names]
        axis.hist(lengths, bins=40, stacked=True, color=COLOURS[: len(names)], label=names)
        axis.set_yscale("log")
        axis.set(xlabel="length (s)", ylabel="utterances")
        axis.legend()
        return figure
