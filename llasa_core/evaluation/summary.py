"""Averages of scored utterances with their intervals, recomputed from the rows alone: no models, no
files.

Several seeds of one text are no independent utterances: where rows name a `text_id`, texts are
resampled, not rows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from llasa_core import intervals, metrics
from llasa_core.errors import InputError
from llasa_core.intervals import CLUSTER

ENDED_AT_ONCE_SECONDS = 0.2  # speech shorter than this is no attempt at a text

DIGITS = 6  # decimals kept of a score, the same in the rows and in what is computed from them


# metric: keys of a row's errors and words
ERRORS = {
    "corpus_wer": ("errors", "words"),
    "corpus_wer_spoken_digits": ("digit_errors", "digit_words"),
    "corpus_cer": ("character_errors", "characters"),
}

# null, and counted as unscored, where a wave has too little speech for the measure
RESYNTHESIS = ("pesq_wb", "pesq_nb", "stoi")

# metric: key of the value in a row
MEANS = {
    "speaker_similarity": "similarity",
    **{key: key for key in ("similarity_to_original", "quality", *RESYNTHESIS)},
}

# metric: key that a row must have, and whether it is a hit
SHARES = {
    "nearest_speaker_share": (
        "nearest_speaker",
        lambda row: row["nearest_speaker"] == row["speaker"],
    ),
    "never_ended_share": ("ended", lambda row: not row["ended"]),
    "ended_at_once_share": ("ended", lambda row: row["seconds"] < ENDED_AT_ONCE_SECONDS),
}


def summarise(rows: Sequence[Mapping], seed: int = 0) -> dict[str, float]:
    """Flat metrics of scored rows: NAME, NAME_low, NAME_high (95 %) and NAME_n; a metric without
    rows is left out.

    corpus_wer, corpus_wer_spoken_digits, mean_utterance_wer, corpus_cer, speaker_similarity,
    similarity_to_original, quality, pesq_wb, pesq_nb, stoi: percentile bootstrap over utterances.
    nearest_speaker_share, never_ended_share, ended_at_once_share: `share_interval`. Where rows name
    a `text_id`, the bootstrap resamples texts with all their seeds, and NAME_texts is given with
    NAME_n. Also utterances, texts (where they are named), seconds (of audio), pesq_wb_unscored,
    pesq_nb_unscored and stoi_unscored. Raises InputError when there are no rows.
    """
    if not rows:
        raise InputError("no scored utterances, expected at least one")
    named = any(CLUSTER in row for row in rows)
    summary: dict[str, float] = {"utterances": len(rows)}
    summary["seconds"] = round(sum(row["seconds"] for row in rows), DIGITS)
    if named:
        summary["texts"] = len(set(texts_of(rows)))
    for name, value, interval, counted in (
        *_error_rates(rows, seed),
        *_means(rows, seed),
        *_shares(rows, seed),
    ):
        summary |= {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        summary[f"{name}_n"] = len(counted)
        if named:
            summary[f"{name}_texts"] = len(set(texts_of(counted)))
    for name in RESYNTHESIS:
        if any(name in row for row in rows):
            summary[f"{name}_unscored"] = sum(name in row and row[name] is None for row in rows)
    return summary


Metric = tuple[str, float, intervals.Interval, Sequence[Mapping]]  # the rows that it is over last


def _error_rates(rows: Sequence[Mapping], seed: int) -> Iterator[Metric]:
    for name, (errors_key, words_key) in ERRORS.items():
        if not (counted := [row for row in rows if errors_key in row]):
            continue
        errors, words = ([row[key] for row in counted] for key in (errors_key, words_key))
        interval = text_interval(errors, counted, words, seed)
        yield name, metrics.corpus_wer(errors, words), interval, counted
        if name == "corpus_wer":
            interval = text_interval(np.asarray(errors) / np.asarray(words), counted, seed=seed)
            mean = metrics.mean_utterance_wer(errors, words)
            yield "mean_utterance_wer", mean, interval, counted


def _means(rows: Sequence[Mapping], seed: int) -> Iterator[Metric]:
    for name, key in MEANS.items():
        if counted := [row for row in rows if row.get(key) is not None]:
            values = [row[key] for row in counted]
            yield name, float(np.mean(values)), text_interval(values, counted, seed=seed), counted


def _shares(rows: Sequence[Mapping], seed: int) -> Iterator[Metric]:
    for name, (key, outcome) in SHARES.items():
        if counted := [row for row in rows if key in row]:
            hits = [outcome(row) for row in counted]
            yield name, sum(hits) / len(hits), share_interval(hits, counted, seed), counted


def texts_of(rows: Sequence[Mapping]) -> list:
    """The text that each row speaks: its `text_id`; a row without one is its own text."""
    return [row.get(CLUSTER, number) for number, row in enumerate(rows)]


def share_interval(
    hits: Sequence[bool], rows: Sequence[Mapping], seed: int = 0
) -> intervals.Interval:
    """Interval of the share of hits: Wilson where every row speaks a text of its own, else the
    bootstrap over texts.

    A bootstrap of no hits, or of hits alone, has no width: then Wilson with as many trials as there
    are texts, as if all seeds of a text came out alike.
    """
    hit, texts = sum(hits), len(set(texts_of(rows)))
    if texts == len(rows):
        return intervals.wilson_interval(hit, len(rows))
    if hit in (0, len(rows)):
        return intervals.wilson_interval(texts if hit else 0, texts)
    return text_interval([float(one) for one in hits], rows, seed=seed)


def text_interval(
    values: Sequence[float],
    rows: Sequence[Mapping],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> intervals.Interval:
    """`metrics.bootstrap_interval` over the texts that rows speak (`texts_of`)."""
    texts = texts_of(rows)
    weights = np.ones(len(texts)) if weights is None else weights
    return intervals.bootstrap_interval(
        intervals.cluster_sums(values, texts), intervals.cluster_sums(weights, texts), seed=seed
    )
