"""Error rates, similarities, intervals and paired tests: numpy, jiwer and Whisper's text
normaliser, no models.

Counts a single utterance first (errors, words), then rates over many: two WERs, each under its own
name. An empty reference is an InputError, never a rate of zero. Nothing here touches a global
random state.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from llasa_core.errors import InputError
from llasa_core.intervals import Interval, bootstrap_interval

# Every character is a word, as in Whisper's paper
SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})


@lru_cache(maxsize=8)
def _normaliser(language: str):
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    # Marks are letters in Thai, Burmese, Khmer and in the scripts of India: keep them.
    return BasicTextNormalizer(split_letters=language in SPACELESS, preserve_marks=True)


def normalise(text: str, language: str = "en", spoken_digits: bool = False) -> str:
    """Text as it is compared: Whisper's English normaliser for `en`, else its basic one (Radford
    2022, appendix C).

    Both sides of a comparison go through it, so "seven" and "7" agree, and "one hundred and two"
    and "102". It joins digits that are spelled in a row, but not digits written apart: "five five
    five one two three four" becomes "5551234", "555-1234" "555 1234" and "7-3-1-9" even "7 3 one
    9", which disagree although they say the same. spoken_digits (English only) then writes every
    number as single digits, "5 5 5 1 2 3 4": right for texts with telephone numbers, codes and
    times; words of a number are then counted by digit, so name such a rate apart. Before that an
    ellipsis is a space (the English normaliser makes a word of "…") and a curly apostrophe within a
    word a straight one.
    """
    text = re.sub(r"(?<=\w)[’‘ʼ＇](?=\w)", "'", re.sub(r"…|\.{2,}", " ", text))
    normalised = _normaliser(language)(text).strip()
    if spoken_digits and language == "en":
        normalised = " ".join(_digits_apart(word) for word in normalised.split())
    return normalised


def _digits_apart(word: str) -> str:
    """`7.30` -> `7 3 0`, `$21` -> `$ 2 1`, `one.5` -> `1 5`; `3rd` stays whole."""
    word = re.sub(r"^one(?=$|\.\d)", "1", word)
    return (
        re.sub(r"(?<=.)(?=.)", " ", word.replace(".", ""))
        if re.fullmatch(r"[$€£¢]?[\d.]*\d%?", word)
        else word
    )


def word_errors(
    reference: str, hypothesis: str, language: str = "en", spoken_digits: bool = False
) -> tuple[int, int]:
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

    A space is a character, except in languages written without spaces. Raises InputError on an
    empty reference.
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
        raise InputError(
            f"reference text {text!r} is empty after normalisation, expected at least one word"
        )
    return normalised


def bits_per_second(rows: Sequence[Mapping]) -> tuple[float, Interval]:
    """Held-out speech in bits a second of audio, with a bootstrap interval over its rows."""
    bits = np.array([row["nats"] for row in rows], np.float64) / np.log(2)
    seconds = np.array([row["seconds"] for row in rows], np.float64)
    return float(bits.sum() / seconds.sum()), bootstrap_interval(bits, seconds)


def speaker_similarity(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine similarities (N,) of rows (N, D) with references (N, D) or (D,)."""
    embeddings, references = np.asarray(embeddings, np.float64), np.asarray(references, np.float64)
    scale = np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(references, axis=-1)
    return (embeddings * references).sum(axis=-1) / np.maximum(scale, np.finfo(np.float64).tiny)


def speaker_centroids(embeddings: np.ndarray, speakers: Sequence[str]) -> dict[str, np.ndarray]:
    """Unit-length mean (D,) of each speaker's embeddings (N, D), sorted by speaker."""
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(speakers)
    if len(embeddings) != len(labels) or not len(labels):
        raise InputError(
            f"{len(embeddings)} embeddings for {len(labels)} speaker labels, expected as many, not"
            " none"
        )
    means = {str(name): embeddings[labels == name].mean(axis=0) for name in np.unique(labels)}
    return {name: mean / np.linalg.norm(mean) for name, mean in means.items()}


def nearest_speaker(embedding: np.ndarray, centroids: dict[str, np.ndarray]) -> str:
    """The speaker whose centroid (D,) has the highest cosine similarity with an embedding (D,)."""
    names = list(centroids)
    similarities = speaker_similarity(np.stack([centroids[name] for name in names]), embedding)
    return names[int(np.argmax(similarities))]
