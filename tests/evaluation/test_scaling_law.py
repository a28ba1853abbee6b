import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.lack_of_fit import choose
from llasa_core.evaluation.law_fit import Fitter
from llasa_core.evaluation.scaling_law import (
    ADDITIVE,
    COUPLED,
    FORMS,
    KAPLAN,
    LossSurface,
    fit_surface,
)

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


# The grid of the study: seeds at the corners and at the centre, one run elsewhere
FEW_SIZES, FEW_HOURS = (550_336, 1_065_312, 1_846_656), (7.5, 15.0, 30.0)
REPEATED = {(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)}
TRUE = {
    "additive": (140.0, 8000.0, 0.4, 160.0, 0.5),
    "kaplan": (1500.0, 0.15, 420.0, 0.2),
    "coupled": (180.0, 3000.0, 0.2, 450.0, 0.25, 0.3),
}


def runs_of(form, noise, seed=0):
    """(size, hours, loss) of the 19 runs of the study's grid, from a form's true law."""
    places = [
        (size, hours)
        for i, size in enumerate(FEW_SIZES)
        for j, hours in enumerate(FEW_HOURS)
        for _ in range(3 if (i, j) in REPEATED else 1)
    ]
    size, hours = np.array(places, float).T
    values = np.array(TRUE[form.name])
    scatter = np.random.default_rng(seed).normal(0, noise, len(size))
    return size, hours, form.curve(values, size, hours) * np.exp(scatter)


def fitter_of(form, size, hours, losses):
    from llasa_core.evaluation.scaling_law import STEEPEST, _surface_starts

    starts = _surface_starts(form)
    return Fitter(form, [size, hours], losses, lambda _: starts, STEEPEST, 0.01)


def test_kaplans_form_is_equation_1_5_of_the_paper():
    a_n, n_c, a_d, d_c = 0.15, 2e21, 0.2, 1.3e13
    values = (n_c**a_n, a_n, d_c**a_d, a_d)
    ours = LossSurface(values, np.ones((1, 4)), np.zeros(1), 1, 0.0, form=KAPLAN)
    assert ours.predict(1e6, 30.0) == pytest.approx(
        ((n_c / 1e6) ** (a_n / a_d) + d_c / 30.0) ** a_d
    )
    assert ours.compute_exponent() == pytest.approx(0.2 / 0.35)


def test_coupled_form_holds_the_two_others():
    size, hours = np.array(FEW_SIZES)[:, None], np.array(FEW_HOURS)
    additive = np.array(TRUE["additive"])
    np.testing.assert_allclose(
        COUPLED.curve(np.append(additive, 1.0), size, hours),
        ADDITIVE.curve(additive, size, hours),
    )
    kaplan = np.array(TRUE["kaplan"])
    np.testing.assert_allclose(
        COUPLED.curve(np.array([0.0, *kaplan, kaplan[-1]]), size, hours),
        KAPLAN.curve(kaplan, size, hours),
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_slopes_are_those_of_small_changes(form):
    fitter = fitter_of(form, *runs_of(form, 0.01))
    theta = fitter.starts(fitter.log_y)[0] + 0.01
    moves = 1e-6 * np.eye(len(theta))
    for place, (move, column) in enumerate(zip(moves, fitter.jacobian(theta).T, strict=True)):
        change = (fitter.curve(theta + move) - fitter.curve(theta - move)) / 2e-6
        np.testing.assert_allclose(column, change, rtol=1e-5, atol=1e-7, err_msg=str(place))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_each_form_recovers_its_own_law_and_a_larger_run(form):
    surface = fit_surface(*runs_of(form, 0.0), n_boot=1, form=form)
    truth = np.array(TRUE[form.name])
    assert surface.values == pytest.approx(truth, rel=0.05) and surface.log_rmse < 1e-5
    assert surface.predict(4_840_192, 42.0) == pytest.approx(
        form.curve(truth, 4_840_192, 42.0), rel=1e-3
    )
    assert abs(surface.checks.largest_out) < 2e-3 and surface.at_bound() == []


@pytest.mark.slow
def test_additive_law_is_rejected_on_kaplans_runs_and_kaplans_on_additive_ones():
    of_kaplan, of_additive = (
        {other.name: fit_surface(*runs_of(form, 0.003), n_boot=1, form=other) for other in FORMS}
        for form in (KAPLAN, ADDITIVE)
    )
    assert of_kaplan["additive"].checks.rejected and not of_kaplan["kaplan"].checks.rejected
    assert choose({name: fit.checks for name, fit in of_kaplan.items()}) != "additive"
    assert of_additive["kaplan"].checks.rejected and not of_additive["additive"].checks.rejected
    assert choose({name: fit.checks for name, fit in of_additive.items()}) != "kaplan"
    rejected = of_kaplan["additive"].metrics("law")
    assert "law_lack_of_fit_f" in rejected and "law_largest_out" in rejected
    assert not any("exponent" in name or "irreducible" in name for name in rejected)


@pytest.mark.slow
def test_refits_from_the_best_fit_reach_the_optimum_where_nothing_is_irreducible():
    size, hours, losses = runs_of(KAPLAN, 0.004)
    fitter = fitter_of(COUPLED, size, hours, losses)
    best = fitter.best()
    rng = np.random.default_rng(1)
    for _ in range(2):
        again = fitter.curve(best) + rng.normal(0, 0.005, len(losses))
        every = min(fitter.fit(start, again).cost for start in fitter.starts(again))
        assert fitter.fit(best, again).cost == pytest.approx(every, rel=0.01)


@pytest.mark.slow
def test_interval_of_a_new_run_is_that_of_its_draws():
    surface = fit_surface(*runs_of(KAPLAN, 0.005), n_boot=40, form=KAPLAN)
    draws = surface.draws(4_840_192, 42.0, new_run=True)
    assert draws.shape == (40,)
    low, high = surface.predict_interval(4_840_192, 42.0, new_run=True)
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert low < KAPLAN.curve(np.array(TRUE["kaplan"]), 4_840_192, 42.0) < high


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
        ([1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3], [3] * 6, "in 3 settings"),
    ],
)
def test_impossible_runs_are_refused(size, data, losses, message):
    with pytest.raises(InputError, match=message):
        fit_surface(size, data, losses)
