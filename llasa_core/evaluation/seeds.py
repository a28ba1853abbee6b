"""Several trainings of one setting, scored on the same utterances: their mean, with an interval
that holds both the choice of utterances and the scatter of trainings.

An interval over utterances alone says nothing of what another seed would have given.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llasa_core.errors import InputError
from llasa_core.intervals import CLUSTER, Interval

SAME = ("id", CLUSTER, "speaker", "seconds", "words")  # of an utterance, whatever the seed
AVERAGED = ("errors", "similarity", "nats")

Rows = Sequence[Mapping]
Measure = Callable[..., Mapping[str, float]]  # of the rows of a system, or of several


def mean_rows(by_seed: Mapping[int, Rows]) -> list[dict]:
    """A row an utterance, its errors, similarity and nats averaged over the seeds that scored it.

    Raises InputError where the seeds were scored on different utterances.
    """
    seeds = {seed: {row["id"]: row for row in rows} for seed, rows in by_seed.items()}
    first, *others = seeds.values()
    for seed, found in seeds.items():
        if different := found.keys() ^ first.keys():
            raise InputError(
                f"seed {seed}: utterance {min(different)!r} is not scored in every seed, expected"
                " the same ids"
            )
    return [
        {key: row[key] for key in SAME if key in row}
        | {
            key: float(np.mean([row[key], *(found[id_][key] for found in others)]))
            for key in AVERAGED
            if row.get(key) is not None
        }
        for id_, row in first.items()
    ]


def seeds_interval(values: Sequence[float], over_utterances: Interval) -> Interval:
    """Interval of the mean of values (S,), one a training seed, all of the same utterances.

    Trainings scatter (Student's t over the seeds) and so do utterances (over_utterances, of the
    mean); both are independent, so their half-widths add in quadrature. One seed: over_utterances.
    """
    if len(values) < 2:
        return over_utterances
    from scipy.stats import t

    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    low, high = over_utterances
    return Interval(mean - math.hypot(half, mean - low), mean + math.hypot(half, high - mean))


def over_seeds(measure: Measure, metric: str, *systems: Mapping[int, Rows]) -> dict[str, float]:
    """`metric` of measure(rows of each system), a system being {seed: its rows}, over the seeds
    that all systems have: METRIC, METRIC_low, METRIC_high (95 %), METRIC_n (utterances) and seeds.

    Rates need the same words or seconds in every seed. InputError where no seed is shared.
    """
    seeds = sorted(set.intersection(*(set(system) for system in systems)))
    if not seeds:
        raise InputError(f"{metric}: the systems share no training seed, expected at least one")
    found = measure(*(mean_rows({seed: system[seed] for seed in seeds}) for system in systems))
    each = [measure(*(mean_rows({seed: one[seed]}) for one in systems))[metric] for seed in seeds]
    interval = Interval(found[f"{metric}_low"], found[f"{metric}_high"])
    low, high = seeds_interval(each, interval)
    ends = {"": found[metric], "_low": low, "_high": high, "_n": found[f"{metric}_n"]}
    return {f"{metric}{end}": value for end, value in ends.items()} | {"seeds": len(seeds)}
