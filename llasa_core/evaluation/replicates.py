"""Trainings of one setting with several seeds: differences between settings, and scores of their
speech, with intervals that count both seeds and texts.

One seed says nothing of how far trainings scatter; seeds of all settings together do, if they
scatter alike. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llasa_core.errors import InputError
from llasa_core.intervals import CLUSTER, Interval, percentiles


@dataclass(frozen=True)
class SeedScatter:
    """Standard deviation of the logarithm of a loss between seeds of one setting; degrees of
    freedom, 0 where no setting has two seeds.
    """

    log_sd: float
    degrees: int

    def difference(
        self, before: Sequence[float], after: Sequence[float], confidence: float = 0.95
    ) -> tuple[float, float, float]:
        """(mean after - mean before, low, high): Student's interval with the pooled scatter, which
        holds where one of the two has a single seed as well.
        """
        if not self.degrees:
            raise InputError("no setting has two seeds, expected some to tell their scatter")
        from scipy.stats import t

        means = [float(np.mean(losses)) for losses in (before, after)]
        errors = [
            self.log_sd * mean / np.sqrt(len(losses))
            for mean, losses in zip(means, (before, after), strict=True)
        ]
        half = float(t.ppf((1 + confidence) / 2, self.degrees)) * float(np.hypot(*errors))
        change = means[1] - means[0]
        return change, change - half, change + half


def seed_scatter(settings: Sequence[Sequence[float]]) -> SeedScatter:
    """The scatter within settings, pooled; settings: the losses of the seeds of each."""
    logs = [np.log(np.asarray(losses, np.float64)) for losses in settings if len(losses)]
    degrees = sum(len(losses) - 1 for losses in logs)
    squares = sum(float(np.sum((losses - losses.mean()) ** 2)) for losses in logs)
    return SeedScatter(float(np.sqrt(squares / degrees)) if degrees else 0.0, degrees)


@dataclass(frozen=True)
class SettingScore:
    """A score of a setting over `seeds` trainings and `texts`; draws (n_boot,) of its bootstrap."""

    value: float
    draws: np.ndarray
    seeds: int
    texts: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """Percentile interval of the score."""
        return percentiles(self.draws, confidence)

    def minus(self, other: SettingScore, confidence: float = 0.95) -> tuple[float, float, float]:
        """(self - other, low, high), of two settings of one call of `setting_scores`: every draw
        has the same texts on both sides.
        """
        low, high = percentiles(self.draws - other.draws, confidence)
        return self.value - other.value, low, high


def setting_scores(
    settings: Mapping[Hashable, Sequence[Sequence[Mapping]]],
    value: str,
    weight: str | None = None,
    n_boot: int = 2000,
    seed: int = 0,
    paired: bool = False,
) -> dict[Hashable, SettingScore]:
    """sum(value) / sum(weight) of each setting, whose trainings each scored the same texts.

    settings: of each its trainings, of each the scored rows; rows without the value do not count
    (weight None: every row that has it weighs 1). The bootstrap resamples texts, the same for all
    settings, and seeds: of S seeds S - 1 are drawn, so that the mean of the draws has the variance
    s^2 / S (Rao and Wu 1988). Where a setting has one seed its interval is over texts alone.
    paired: the settings share their seeds, in this order (one model decoded in two ways), so the
    same seeds are drawn for all. Raises InputError when two trainings scored different texts.
    """
    texts: list[str] = []
    sums: dict[Hashable, list[np.ndarray]] = {}  # of each training (2, texts): value and weight
    for setting, trainings in settings.items():
        for rows in trainings:
            named = sorted({row.get(CLUSTER, row["id"]) for row in rows})
            texts = texts or named
            if named != texts:
                other = min({*named} ^ {*texts})
                raise InputError(
                    f"text {other!r} is scored for only some of {', '.join(map(str, settings))},"
                    " expected the same texts for all"
                )
            place = {text: number for number, text in enumerate(texts)}
            table = np.zeros((2, len(texts)))
            for row in rows:
                if row.get(value) is not None:
                    table[:, place[row.get(CLUSTER, row["id"])]] += (
                        row[value],
                        1.0 if weight is None else row[weight],
                    )
            sums.setdefault(setting, []).append(table)
    scores: dict[Hashable, SettingScore] = {}
    if not sums:
        return scores
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(texts), np.full(len(texts), 1 / len(texts)), size=n_boot)
    seeds = None
    for setting, tables in sums.items():
        both = np.stack(tables)  # (S, 2, texts)
        drawn = both @ counts.T  # (S, 2, n_boot)
        if seeds is None or not paired:
            seeds = rng.integers(len(both), size=(max(1, len(both) - 1), n_boot))
        chosen = drawn[seeds, :, np.arange(n_boot)].sum(axis=0)  # (n_boot, 2)
        total, weights = both.sum(axis=(0, 2))
        draws = np.full(n_boot, total / weights)  # where only texts without the value were drawn
        np.divide(chosen[:, 0], chosen[:, 1], out=draws, where=chosen[:, 1] > 0)
        scores[setting] = SettingScore(total / weights, draws, len(both), len(texts))
    return scores
