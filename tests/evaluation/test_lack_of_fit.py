import numpy as np
import pytest

from llasa_core.evaluation.lack_of_fit import LackOfFit, choose, lack_of_fit
from llasa_core.evaluation.scaling_law import fit_surface, power_law_fit

SIZES = np.repeat([1e5, 1e6, 1e7, 1e8, 1e9], 3)
NOISE = np.exp(0.01 * np.tile([-1.0, 0.0, 1.0], 5))


def test_f_test_is_the_one_worked_by_hand():
    # two repeats at each of three settings, a law of one parameter; residuals by setting
    settings, residuals = np.array([1, 1, 2, 2, 3, 3]), np.array([0.0, 2, 1, 3, -4, -2])
    # means 1, 2, -3: between 2 * (1 + 4 + 9) = 28 of 2 degrees, within 3 * 2 = 6 of 3
    tested = lack_of_fit([settings], residuals, parameters=1)
    assert (tested.f, tested.between, tested.within) == (7.0, 2, 3)
    assert tested.p == pytest.approx(0.0741, abs=1e-4)  # of F(2, 3): (1 + 2 * 7 / 3) ** -1.5
    assert not tested.rejected


@pytest.mark.slow
def test_a_true_law_is_kept_and_a_bend_is_rejected():
    true = power_law_fit(SIZES, (1.5 + 40 * SIZES**-0.3) * NOISE, n_boot=2).checks
    assert not true.rejected and (true.between, true.within) == (2, 10)
    assert true.largest_out == pytest.approx(0, abs=0.03)
    bend = 1.0 + 0.3 * (SIZES == 1e7)
    bent = power_law_fit(SIZES, (1.5 + 40 * SIZES**-0.3) * NOISE * bend, n_boot=2).checks
    assert bent.rejected and bent.p < 1e-6 and "reject the law" in bent.text()


@pytest.mark.slow
def test_largest_run_left_out_says_how_far_the_law_misses_it():
    losses = (1.5 + 40 * SIZES**-0.3) * np.where(SIZES == 1e9, 1.1, 1.0)
    checks = power_law_fit(SIZES, losses, n_boot=2).checks
    assert checks.largest_out == pytest.approx(0.1, abs=0.005)
    size, data = (axis.ravel() for axis in np.meshgrid([1e5, 1e6, 1e7, 1e8], [1, 2, 4, 8.0]))
    surface = 2 + 300 * size**-0.5 + data**-0.5
    surface[(size == 1e8) & (data == 8)] *= 0.9
    checks = fit_surface(size, data, surface, n_boot=2).checks
    assert checks.largest_out == pytest.approx(-0.1, abs=0.005) and checks.p is None


def test_without_repeats_or_runs_to_spare_nothing_is_claimed():
    law = power_law_fit([1, 10, 100, 1000], [5, 0.52, 0.05, 0.0049], irreducible=False, n_boot=2)
    assert law.checks.p is None and law.checks.largest_out is not None
    assert not law.checks.rejected and "not tested (no repeats)" in law.checks.text()
    few = power_law_fit([1, 10, 100, 100], [5, 2, 1, 1.1], n_boot=2)
    assert few.checks.largest_out is None and "too few runs" in few.checks.text()


def test_checks_are_flat_numbers_of_a_result():
    law = power_law_fit(SIZES, (1.5 + 40 * SIZES**-0.3) * NOISE, n_boot=2)
    metrics = law.metrics("law")
    assert metrics["law_lack_of_fit_f"] == law.checks.f
    assert metrics["law_lack_of_fit_p"] == law.checks.p
    assert metrics["law_largest_out"] == law.checks.largest_out
    assert LackOfFit().metrics("law") == {}


def test_form_is_chosen_by_its_largest_runs_among_those_that_are_not_rejected():
    kept = {"a": LackOfFit(1.0, 0.4, 4, 10, -0.02), "b": LackOfFit(1.0, 0.3, 4, 10, 0.01)}
    better = LackOfFit(9.0, 0.001, 4, 10, 0.001)
    assert choose(kept) == "b"
    assert choose(kept | {"c": better}) == "b"  # its largest runs fit, its own runs reject it
    rejected = {
        name: LackOfFit(9.0, 0.001, 4, 10, check.largest_out) for name, check in kept.items()
    }
    assert choose(rejected | {"c": better}) == "c"
    unknown = LackOfFit()
    assert choose({"few": unknown, **kept}) == "b"
    assert choose({"first": unknown, "second": unknown}) == "first"


@pytest.mark.slow
def test_largest_runs_are_left_out_only_where_more_settings_than_parameters_stay():
    size, data = (axis.ravel() for axis in np.meshgrid([1e5, 1e6, 1e7], [1, 2, 4.0]))
    few = (size < 1e7) | (data > 2) | (data < 2)
    few &= (size > 1e5) | (data != 2)
    few &= (size != 1e6) | (data != 1)
    losses = 2 + 300 * size**-0.5 + data**-0.5
    for kept, known in ((np.ones(9, bool), True), (few, False)):
        places = [np.repeat(part[kept], 2) for part in (size, data, losses)]
        checks = fit_surface(*places, n_boot=1).checks
        assert (checks.largest_out is not None) == known
