"""Two systems on the same utterances: paired differences with intervals and two tests, texts as
clusters.

Several seeds of one text share its difficulty: where rows name a `text_id`, texts are resampled and
have their signs flipped as a whole, with all their seeds. Ids that differ are an error, never a
smaller comparison.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llasa_core.errors import InputError, check_value


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


def percentiles(draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile interval of the draws (N,) of a bootstrap."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


class PairedDifference(NamedTuple):
    """System b minus a on the same utterances, with interval, two-sided p-value and count."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def bootstrap_interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    n_boot: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over utterances (Bisani and Ney 2004) of mean(values), or of sum(values)
    / sum(weights).

    values, weights: (N,), e.g. errors and words for the corpus WER. Raises InputError when N is 0.
    """
    values, weights = _weighted(values, weights)
    rates = _resampled_rates(values, weights, n_boot, seed)
    return percentiles(rates, confidence)


def paired_bootstrap(
    values_a: Sequence[float],
    values_b: Sequence[float],
    weights: Sequence[float] | None = None,
    n_boot: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap (Koehn 2004) of b - a: both systems are scored on the same resampled
    utterances.

    values_a, values_b: (N,) in the same order of utterances; weights as in `bootstrap_interval`.
    The p-value is twice the smaller share of resamples on either side of zero, resamples counted
    with one added.
    """
    values_a, _ = _weighted(values_a, weights)
    values_b, weights = _weighted(values_b, weights)
    if values_a.shape != values_b.shape:
        raise InputError(
            f"paired systems have {len(values_a)} and {len(values_b)} utterances, expected the same"
            " ones"
        )
    change = values_b - values_a
    differences = _resampled_rates(change, weights, n_boot, seed)
    low, high = percentiles(differences, confidence)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (n_boot + 1))
    return PairedDifference(
        float(change.sum() / weights.sum()), float(low), float(high), p_value, len(change)
    )


def cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """Sums (C,) of values (N,) by cluster label (N,), clusters in the order in which they first
    occur.

    Sums of values and of weights, given to `bootstrap_interval` or `paired_bootstrap`, make it
    resample clusters.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(clusters) or not len(values):
        raise InputError(
            f"{len(values)} values in {len(clusters)} cluster labels, expected as many, not none"
        )
    place: dict[str, int] = {}
    index = [place.setdefault(label, len(place)) for label in clusters]
    return np.bincount(index, weights=values)


def sign_flip_test(changes: Sequence[float], n_flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test on changes (N,), b minus a (Fisher 1935).

    Without a difference between the systems every change could as well have the other sign: p is
    the share of sign patterns whose |sum| is at least that observed. All 2^N patterns where there
    are at most `n_flips`, else that many drawn ones with the observed one added. For the corpus WER
    give changes of error counts: its weights are the same.
    """
    changes, _ = _weighted(changes, None)
    changes = changes[changes != 0]  # a zero has no sign
    # Equal sums in another order of addition count as equal
    observed = abs(changes.sum()) * (1 - 1e-12)
    if 2 ** min(len(changes), 62) <= n_flips:
        patterns = np.arange(2 ** len(changes))[:, None] >> np.arange(len(changes)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ changes) >= observed))
    rng, hits, block = np.random.default_rng(seed), 0, max(1, 4_000_000 // len(changes))
    for start in range(0, n_flips, block):
        signs = (
            rng.integers(2, size=(min(block, n_flips - start), len(changes)), dtype=np.int8) * 2 - 1
        )
        hits += int((np.abs(signs @ changes) >= observed).sum())
    return (hits + 1) / (n_flips + 1)


def _weighted(values, weights) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != weights.shape or not len(values):
        raise InputError(
            f"bootstrap over shapes {values.shape} and {weights.shape}, expected equal lists, not"
            " empty"
        )
    if not (np.isfinite(values).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise InputError("bootstrap values must be finite and weights positive")
    return values, weights


def _resampled_rates(values: np.ndarray, weights: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """sum(values) / sum(weights) of `n_boot` resamples of N utterances, in blocks of 16 MB."""
    rng = np.random.default_rng(seed)
    rates, block = [], max(1, 4_000_000 // len(values))
    for start in range(0, n_boot, block):
        drawn = rng.integers(
            len(values), size=(min(block, n_boot - start), len(values)), dtype=np.int32
        )
        rates.append(values[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    return np.concatenate(rates)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of successes / n (Wilson 1927): sound at 0 and n, unlike the bootstrap."""
    if n <= 0 or not 0 <= successes <= n:
        raise InputError(f"share of {successes} in {n}, expected 0 <= successes <= n and n > 0")
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(float(max(0.0, centre - half)), float(min(1.0, centre + half)))


CLUSTER = (  # key of the text that several rows speak; a row without it is a separate text
    "text_id"
)

# metric: key of the value, key of the weight (None: every utterance weighs the same), value divided
# by its weight first
COMPARED = {
    "corpus_wer": ("errors", "words", False),
    "mean_utterance_wer": ("errors", "words", True),
    "public_corpus_wer": ("public_errors", "public_words", False),
    "public_mean_utterance_wer": ("public_errors", "public_words", True),
    "speaker_similarity": ("similarity", None, False),
    "similarity_to_prompt": ("similarity_to_prompt", None, False),
    "similarity_to_resynthesized_prompt": ("similarity_to_resynthesized_prompt", None, False),
    "similarity_to_original": ("similarity_to_original", None, False),
    "emotion_similarity": ("emotion_similarity", None, False),
    "quality": ("quality", None, False),
    "pesq_wb": ("pesq_wb", None, False),
    "pesq_nb": ("pesq_nb", None, False),
    "stoi": ("stoi", None, False),
}


def compare_systems(
    rows_a: Sequence[Mapping],
    rows_b: Sequence[Mapping],
    seed: int = 0,
    names: tuple[str, str] = ("a", "b"),
    compared: Mapping[str, tuple[str, str | None, bool]] = COMPARED,
) -> dict[str, float]:
    """System b minus system a over the same utterance ids, for each metric of `compared` that both
    have.

    METRIC_a, METRIC_b; METRIC_difference with _low and _high (95 %, paired bootstrap over texts,
    Koehn 2004), _p (of that bootstrap), _sign_flip_p (paired permutation test), _n (utterances) and
    _texts (what was resampled). names: of the two systems, for messages. Raises InputError when the
    ids differ, an id occurs twice, or one id has reference texts of different lengths.
    """
    by_id_a, by_id_b = (
        _by_id(rows, name) for rows, name in zip((rows_a, rows_b), names, strict=True)
    )
    for here, there, (name, other) in ((by_id_a, by_id_b, names), (by_id_b, by_id_a, names[::-1])):
        if missing := [id_ for id_ in here if id_ not in there]:
            raise InputError(
                f"utterance {missing[0]!r} is scored in only one of the two systems ({name}, not"
                f" {other}), expected the same ids"
            )
    pairs = [(by_id_a[id_], by_id_b[id_]) for id_ in by_id_a]
    result: dict[str, float] = {}
    for metric, (key, weight, as_rate) in compared.items():
        both = [(a, b) for a, b in pairs if a.get(key) is not None and b.get(key) is not None]
        if both:
            result |= _compared(metric, both, key, weight, as_rate, seed)
    return result


def _compared(
    metric: str, pairs: list, key: str, weight: str | None, as_rate: bool, seed: int
) -> dict[str, float]:
    for row in itertools.chain.from_iterable(pairs):
        for name in (key, *([weight] if weight else [])):
            check_value(f"utterance {row['id']!r}: {name}", row.get(name), float)
    a, b = (np.array([pair[side][key] for pair in pairs], dtype=np.float64) for side in (0, 1))
    weights = np.ones(len(pairs))
    if weight is not None:
        weights = np.array([row[weight] for row, _ in pairs], dtype=np.float64)
        for first, second in pairs:
            if first[weight] != second[weight]:
                raise InputError(
                    f"utterance {first['id']!r} has {first[weight]} reference {weight} in one"
                    f" system and {second[weight]} in the other, expected the same text"
                )
    if as_rate:
        a, b, weights = a / weights, b / weights, np.ones(len(pairs))
    texts = [row.get(CLUSTER, row["id"]) for row, _ in pairs]
    a, b, weights = (cluster_sums(values, texts) for values in (a, b, weights))
    change = paired_bootstrap(a, b, weights, seed=seed)
    values = {
        f"{metric}_a": float(a.sum() / weights.sum()),
        f"{metric}_b": float(b.sum() / weights.sum()),
        f"{metric}_difference": change.difference,
        f"{metric}_difference_low": change.low,
        f"{metric}_difference_high": change.high,
        f"{metric}_difference_p": change.p_value,
        f"{metric}_difference_sign_flip_p": sign_flip_test(b - a, seed=seed),
        f"{metric}_difference_n": len(pairs),
    }
    return values | {f"{metric}_difference_texts": change.n}


def _by_id(rows: Sequence[Mapping], name: str) -> dict[str, Mapping]:
    by_id: dict[str, Mapping] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("id"), str):
            raise InputError(
                f"{name}: row {number}: `id` is {row.get('id')!r}, expected the id of an utterance"
            )
        if row["id"] in by_id:
            raise InputError(
                f"{name}: row {number}: utterance {row['id']!r} is there twice, expected one row"
                " an id"
            )
        by_id[row["id"]] = row
    if not by_id:
        raise InputError(f"{name}: no scored utterances, expected at least one")
    return by_id
