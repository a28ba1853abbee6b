"""Word errors of a model's speech from its held-out loss, so that a law of the loss foretells them.

WER = 1 / (1 + exp(-(intercept + slope bits))), slope >= 0: it rises with the bits a second, as
exp(slope bits) while it is small, and ends at the 100 % of a model that says nothing right. The two
steps, loss from scale and errors as a sigmoid of the loss, are those of Llama 3 (arXiv 2407.21783,
section 3.2.1). Residuals are those of sqrt(WER): errors are counts, and the square root of a count
scatters alike at every rate (Bartlett 1936), so a rate above 1 and a lower one than any that was
scored need no other rule. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llasa_core.errors import InputError
from llasa_core.intervals import Interval, percentiles

LEAST_SETTINGS = 4  # fewer are left out of any prediction
HUBER_DELTA = 0.05  # in sqrt(WER): 7 points at 50 %; a model that loops lies far beyond


@dataclass(frozen=True)
class WordErrorLaw:
    """values: intercept at `centre` bits a second, and slope. refits (n_boot, 2): the same for
    every bootstrap sample. left_out (n, 2): WER of each model, and what a fit without its setting
    says of it.
    """

    values: tuple[float, float]
    refits: np.ndarray
    left_out: np.ndarray
    centre: float

    @property
    def n(self) -> int:
        """Models behind the fit."""
        return len(self.left_out)

    def left_out_error(self) -> float:
        """Root mean square error in WER at a setting that was left out."""
        return float(np.sqrt(np.mean((self.left_out[:, 0] - self.left_out[:, 1]) ** 2)))

    def predict(self, bits: Sequence[float] | float) -> np.ndarray:
        """WER at a loss in bits a second, in the shape of bits."""
        return _root(self.values, np.asarray(bits, np.float64) - self.centre) ** 2

    def band(
        self, bits: Sequence[float], confidence: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Percentile ends (low, high) of the curve, not of a model, at bits (N,)."""
        places = np.asarray(bits, np.float64) - self.centre
        curves = _root(self.refits.T[:, :, None], places) ** 2  # (n_boot, N)
        low, high = np.quantile(curves, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        return low, high

    def interval_of_a_model(
        self, bits: np.ndarray, confidence: float = 0.95, seed: int = 0
    ) -> Interval:
        """Percentile interval of the WER of one more model, whose loss is as uncertain as bits
        (n_boot,) say: each loss at one refit, with a left-out residual added.
        """
        rng = np.random.default_rng(seed)
        refits = self.refits[rng.integers(len(self.refits), size=len(bits))]
        measured, said = np.sqrt(self.left_out.T)
        noise = rng.choice(measured - said, len(bits))
        roots = _root(refits.T, np.asarray(bits) - self.centre) + noise
        return percentiles(np.maximum(roots, 0.0) ** 2, confidence)


def fit_word_errors(
    bits: Sequence[float],
    wer: Sequence[float],
    settings: Sequence[Hashable],
    n_boot: int = 500,
    seed: int = 0,
) -> WordErrorLaw:
    """Fit WER (n,) of scored models to their held-out loss in bits a second (n,), by the Huber loss
    of sqrt(WER).

    settings (n,): size and data of each model; seeds of one setting are left out together.
    Intervals: residual bootstrap with the left-out residuals, centred. Raises InputError with fewer
    than four settings, on losses that are not positive, or on rates that are negative.
    """
    bits, wer = np.asarray(bits, np.float64), np.asarray(wer, np.float64)
    if bits.ndim != 1 or not bits.shape == wer.shape == (len(settings),):
        raise InputError(
            f"word errors over {bits.shape} losses, {wer.shape} rates and {len(settings)} settings,"
            " expected three equal lists"
        )
    if len(set(settings)) < LEAST_SETTINGS:
        raise InputError(
            f"word errors of {len(set(settings))} settings, expected at least {LEAST_SETTINGS}"
        )
    if not (np.isfinite(bits).all() and np.isfinite(wer).all() and (bits > 0).all()):
        raise InputError("word errors need positive, finite losses and finite rates")
    if (wer < 0).any():
        raise InputError(f"word error rate {wer.min()}, expected none below 0")
    centre = float(bits.mean())
    places, roots = bits - centre, np.sqrt(wer)
    best = _best(places, roots)
    left_out = np.empty(len(bits))
    for setting in set(settings):
        out = np.array([one == setting for one in settings])
        left_out[out] = _root(_best(places[~out], roots[~out]), places[out])
    curve, residuals = _root(best, places), roots - left_out
    residuals -= residuals.mean()
    drawn = np.random.default_rng(seed).choice(residuals, size=(n_boot, len(bits)))
    refits = np.array([_fit(best, places, curve + noise).x for noise in drawn])
    pairs = np.stack([wer, left_out**2], axis=1)
    return WordErrorLaw(tuple(best.tolist()), refits, pairs, centre)


def _root(values: Sequence, places: np.ndarray) -> np.ndarray:
    """sqrt(WER)."""
    intercept, slope = values
    return np.exp(-0.5 * np.logaddexp(0.0, -(intercept + slope * places)))


def _best(places: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """The best fit of several starts: slopes of 0.2 to 10 % a bit, few to most words wrong."""
    fits = [
        _fit(np.array([intercept, slope]), places, roots)
        for intercept in (-2.0, 0.0, 2.0)
        for slope in (0.002, 0.02, 0.1)
    ]
    return min(fits, key=lambda fit: fit.cost).x


def _fit(start: np.ndarray, places: np.ndarray, roots: np.ndarray):
    from scipy.optimize import least_squares

    return least_squares(
        lambda values: _root(values, places) - roots,
        start,
        loss="huber",
        f_scale=HUBER_DELTA,
        x_scale="jac",
        bounds=([-np.inf, 0.0], np.inf),
    )
