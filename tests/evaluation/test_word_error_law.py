import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.word_error_law import fit_word_errors

BITS = np.array([225.0, 231, 240, 241, 255, 257, 286, 292])
SETTINGS = ["a", "b", "c", "c", "d", "d", "e", "f"]


def rate(bits):
    return 1 / (1 + np.exp(-(0.4 + 0.035 * (np.asarray(bits) - 250))))


def test_exact_rates_give_back_the_curve_below_and_above_what_was_scored():
    law = fit_word_errors(BITS, rate(BITS), SETTINGS, n_boot=3)
    assert law.values[1] == pytest.approx(0.035, rel=1e-4) and law.n == 8
    np.testing.assert_allclose(law.predict([200.0, 320.0]), rate([200.0, 320.0]), rtol=1e-4)
    assert law.left_out_error() == pytest.approx(0, abs=1e-5)
    bits = np.full(3, 210.0)
    assert law.interval_of_a_model(bits) == pytest.approx((rate(210.0), rate(210.0)), rel=1e-3)


def test_errors_that_do_not_fall_with_the_loss_leave_a_level_line():
    law = fit_word_errors(BITS, np.linspace(0.6, 0.4, 8), SETTINGS, n_boot=3)
    assert law.values[1] == pytest.approx(0, abs=1e-3)
    assert law.predict(200.0) == pytest.approx(law.predict(300.0), abs=0.02)


def test_interval_holds_the_truth_and_widens_with_the_uncertainty_of_the_loss():
    rng = np.random.default_rng(3)
    measured = (np.sqrt(rate(BITS)) + rng.normal(0, 0.01, 8)) ** 2
    law = fit_word_errors(BITS, measured, SETTINGS, n_boot=200)
    certain = law.interval_of_a_model(np.full(200, 210.0))
    assert certain.low < rate(210.0) < certain.high
    wide = law.interval_of_a_model(rng.normal(210.0, 8.0, 200))
    assert wide.high - wide.low > 1.5 * (certain.high - certain.low)
    low, high = law.band(BITS)
    assert (low <= law.predict(BITS)).all() and (law.predict(BITS) <= high).all()


def test_a_cell_is_left_out_with_all_its_seeds():
    wer = rate(BITS)
    wer[2:4] += 0.2  # both seeds of one cell are off: a fit with one of them would half follow
    law = fit_word_errors(BITS, wer, SETTINGS, n_boot=2)
    left_out = law.left_out[2:4]
    assert (left_out[:, 0] - left_out[:, 1]).min() > 0.17


def test_model_that_loops_moves_the_curve_little():
    wer = rate(BITS)
    wer[-1] = 1.4
    law = fit_word_errors(BITS, wer, SETTINGS, n_boot=2)
    assert law.predict(231.0) == pytest.approx(rate(231.0), abs=0.05)


@pytest.mark.parametrize(
    "bits, wer, settings, message",
    [
        (BITS, rate(BITS), ["a", "b", "c"] * 2 + ["c", "c"], "3 settings, expected at least 4"),
        (BITS, rate(BITS)[1:], SETTINGS, "three equal lists"),
        (-BITS, rate(BITS), SETTINGS, "positive, finite losses"),
        (BITS, rate(BITS) - 1, SETTINGS, "none below 0"),
    ],
)
def test_impossible_scores_are_refused(bits, wer, settings, message):
    with pytest.raises(InputError, match=message):
        fit_word_errors(bits, wer, settings)
