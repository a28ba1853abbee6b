import io
import re

import numpy as np
import pandas as pd
import pytest

from llasa_core import plots

SCORES = pd.DataFrame(
    {
        "system": ["originals", "codec", "synthesized"],
        "corpus_wer": [0.01, 0.03, 0.2],
        "corpus_wer_low": [0.0, 0.02, 0.15],
        "corpus_wer_high": [0.02, 0.05, 0.26],
        "corpus_wer_n": [240, 240, 240],
        "stoi": [np.nan, 0.9, np.nan],
        "stoi_low": [np.nan, 0.89, np.nan],
        "stoi_high": [np.nan, 0.91, np.nan],
        "stoi_n": [np.nan, 240, np.nan],
    }
)
LOG = pd.DataFrame(
    {"step": [20, 40, 40], "loss": [6.0, 5.0, np.nan], "eval_loss": [np.nan, np.nan, 5.5]}
)
HELD_OUT = pd.DataFrame(
    {
        "tokens": [1e6, 2e6, 4e6],
        "eval_loss": [5.0, 4.5, 4.2],
        "eval_bits_per_second": [360.0, 325.0, 303.0],
    }
)
CURVE = pd.DataFrame({"x": [1e6, 4e6], "y": [5.0, 4.2], "y_low": [4.9, 4.1], "y_high": [5.1, 4.3]})
MODELS = pd.DataFrame(
    {"model": ["1b", "8b"] * 2, "search": ["none"] * 2 + ["ORM"] * 2, "wer": [3.2, 2.9, 1.5, 1.4]}
)
HUMAN = pd.DataFrame({"system": ["Human"], "wer": [2.1]})
FRONTIER = pd.DataFrame(
    {
        "strategy": ["plain", "best of N", "best of N"],
        "n": [1, 16, 4],
        "cpu_seconds": [0.1, 1.6, 0.4],
        "corpus_wer": [0.3, 0.1, 0.2],
        "corpus_wer_low": [0.25, 0.08, 0.18],
        "corpus_wer_high": [0.35, 0.12, 0.22],
        "verifier_wer": [np.nan, 0.05, 0.15],
    }
)
DRAWN = {
    "codec_training": lambda: plots.codec_training(
        pd.DataFrame({"step": [1, 2], "mel": [2.0, 1], "ctc": [3.0, 2]})
    ),
    "lm_training": lambda: plots.lm_training(LOG),
    "scores": lambda: plots.scores(SCORES, "corpus_wer", "corpus WER (%)", percent=True),
    "score_panels": lambda: plots.score_panels(
        SCORES, {"corpus_wer": ("WER (%)", 100), "stoi": ("STOI (0 to 1)", 1)}
    ),
    "paired_scatter": lambda: plots.paired_scatter(
        pd.DataFrame({"before": [0.1, 0.2], "after": [0.4, 0.5]}), "cosine"
    ),
    "spectrogram": lambda: plots.spectrogram(np.sin(np.arange(8000) * 0.3).astype(np.float32)),
    "learning_curve": lambda: plots.learning_curve(HELD_OUT, CURVE, 600.0),
    "learning_curve_without_fit": lambda: plots.learning_curve(HELD_OUT, None),
    "by_model": lambda: plots.by_model(MODELS, {"wer": "WER (%)"}, "published", HUMAN),
    "search_frontier": lambda: plots.search_frontier(FRONTIER, {"corpus_wer": ("WER (%)", 100)}),
    "length_histogram": lambda: plots.length_histogram(
        pd.DataFrame({"split": ["train", "test"], "seconds": [1.0, 2]})
    ),
}
drawn = pytest.mark.parametrize("name", DRAWN)


def saved(figure, kind):
    picture = io.BytesIO()
    figure.savefig(
        picture, format=kind, metadata={"svg": {"Date": None}, "png": {"Software": None}}[kind]
    )
    return picture.getvalue()


@pytest.mark.slow
@drawn
def test_figure_names_its_axes_and_is_a_small_picture(name):
    figure = DRAWN[name]()
    assert [axis for axis in figure.axes if not (axis.get_xlabel() or name == "by_model")] == []
    assert saved(figure, "png")[:4] == b"\x89PNG" and len(saved(figure, "png")) < 200_000


@pytest.mark.slow
@drawn
def test_figure_is_the_same_bytes_when_drawn_again(name):
    assert saved(DRAWN[name](), "svg") == saved(DRAWN[name](), "svg")


def test_figure_shows_itself_in_a_notebook():
    assert DRAWN["scores"]()._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_saved_picture_has_the_resolution_of_our_style():
    from PIL import Image

    picture = Image.open(io.BytesIO(saved(DRAWN["learning_curve"](), "png")))
    assert picture.size == (int(8.4 * 150), int(3.0 * 150))


def test_scores_are_drawn_at_their_values_with_interval_and_count():
    (axis,) = DRAWN["scores"]().axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "originals (n=240)",
        "codec (n=240)",
        "synthesized (n=240)",
    ]
    points = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert points == pytest.approx([1.0, 3.0, 20.0])
    ends = axis.containers[2].lines[2][0].get_segments()[0][:, 0]
    assert list(ends) == pytest.approx([15.0, 26.0])


def test_system_without_a_score_is_left_out_of_that_panel_and_keeps_its_marker():
    left, right = DRAWN["score_panels"]().axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["codec (n=240)"]
    assert right.containers[0].lines[0].get_marker() == left.containers[1].lines[0].get_marker()


def test_series_differ_in_grey():
    (axis,) = DRAWN["by_model"]().axes
    series = axis.get_lines()
    assert len({line.get_linestyle() for line in series[:2]}) == 2
    assert len({line.get_marker() for line in series[:2]}) == 2


def test_learning_curve_says_that_it_is_one_run():
    left, right = DRAWN["learning_curve"]().axes
    assert "one run" in left.get_title()
    assert (
        re.search("bits per second", right.get_ylabel())
        and left.get_xscale() == right.get_xscale() == "log"
    )
    assert list(right.get_lines()[1].get_ydata()) == [600.0, 600.0]


def test_frontier_joins_a_strategys_points_by_cost_and_shows_the_verifiers_own_score_hollow():
    (axis,) = DRAWN["search_frontier"]().axes
    plain, best = axis.containers
    assert list(plain.lines[0].get_ydata()) == pytest.approx([30.0])
    assert list(best.lines[0].get_xdata()) == [0.4, 1.6] and list(
        best.lines[0].get_ydata()
    ) == pytest.approx([20, 10])
    assert [text.get_text() for text in axis.texts] == ["1", "4", "16"]
    hollow = [
        line
        for line in axis.get_lines()
        if line.get_fillstyle() == "none" and len(line.get_xdata()) == 2
    ]
    assert list(hollow[0].get_ydata()) == pytest.approx([15.0, 5.0])
