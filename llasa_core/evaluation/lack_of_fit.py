"""Whether a law holds on its own grid: the test of lack of fit, and the error at the largest runs
when these are left out.

An exponent is a fact about a law; where the law is rejected there is no such fact, however narrow
its interval. Repeats (seeds) tell how far runs of one setting scatter; a law that misses the means
by more than that is rejected (Draper and Smith 1998, section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

REJECTED = 0.05  # a p-value below it rejects the law


@dataclass(frozen=True)
class LackOfFit:
    """f, p: of the test in logarithms, with `between` and `within` degrees of freedom; None without
    repeats. largest_out: what the largest runs measured over what the law predicts for them when it
    is fitted without them, minus one; None where too few runs would be left.
    """

    f: float | None = None
    p: float | None = None
    between: int = 0
    within: int = 0
    largest_out: float | None = None

    @property
    def rejected(self) -> bool:
        """Whether the runs reject the law, at the 5 % level."""
        return self.p is not None and self.p < REJECTED

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat numbers for a result: what is known of PREFIX_lack_of_fit_f, _p, _between, _within
        and PREFIX_largest_out.
        """
        known: dict[str, float] = {}
        if self.p is not None and self.f is not None:
            known = {"lack_of_fit_f": self.f, "lack_of_fit_p": self.p}
            known |= {"lack_of_fit_between": self.between, "lack_of_fit_within": self.within}
        if self.largest_out is not None:
            known["largest_out"] = self.largest_out
        return {f"{prefix}_{name}": value for name, value in known.items()}

    def text(self) -> str:
        """One line to stand beside every law."""
        if self.p is None:
            tested = "lack of fit not tested (no repeats)"
        else:
            tested = (
                f"lack of fit F({self.between}, {self.within}) = {self.f:.1f}, p = {self.p:.1g}"
            )
            tested += ": its own runs reject the law" if self.rejected else ""
        if self.largest_out is None:
            return f"{tested}; too few runs to leave the largest out"
        return f"{tested}; the largest runs, left out, came out {100 * self.largest_out:+.1f} % off"


def lack_of_fit(
    variables: Sequence[np.ndarray], residuals: np.ndarray, parameters: int
) -> LackOfFit:
    """The F test of residuals (N,) of a law of `parameters` fitted at variables (N,) each: those of
    one setting are repeats. largest_out is left to the caller.
    """
    from scipy.stats import f as distribution

    _, cell = np.unique(np.stack(variables), axis=1, return_inverse=True)
    counts = np.bincount(cell.ravel())
    means = np.bincount(cell.ravel(), weights=residuals) / counts
    within = float(np.sum((residuals - means[cell.ravel()]) ** 2))
    between = float(np.sum(counts * means**2))
    free, repeats = len(counts) - parameters, len(residuals) - len(counts)
    if free < 1 or repeats < 1 or within <= 1e-24:
        return LackOfFit()
    ratio = (between / free) / (within / repeats)
    return LackOfFit(ratio, float(distribution.sf(ratio, free, repeats)), free, repeats)


def choose(checks: Mapping[str, LackOfFit]) -> str:
    """The name of the law to use: of those that their runs do not reject, or of all where all are
    rejected, the one with the least |largest_out|.

    A law whose largest runs could not be left out comes after those where they could; of equals the
    first is taken, so name the simplest first.
    """
    kept = {name: check for name, check in checks.items() if not check.rejected} or checks

    def error(name: str) -> float:
        out = kept[name].largest_out
        return math.inf if out is None else abs(out)

    return min(kept, key=error)
