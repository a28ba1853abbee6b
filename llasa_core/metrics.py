"""Error rates, similarities, intervals and paired tests: numpy, jiwer and Whisper's text normaliser, no models.

Counts a single utterance first (errors, words), then rates over many: two WERs, each under its own name.
An empty reference is an InputError, never a rate of zero. Nothing here touches a global random state.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from llasa_core.errors import InputError

SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})  # every character is a word, as in Whisper's paper


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """System b minus system a on the same utterances, with its interval, two-sided p-value and number of utterances."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


@lru_cache(maxsize=8)
def _normaliser(language: str):
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    # Marks are letters in Thai, Burmese, Khmer and in the scripts of India: keep them.
    return BasicTextNormalizer(split_letters=language in SPACELESS, preserve_marks=True)


def normalise(text: str, language: str = "en", spoken_digits: bool = False) -> str:
    """Text as it is compared: Whisper's English normaliser for `en`, else its basic one (Radford 2022, appendix C).

    Both sides of a comparison go through it, so "seven" and "7" agree, and "one hundred and two" and "102". It joins
    digits that are spelled in a row, but not digits written apart: "five five five one two three four" becomes
    "5551234", "555-1234" "555 1234" and "7-3-1-9" even "7 3 one 9", which disagree although they say the same.
    spoken_digits (English only) then writes every number as single digits, "5 5 5 1 2 3 4": right for texts with
    telephone numbers, codes and times; words of a number are then counted by digit, so name such a rate apart.
    """
    normalised = _normaliser(language)(text).strip()
    if spoken_digits and language == "en":
        normalised = " ".join(_digits_apart(word) for word in normalised.split())
    return normalised


def _digits_apart(word: str) -> str:
    """`7.30` -> `7 3 0`, `$21` -> `$ 2 1`, `one.5` -> `1 5`; words with letters in them (`3rd`) stay whole."""
    word = re.sub(r"^one(?=$|\.\d)", "1", word)
    return re.sub(r"(?<=.)(?=.)", " ", word.replace(".", "")) if re.fullmatch(r"[$€£¢]?[\d.]*\d%?", word) else word


def word_errors(reference: str, hypothesis: str, language: str = "en", spoken_digits: bool = False) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words of the reference) after normalisation.

    Raises InputError when nothing is left of the reference.
    """
    import jiwer

    said = _reference(reference, language, spoken_digits)
    result = jiwer.process_words(said, normalise(hypothesis, language, spoken_digits))
    errors = result.substitutions + result.deletions + result.insertions
    return errors, result.hits + result.substitutions + result.deletions


def character_errors(reference: str, hypothesis: str, language: str = "en") -> tuple[int, int]:
    """(edit distance, characters of the reference) after normalisation, like jiwer.cer.

    A space is a character, except in languages written without spaces. Raises InputError on an empty reference.
    """
    import jiwer

    said, heard = _reference(reference, language), normalise(hypothesis, language)
    if language in SPACELESS:
        said, heard = said.replace(" ", ""), heard.replace(" ", "")
    result = jiwer.process_characters(said, heard)
    errors = result.substitutions + result.deletions + result.insertions
    return errors, result.hits + result.substitutions + result.deletions


def _reference(text: str, language: str, spoken_digits: bool = False) -> str:
    normalised = normalise(text, language, spoken_digits)
    if not normalised:
        raise InputError(f"reference text {text!r} is empty after normalisation, expected at least one word")
    return normalised


def corpus_wer(errors: Sequence[int], words: Sequence[int]) -> float:
    """All errors over all words: the WER of ASR papers, in which long utterances weigh more. 0.05 is 5 %."""
    errors, words = _counts(errors, words)
    return float(errors.sum() / words.sum())


def mean_utterance_wer(errors: Sequence[int], words: Sequence[int]) -> float:
    """Mean of the utterances' own WERs: the number of Seed-TTS-Eval, in which every utterance weighs the same."""
    errors, words = _counts(errors, words)
    return float(np.mean(errors / words))


def corpus_cer(errors: Sequence[int], characters: Sequence[int]) -> float:
    """All character errors over all characters."""
    return corpus_wer(errors, characters)


def _counts(errors, words) -> tuple[np.ndarray, np.ndarray]:
    errors, words = np.asarray(errors, dtype=np.float64), np.asarray(words, dtype=np.float64)
    if errors.shape != words.shape or errors.ndim != 1 or not len(errors):
        raise InputError(
            f"error rate over shapes {errors.shape} and {words.shape}, expected two equal lists, not empty"
        )
    if (words <= 0).any():
        raise InputError(f"utterance {int(np.argmax(words <= 0))} has no words in its reference, expected at least one")
    return errors, words


