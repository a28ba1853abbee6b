"""Averages of scored utterances with their intervals, recomputed from the rows alone: no models, no
files.

Several seeds of one text are no independent utterances: where rows name a `text_id`, texts are
resampled, not rows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from llasa_core import intervals
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
    **{
        key: key
        for key in ("similarity_to_prompt", "similarity_to_original", "quality", *RESYNTHESIS)
    },
}

# metric: key that a row must have, and whether it is a hit
SHARES = {
    "nearest_speaker_share": (
        "nearest_speaker",
        lambda row: row["nearest_speaker"] == row["speaker"],
    ),
    "never_ended_share": ("ended", lambda row: not row["ended"]),
    "ended_at_once_share": ("ended", lambda row: row["seconds"] < ENDED_AT_ONCE_SECONDS),
    "sampled_again_share": ("sampled_again", lambda row: row["sampled_again"]),
}


def summarise(rows: Sequence[Mapping], seed: int = 0) -> dict[str, float]:
    """Flat metrics of scored rows: NAME, NAME_low, NAME_high (95 %) and NAME_n; a metric without
    rows is left out.

    corpus_wer, corpus_wer_spoken_digits, mean_utterance_wer, corpus_cer, speaker_similarity,
    similarity_to_prompt, similarity_to_original, quality, pesq_wb, pesq_nb, stoi: percentile
    bootstrap over utterances.
    nearest_speaker_share, never_ended_share, ended_at_once_share, sampled_again_share (the guards
    rejected the first sample): `share_interval`. Where rows name a `text_id`, the bootstrap
    resamples texts with all their seeds, and NAME_texts is given with NAME_n. Where rows name
    several speakers, NAME_by_speaker_low and _high resample speakers with all that they say: what
    another choice of voices would have given. Also utterances, speakers and
    texts (where they are named), seconds (of audio), pesq_wb_unscored, pesq_nb_unscored and
    stoi_unscored. Raises InputError when there are no rows.
    """
    if not rows:
        raise InputError("no scored utterances, expected at least one")
    named = any(CLUSTER in row for row in rows)
    summary: dict[str, float] = {"utterances": len(rows)}
    summary["seconds"] = round(sum(row["seconds"] for row in rows), DIGITS)
    if named:
        summary["texts"] = len(set(texts_of(rows)))
    if (speakers := speakers_of(rows)) is not None:
        summary["speakers"] = len(set(speakers))
    for name, counted, values, weights in (*_error_rates(rows), *_means(rows), *_shares(rows)):
        if name in SHARES:
            interval = share_interval(values, counted, seed)
        else:
            interval = text_interval(values, counted, weights, seed)
        summary[name] = float(np.sum(values) / np.sum(weights))
        summary |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        if (speakers := speakers_of(counted)) is not None:
            low, high = cluster_interval(values, speakers, weights, seed)
            summary |= {f"{name}_by_speaker_low": low, f"{name}_by_speaker_high": high}
        summary[f"{name}_n"] = len(counted)
        if named:
            summary[f"{name}_texts"] = len(set(texts_of(counted)))
    for name in RESYNTHESIS:
        if any(name in row for row in rows):
            summary[f"{name}_unscored"] = sum(name in row and row[name] is None for row in rows)
    return summary


def by_speaker(rows: Sequence[Mapping], seed: int = 0) -> dict[str, dict[str, float]]:
    """{speaker: `summarise` of what it says}, sorted by speaker."""
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(row["speaker"], []).append(row)
    return {name: summarise(group, seed) for name, group in sorted(groups.items())}


# name, the rows that it is over, and of each its value and weight: the ratio of sums is the metric
Metric = tuple[str, Sequence[Mapping], Sequence[float], Sequence[float]]


def _error_rates(rows: Sequence[Mapping]) -> Iterator[Metric]:
    for name, (errors_key, words_key) in ERRORS.items():
        if not (counted := [row for row in rows if errors_key in row]):
            continue
        errors, words = ([row[key] for row in counted] for key in (errors_key, words_key))
        yield name, counted, errors, words
        if name == "corpus_wer":
            own = np.asarray(errors) / np.asarray(words)
            yield "mean_utterance_wer", counted, own, np.ones(len(own))


def _means(rows: Sequence[Mapping]) -> Iterator[Metric]:
    for name, key in MEANS.items():
        if counted := [row for row in rows if row.get(key) is not None]:
            yield name, counted, [row[key] for row in counted], np.ones(len(counted))


def _shares(rows: Sequence[Mapping]) -> Iterator[Metric]:
    for name, (key, outcome) in SHARES.items():
        if counted := [row for row in rows if key in row]:
            yield name, counted, [float(outcome(row)) for row in counted], np.ones(len(counted))


def texts_of(rows: Sequence[Mapping]) -> list:
    """The text that each row speaks: its `text_id`; a row without one is its own text."""
    return [row.get(CLUSTER, number) for number, row in enumerate(rows)]


def speakers_of(rows: Sequence[Mapping]) -> list[str] | None:
    """The speaker of each row; None where one is not named, or all are the same."""
    speakers = [row.get("speaker") for row in rows]
    return speakers if all(speakers) and len(set(speakers)) > 1 else None


def share_interval(
    hits: Sequence[bool], rows: Sequence[Mapping], seed: int = 0
) -> intervals.Interval:
    """Interval of the share of hits: Wilson where every row speaks a different text, else the
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
    """`cluster_interval` over the texts that rows speak (`texts_of`)."""
    weights = np.ones(len(rows)) if weights is None else weights
    return cluster_interval(values, texts_of(rows), weights, seed)


def cluster_interval(
    values: Sequence[float], clusters: Sequence, weights: Sequence[float], seed: int = 0
) -> intervals.Interval:
    """`intervals.bootstrap_interval` of values (N,), whole clusters (N,) resampled."""
    return intervals.bootstrap_interval(
        intervals.cluster_sums(values, clusters),
        intervals.cluster_sums(weights, clusters),
        seed=seed,
    )
