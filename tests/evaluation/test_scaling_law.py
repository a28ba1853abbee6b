import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.scaling_law import fit_surface

SIZES = np.array([1e6, 2e6, 5e6, 12e6])
HOURS = np.array([0.25, 0.5, 1.0, 2.0])
TRUTH = (150.0, 4.0e4, 0.5, 60.0, 0.4)  # E, A, a, B, b


def loss(size, hours):
    return 150.0 + 4.0e4 * size**-0.5 + 60.0 * hours**-0.4


def grid(repeats=1, noise=0.0, seed=0):
    size, hours, _ = (
        part.ravel() for part in np.meshgrid(SIZES, HOURS, np.arange(repeats), indexing="ij")
    )
    return (
        size,
        hours,
        loss(size, hours) * np.exp(np.random.default_rng(seed).normal(0, noise, len(size))),
    )


@pytest.mark.slow
def test_exact_runs_give_back_the_law_and_its_extrapolation():
    surface = fit_surface(*grid(), n_boot=2)
    assert surface.values == pytest.approx(TRUTH, rel=1e-3)
    assert surface.n == 16 and surface.log_rmse < 1e-7
    assert surface.predict(5e7, 8.0) == pytest.approx(loss(5e7, 8.0), rel=1e-4)
    assert surface.predict(SIZES, 1.0).shape == (4,) and surface.predict(1e6, 1.0).shape == ()


@pytest.mark.slow
def test_noisy_seeds_give_intervals_that_hold_the_truth_and_widen_for_a_new_run():
    surface = fit_surface(*grid(3, 0.01, seed=1), n_boot=60)
    low, high = surface.predict_interval(3e7, 4.0)
    assert low < loss(3e7, 4.0) < high
    wide_low, wide_high = surface.predict_interval(3e7, 4.0, new_run=True)
    assert wide_high - wide_low > high - low
    inside = surface.predict_interval(2e6, 1.0)
    assert inside.high - inside.low < high - low
    flat = surface.metrics()
    assert flat["surface_n"] == 48 and flat["surface_log_rmse"] == pytest.approx(0.01, rel=0.3)
    assert flat["surface_data_exponent_low"] < 0.4 < flat["surface_data_exponent_high"]
    assert flat["surface_compute_exponent_low"] < 0.4 / 0.9 < flat["surface_compute_exponent_high"]


@pytest.mark.slow
def test_surface_fit_is_seeded():
    first, second, other = (fit_surface(*grid(3, 0.01), n_boot=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.refits, second.refits)
    assert not np.array_equal(first.refits, other.refits)


@pytest.mark.parametrize(
    "size, data, losses, message",
    [
        ([1, 2, 3], [1, 2, 3], [3, 2, 1], "at least 6 runs"),
        ([1, 1, 2, 2, 1, 2], [1, 2, 3, 4, 5, 6], [3] * 6, "of 2 sizes"),
        ([1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 6], [3] * 6, "positive, finite"),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, float("nan")], "positive, finite"),
        ([1, 2], [1, 2, 3], [1, 2], "three equal lists"),
    ],
)
def test_impossible_runs_are_refused(size, data, losses, message):
    with pytest.raises(InputError, match=message):
        fit_surface(size, data, losses)
