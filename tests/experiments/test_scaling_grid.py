import math

import numpy as np
import pandas as pd
import pytest

from llasa_core.experiments import scaling_grid

NAMES = {10: "nano", 20: "micro"}


def runs(*rows, epochs=1.0):
    """(parameters, hours, loss) of runs, in order of their seeds."""
    return pd.DataFrame(
        {
            "model": NAMES[size],
            "parameters": size,
            "hours": hours - 0.0004,
            "loss": loss,
            "epochs": epochs,
            "tokens": 1000 * hours * epochs,
            "run": f"grid/{NAMES[size]}-{hours}-{place}",
        }
        for place, (size, hours, loss) in enumerate(rows)
    )


def refused(run):
    raise AssertionError(f"{run} is read, expected seeds alone")


def test_neighbours_are_the_next_amount_and_the_next_size_that_there_are():
    table = runs((10, 1, 5), (10, 2, 4), (10, 4, 3), (20, 1, 4), (20, 4, 2))
    named = [step["name"] for step, _, _ in scaling_grid.neighbours(scaling_grid.cells_of(table))]
    assert named == [
        "nano_1h_2h",
        "nano_2h_4h",
        "micro_1h_4h",
        "1h_nano_micro",
        "4h_nano_micro",
    ]


def test_steps_have_students_interval_where_any_cell_has_seeds():
    table = runs((10, 1, 100 * math.e**0.01), (10, 1, 100 * math.e**-0.01), (10, 2, 90.0))
    (step,) = scaling_grid.loss_steps(table, refused).to_dict("records")
    # log sd sqrt(0.0002), 1 degree: t(0.975, 1) = 12.706
    half = 12.7062 * math.sqrt(2e-4) * math.hypot(100 / math.sqrt(2), 90)
    assert step["difference"] == pytest.approx(-10, abs=0.01)
    assert step["high"] - step["difference"] == pytest.approx(half, rel=1e-3)
    assert (step["along"], step["step"]) == ("hours", "nano: 1 h to 2 h")
    assert step["n"] == "2 and 1 runs"


def test_without_seeds_a_step_is_paired_by_utterance():
    def held_out(run):
        off = 0 if "-1-" in run else 2  # every utterance costs two bits a second less
        costs = zip(("u0", "u1"), (40, 10), (2.0, 1.0), strict=True)
        return [
            {"id": id_, "nats": (bits - off * seconds) * math.log(2), "seconds": seconds}
            for id_, bits, seconds in costs
        ]

    table = runs((10, 1, 17.0), (10, 2, 15.0), (10, 4, math.nan))
    (step,) = scaling_grid.loss_steps(table, held_out).to_dict("records")
    ends = [step[key] for key in ("difference", "low", "high")]
    assert ends == pytest.approx([-2, -2, -2]) and step["n"] == "2 utterances"


def scored(*errors):
    return [{"id": f"t{n}", "errors": wrong, "words": 4} for n, wrong in enumerate(errors)]


def test_word_errors_are_averaged_over_seeds_and_compared_on_the_same_texts():
    table = runs((10, 1, 9.0), (10, 1, 9.0), (10, 2, 8.0), (20, 2, 7.0))
    table["system"] = ["a", "b", "c", "d"]
    rows = {"a": scored(4, 2), "b": scored(4, 4), "c": scored(2, 1), "d": scored(3, 2)}
    cells = scaling_grid.speech_cells(table, rows, ["corpus_wer"])
    assert cells["corpus_wer"].tolist() == pytest.approx([14 / 16, 3 / 8, 5 / 8])
    assert cells["seeds"].tolist() == [2, 1, 1] and cells["hours"].tolist() == [1.0, 2.0, 2.0]
    scores = scaling_grid.speech_scores(table, rows, "corpus_wer")
    steps = scaling_grid.speech_steps(table, scores)
    assert steps["difference"].tolist() == pytest.approx([3 / 8 - 14 / 16, 2 / 8])
    assert steps["n"].tolist() == ["2 and 1 runs, 2 texts", "1 and 1 runs, 2 texts"]
    counts = scaling_grid.falls(steps)
    assert counts["hours"] == {"n": 1, "fall": 1, "rise": 0}
    assert counts["parameters"] == {"n": 1, "fall": 0, "rise": 1}
    flat = scaling_grid.as_metrics(steps, "wer_step")
    assert flat["wer_step_nano_1h_2h"] == pytest.approx(-0.5)
    assert flat["wer_step_hours_fall"] == 1 and flat["wer_step_2h_nano_micro_low"] > 0


def test_reuse_tells_more_steps_from_fresh_speech_at_equal_tokens():
    grid = runs((10, 1, 100.0), (10, 1, 101.0), (10, 2, 90.0), (10, 4, 80.0), (20, 4, 70.0))
    again = runs((10, 1, 85.0), epochs=4.0)
    steps = scaling_grid.reuse_steps(grid, again, refused).set_index("along")
    assert steps.loc["more_steps", "difference"] == pytest.approx(85 - 100.5)
    assert steps.loc["fresh_speech", "difference"] == pytest.approx(80 - 85)
    assert steps["step"].tolist() == ["nano: 1 h x 1 to 1 h x 4", "nano: 1 h x 4 to 4 h x 1"]
    assert "reuse_fresh_speech_nano_1hx4_4hx1_high" in scaling_grid.as_metrics(
        steps.reset_index(), "reuse"
    )
    lonely = scaling_grid.reuse_steps(runs((20, 4, 70.0), (20, 4, 71.0)), again, refused)
    assert len(lonely) == 0 and scaling_grid.as_metrics(lonely, "reuse") == {}
    assert np.array_equal(lonely.columns, scaling_grid.COLUMNS)
