"""The Huber fit of a law to runs, from a grid of starts, with a residual bootstrap and the checks
of `lack_of_fit`.

All laws are of one family, L = (sum over terms T of T^(1/c))^c: the terms are a constant E, where
the form has one, and A_k x_k^-a_k of each variable x_k. With the coupling c = 1 they add up; the
smaller c, the more the largest term alone counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llasa_core.evaluation.lack_of_fit import LackOfFit, lack_of_fit

LEAST_COUPLING, MOST_COUPLING = 0.02, 4.0  # beyond them the runs do not determine it


@dataclass(frozen=True)
class Form:
    """One form of a law. coupling: `one` (c = 1), `tied` (c is the exponent of the last variable)
    or `free` (a parameter). formula, source: for readers.
    """

    name: str
    irreducible: bool = True
    coupling: Literal["one", "tied", "free"] = "one"
    formula: str = ""
    source: str = ""

    def parameters(self, variables: int) -> int:
        """How many parameters a law of so many variables has."""
        return self.irreducible + 2 * variables + (self.coupling == "free")

    def curve(self, values: np.ndarray, *variables: np.ndarray) -> np.ndarray:
        """L at variables that broadcast against each other, and against values[k].

        values (P, ..): E unless there is none, then A_k and a_k of each variable, then a free c.
        """
        powers = values[self.irreducible :][: 2 * len(variables)]
        terms = list(values[: self.irreducible])
        terms += [
            amplitude * x**-exponent
            for amplitude, exponent, x in zip(powers[::2], powers[1::2], variables, strict=True)
        ]
        if self.coupling == "one":
            return sum(terms)
        coupling = values[-1]  # tied: the last exponent, which stands there
        with np.errstate(divide="ignore"):  # a term may have underflown to 0
            logs = [np.log(term) / coupling for term in np.broadcast_arrays(*terms)]
        return np.exp(coupling * np.logaddexp.reduce(logs, axis=0))


@dataclass(frozen=True)
class Fitted:
    """A fit of P parameters to n runs. residuals: log y - log L; spread: the same, centred and
    widened for the degrees of freedom.
    """

    values: np.ndarray  # (P,) as in Form.curve
    refits: np.ndarray  # (n_boot, P)
    spread: np.ndarray  # (n,)
    log_rmse: float
    residuals: np.ndarray  # (n,)


class Fitter:
    """The Huber fit of a form to y (n,) at K variables (n,), in logarithms.

    theta (P,): E^(1/c), log A_k and a_k of each variable, log c, as far as the form has them. The
    power of E, not its logarithm: that one has no slope where E is small, and a refit would stay
    where it starts. y and the variables are in units of their geometric means: amplitudes and
    exponents then hardly interact. starts: of log y (n,), the first guesses of theta. steepest: the
    largest exponent.
    """

    def __init__(
        self,
        form: Form,
        variables: Sequence[np.ndarray],
        y: np.ndarray,
        starts: Callable[[np.ndarray], list[np.ndarray]],
        steepest: float,
        huber_delta: float,
    ) -> None:
        self.form, self.variables, self.y, self.starts = form, variables, y, starts
        self.steepest, self.huber_delta, self.log_y = steepest, huber_delta, np.log(y)
        self.scales = [np.exp(np.log(x).mean()) for x in variables]
        self.logs = [np.log(x / scale) for x, scale in zip(variables, self.scales, strict=True)]
        self.level = np.exp(self.log_y.mean())
        low = [0.0] * form.irreducible
        low += [-np.inf, -np.inf if steepest == np.inf else 0.0] * len(variables)
        high = [np.inf] * form.irreducible + [np.inf, steepest] * len(variables)
        if form.coupling == "tied":
            low[-1] = LEAST_COUPLING
        elif form.coupling == "free":
            low.append(np.log(LEAST_COUPLING))
            high.append(np.log(MOST_COUPLING))
        self.bounds = (low, high)

    def bootstrapped(self, n_boot: int, seed: int) -> Fitted:
        """The best fit of all starts, and from it the refits of a residual bootstrap."""
        best = self.best()
        curve, n = self.curve(best), len(self.log_y)
        residuals = self.log_y - curve
        spread = (residuals - residuals.mean()) * np.sqrt(n / (n - len(best)))
        drawn = np.random.default_rng(seed).choice(spread, size=(n_boot, n))
        refits = [self.natural(self.fit(best, curve + noise).x) for noise in drawn]
        rmse = float(np.sqrt(np.mean(residuals**2)))
        return Fitted(self.natural(best), np.array(refits), spread, rmse, residuals)

    def checked(self, fitted: Fitted, extent: np.ndarray) -> LackOfFit:
        """The checks of a fit; the largest runs are those of the greatest `extent` (n,).

        They are left out only where more settings than parameters stay, and enough levels of each
        variable to tell a bend from a slope.
        """
        parameters = self.form.parameters(len(self.variables))
        checks = lack_of_fit(self.variables, fitted.residuals, parameters)
        largest = extent == extent.max()
        rest = self.without(largest)
        levels = min(len(np.unique(x)) for x in rest.variables)
        settings = np.unique(np.stack(rest.variables), axis=1).shape[1]
        if levels < 2 + self.form.irreducible or settings <= parameters:
            return checks
        places = [x[largest] for x in self.variables]
        predicted = self.form.curve(rest.natural(rest.best())[:, None], *places)
        off = np.exp(np.mean(self.log_y[largest] - np.log(predicted))) - 1
        return replace(checks, largest_out=float(off))

    def best(self) -> np.ndarray:
        fits = (self.fit(start, self.log_y) for start in self.starts(self.log_y))
        return min(fits, key=lambda fit: fit.cost).x

    def without(self, left_out: np.ndarray) -> Fitter:
        """The same fit of the runs that a mask (n,) does not leave out."""
        *variables, y = (values[~left_out] for values in (*self.variables, self.y))
        return Fitter(self.form, variables, y, self.starts, self.steepest, self.huber_delta)

    def fit(self, start: np.ndarray, log_y: np.ndarray):
        from scipy.optimize import least_squares

        return least_squares(
            lambda theta: self.curve(theta) - log_y,
            start,
            jac=self.jacobian,
            loss="huber",
            f_scale=self.huber_delta,
            x_scale="jac",
            max_nfev=400,
            bounds=self.bounds,
        )

    def coupling(self, theta: np.ndarray) -> float:
        if self.form.coupling == "free":
            return float(np.exp(theta[-1]))
        return float(theta[-1]) if self.form.coupling == "tied" else 1.0

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """(T, n): log T / c of each term of L, T in units of the mean y."""
        coupling, form = self.coupling(theta), self.form
        powers = theta[form.irreducible :][: 2 * len(self.logs)].reshape(-1, 2)
        with np.errstate(divide="ignore"):
            constants = [np.full_like(self.log_y, np.log(e)) for e in theta[: form.irreducible]]
        terms = [
            (amplitude - exponent * log_x) / coupling
            for (amplitude, exponent), log_x in zip(powers, self.logs, strict=True)
        ]
        return np.array([*constants, *terms])

    def curve(self, theta: np.ndarray) -> np.ndarray:
        """log L (n,)."""
        total = np.logaddexp.reduce(self.terms(theta), axis=0)
        return np.log(self.level) + self.coupling(theta) * total

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """(n, P) derivatives of `curve`, from the share of the sum that each term is."""
        terms, form, coupling = self.terms(theta), self.form, self.coupling(theta)
        total = np.logaddexp.reduce(terms, axis=0)
        shares = np.exp(terms - total)
        columns = [coupling * np.exp(-total)] * form.irreducible
        for share, log_x in zip(shares[form.irreducible :], self.logs, strict=True):
            columns += [share, -share * log_x]
        if form.coupling != "one":
            weighted = shares[form.irreducible :] * terms[form.irreducible :]
            by_coupling = total - weighted.sum(axis=0)
            if form.coupling == "free":
                columns.append(coupling * by_coupling)
            else:
                columns[-1] = columns[-1] + by_coupling
        return np.stack(columns, axis=1)

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """theta in the units of the variables, as `Form.curve` takes it."""
        coupling = self.coupling(theta)
        values = [self.level * e**coupling for e in theta[: self.form.irreducible]]
        powers = theta[self.form.irreducible :][: 2 * len(self.logs)].reshape(-1, 2)
        for (amplitude, exponent), scale in zip(powers, self.scales, strict=True):
            values += [self.level * np.exp(amplitude + exponent * np.log(scale)), exponent]
        return np.array([*values, *([coupling] * (self.form.coupling == "free"))])
