import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.scaling_law import power_law_fit

SIZES = np.logspace(6, 8, 6)


def curve(x):
    return 1.7 + 400.0 * x**-0.34


def test_exact_points_give_back_the_parameters_and_the_curve():
    law = power_law_fit(SIZES, curve(SIZES), n_boot=5)
    assert (law.irreducible, law.amplitude, law.exponent) == pytest.approx(
        (1.7, 400.0, 0.34), rel=1e-5
    )
    np.testing.assert_allclose(law.predict([1e9, 1e10]), curve(np.array([1e9, 1e10])), rtol=1e-6)
    assert law.n == 6 and law.log_rmse < 1e-9


def test_pure_power_law_of_two_decades_worked_by_hand():
    law = power_law_fit([1, 10, 100], [5, 0.5, 0.05], irreducible=False, n_boot=5)
    assert (law.irreducible, law.amplitude, law.exponent) == pytest.approx(
        (0.0, 5.0, 1.0), abs=1e-8
    )
    assert law.predict(1000.0) == pytest.approx(0.005)


@pytest.mark.slow
def test_noisy_repeats_give_intervals_that_hold_the_truth():
    x = np.repeat(SIZES, 3)
    y = curve(x) * np.exp(np.random.default_rng(2).normal(0, 0.005, len(x)))
    law = power_law_fit(x, y, n_boot=100)
    for name, truth in (("irreducible", 1.7), ("amplitude", 400.0), ("exponent", 0.34)):
        low, high = law.interval(name)
        assert low < truth < high
    low, high = law.predict_interval([1e7, 1e9])
    assert (low < curve(np.array([1e7, 1e9]))).all() and (curve(np.array([1e7, 1e9])) < high).all()
    assert high[1] - low[1] > high[0] - low[0]  # extrapolation is less certain
    flat = law.metrics("loss")
    assert (
        flat["loss_exponent_low"] < flat["loss_exponent"] < flat["loss_exponent_high"]
        and flat["loss_n"] == 18
    )


@pytest.mark.slow
def test_one_outlier_among_the_repeats_moves_the_fit_little():
    x = np.repeat(SIZES, 3)
    y = curve(x) * np.exp(np.random.default_rng(2).normal(0, 0.002, len(x)))
    y[4] *= 1.5
    assert power_law_fit(x, y, n_boot=1).exponent == pytest.approx(0.34, abs=0.01)
    assert (
        abs(power_law_fit(x, y, huber_delta=10.0, n_boot=1).exponent - 0.34) > 0.03
    )  # least squares, for contrast


@pytest.mark.slow
def test_fit_is_seeded():
    y = curve(SIZES) * np.array([1.01, 0.99, 1.0, 1.01, 0.99, 1.0])
    first, second, other = (power_law_fit(SIZES, y, n_boot=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.refits, second.refits)
    assert not np.array_equal(first.refits, other.refits)


@pytest.mark.parametrize(
    "x, y, message",
    [
        ([1, 2, 3], [3, 2, 1], "3 parameters from 3 points"),
        ([1, 1, 2, 2], [3, 3, 2, 2], "4 points at 2 sizes"),
        ([1, 2, 3, 0], [3, 2, 1, 1], "positive, finite"),
        ([1, 2, 3, 4], [3, 2, 1, float("nan")], "positive, finite"),
        ([1, 2, 3, 4], [3, 2], "two equal lists"),
    ],
)
def test_impossible_points_are_refused(x, y, message):
    with pytest.raises(InputError, match=message):
        power_law_fit(x, y)


def test_unknown_parameter_is_refused():
    with pytest.raises(InputError, match="'alpha' is unknown"):
        power_law_fit(SIZES, curve(SIZES), n_boot=2).interval("alpha")