def bootstrap_interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    n_boot: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over utterances (Bisani and Ney 2004) of mean(values), or of sum(values) / sum(weights).

    values, weights: (N,), e.g. errors and words for the corpus WER. Raises InputError when N is 0.
    """
    values, weights = _weighted(values, weights)
    rates = _resampled_rates(values, weights, n_boot, seed)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def bits_per_second(rows: Sequence[Mapping]) -> tuple[float, Interval]:
    """Held-out speech in bits a second of audio, with its bootstrap interval over rows of `nats` and `seconds`."""
    bits = np.array([row["nats"] for row in rows], np.float64) / np.log(2)
    seconds = np.array([row["seconds"] for row in rows], np.float64)
    return float(bits.sum() / seconds.sum()), bootstrap_interval(bits, seconds)


def paired_bootstrap(
    values_a: Sequence[float],
    values_b: Sequence[float],
    weights: Sequence[float] | None = None,
    n_boot: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap (Koehn 2004) of b - a: both systems are scored on the same resampled utterances.

    values_a, values_b: (N,) in the same order of utterances; weights as in `bootstrap_interval`.
    The p-value is twice the smaller share of resamples on either side of zero, resamples counted with one added.
    """
    values_a, _ = _weighted(values_a, weights)
    values_b, weights = _weighted(values_b, weights)
    if values_a.shape != values_b.shape:
        raise InputError(f"paired systems have {len(values_a)} and {len(values_b)} utterances, expected the same ones")
    change = values_b - values_a
    differences = _resampled_rates(change, weights, n_boot, seed)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (n_boot + 1))
    return PairedDifference(float(change.sum() / weights.sum()), float(low), float(high), p_value, len(change))


def cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """Sums (C,) of values (N,) by cluster label (N,), clusters in the order in which they first occur.

    Sums of values and of weights, given to `bootstrap_interval` or `paired_bootstrap`, make it resample clusters.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(clusters) or not len(values):
        raise InputError(f"{len(values)} values in {len(clusters)} cluster labels, expected as many, not none")
    place: dict[str, int] = {}
    index = [place.setdefault(label, len(place)) for label in clusters]
    return np.bincount(index, weights=values)


def sign_flip_test(changes: Sequence[float], n_flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test on changes (N,), b minus a (Fisher 1935).

    Without a difference between the systems every change could as well have the other sign: p is the share of sign
    patterns whose |sum| is at least that observed. All 2^N patterns where there are at most `n_flips`, else that many
    drawn ones with the observed one added. For the corpus WER give changes of error counts: its weights are the same.
    """
    changes, _ = _weighted(changes, None)
    changes = changes[changes != 0]  # a zero has no sign
    observed = abs(changes.sum()) * (1 - 1e-12)  # equal sums in another order of addition count as equal
    if 2 ** min(len(changes), 62) <= n_flips:
        patterns = np.arange(2 ** len(changes))[:, None] >> np.arange(len(changes)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ changes) >= observed))
    rng, hits, block = np.random.default_rng(seed), 0, max(1, 4_000_000 // len(changes))
    for start in range(0, n_flips, block):
        signs = rng.integers(2, size=(min(block, n_flips - start), len(changes)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ changes) >= observed).sum())
    return (hits + 1) / (n_flips + 1)


def _weighted(values, weights) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != weights.shape or not len(values):
        raise InputError(f"bootstrap over shapes {values.shape} and {weights.shape}, expected equal lists, not empty")
    if not (np.isfinite(values).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise InputError("bootstrap values must be finite and weights positive")
    return values, weights


def _resampled_rates(values: np.ndarray, weights: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """sum(values) / sum(weights) over each of `n_boot` resamples of the N utterances, computed in blocks of 16 MB."""
    rng = np.random.default_rng(seed)
    rates, block = [], max(1, 4_000_000 // len(values))
    for start in range(0, n_boot, block):
        drawn = rng.integers(len(values), size=(min(block, n_boot - start), len(values)), dtype=np.int32)
        rates.append(values[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    return np.concatenate(rates)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share successes / n (Wilson 1927): sound at 0 and at n, where the bootstrap is not."""
    if n <= 0 or not 0 <= successes <= n:
        raise InputError(f"share of {successes} in {n}, expected 0 <= successes <= n and n > 0")
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def speaker_similarity(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine similarities (N,) of rows (N, D) with the rows (N, D), or the one vector (D,), of references."""
    embeddings, references = np.asarray(embeddings, np.float64), np.asarray(references, np.float64)
    scale = np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(references, axis=-1)
    return (embeddings * references).sum(axis=-1) / np.maximum(scale, np.finfo(np.float64).tiny)


def speaker_centroids(embeddings: np.ndarray, speakers: Sequence[str]) -> dict[str, np.ndarray]:
    """Unit-length mean (D,) of each speaker's rows of embeddings (N, D), in the order of the speakers' names."""
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(speakers)
    if len(embeddings) != len(labels) or not len(labels):
        raise InputError(f"{len(embeddings)} embeddings for {len(labels)} speaker labels, expected as many, not none")
    means = {str(name): embeddings[labels == name].mean(axis=0) for name in np.unique(labels)}
    return {name: mean / np.linalg.norm(mean) for name, mean in means.items()}


def nearest_speaker(embedding: np.ndarray, centroids: dict[str, np.ndarray]) -> str:
    """The speaker whose centroid (D,) has the highest cosine similarity with an embedding (D,)."""
    names = list(centroids)
    similarities = speaker_similarity(np.stack([centroids[name] for name in names]), embedding)
    return names[int(np.argmax(similarities))]


def nearest_speaker_share(
    embeddings: np.ndarray, speakers: Sequence[str], centroids: dict[str, np.ndarray]
) -> tuple[int, int]:
    """(utterances nearer to their own speaker's centroid than to any other, utterances); give them to wilson_interval.

    Raises InputError when a speaker has no centroid.
    """
    missing = sorted(set(speakers) - set(centroids))
    if missing:
        raise InputError(f"speaker {missing[0]!r} has no centroid, expected one of {', '.join(sorted(centroids))}")
    hits = sum(nearest_speaker(row, centroids) == own for row, own in zip(embeddings, speakers, strict=True))
    return hits, len(speakers)
