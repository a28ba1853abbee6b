"""Two systems on the same utterances: paired differences with intervals and two tests, texts as clusters.

Several seeds of one text share its difficulty: where rows name a `text_id`, texts are resampled and have their signs
flipped as a whole, with all their seeds. Ids that differ are an error, never a smaller comparison.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from llasa_core import metrics
from llasa_core.errors import InputError

CLUSTER = "text_id"  # key of the text that several rows speak; a row without it is a text of its own
# metric: key of the value, key of the weight (None: every utterance weighs the same), value divided by its weight first
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
    rows_a: Sequence[Mapping], rows_b: Sequence[Mapping], seed: int = 0, names: tuple[str, str] = ("a", "b")
) -> dict[str, float]:
    """System b minus system a over the same utterance ids, for each metric of `COMPARED` that both have.

    METRIC_a, METRIC_b; METRIC_difference with _low and _high (95 %, paired bootstrap over texts, Koehn 2004), _p (of
    that bootstrap), _sign_flip_p (paired permutation test), _n (utterances) and _texts (what was resampled).
    names: of the two systems, for messages. Raises InputError when the ids differ, an id occurs twice, or one id has
    reference texts of different lengths.
    """
    by_id_a, by_id_b = (_by_id(rows, name) for rows, name in zip((rows_a, rows_b), names, strict=True))
    for here, there, (name, other) in ((by_id_a, by_id_b, names), (by_id_b, by_id_a, names[::-1])):
        if missing := [id_ for id_ in here if id_ not in there]:
            raise InputError(
                f"utterance {missing[0]!r} is scored in only one of the two systems ({name}, not {other}), "
                "expected the same ids"
            )
    pairs = [(by_id_a[id_], by_id_b[id_]) for id_ in by_id_a]
    result: dict[str, float] = {}
    for metric, (key, weight, as_rate) in COMPARED.items():
        both = [(a, b) for a, b in pairs if a.get(key) is not None and b.get(key) is not None]
        if both:
            result |= _compared(metric, both, key, weight, as_rate, seed)
    return result


def _compared(metric: str, pairs: list, key: str, weight: str | None, as_rate: bool, seed: int) -> dict[str, float]:
    a, b = (np.array([pair[side][key] for pair in pairs], dtype=np.float64) for side in (0, 1))
    weights = np.ones(len(pairs))
    if weight is not None:
        weights = np.array([row[weight] for row, _ in pairs], dtype=np.float64)
        for first, second in pairs:
            if first[weight] != second[weight]:
                raise InputError(
                    f"utterance {first['id']!r} has {first[weight]} reference {weight} in one system and "
                    f"{second[weight]} in the other, expected the same text"
                )
    if as_rate:
        a, b, weights = a / weights, b / weights, np.ones(len(pairs))
    texts = [row.get(CLUSTER, row["id"]) for row, _ in pairs]
    a, b, weights = (metrics.cluster_sums(values, texts) for values in (a, b, weights))
    change = metrics.paired_bootstrap(a, b, weights, seed=seed)
    values = {
        f"{metric}_a": float(a.sum() / weights.sum()),
        f"{metric}_b": float(b.sum() / weights.sum()),
        f"{metric}_difference": change.difference,
        f"{metric}_difference_low": change.low,
        f"{metric}_difference_high": change.high,
        f"{metric}_difference_p": change.p_value,
        f"{metric}_difference_sign_flip_p": metrics.sign_flip_test(b - a, seed=seed),
        f"{metric}_difference_n": len(pairs),
    }
    return values | {f"{metric}_difference_texts": change.n}


def _by_id(rows: Sequence[Mapping], name: str) -> dict[str, Mapping]:
    by_id: dict[str, Mapping] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("id"), str):
            raise InputError(f"{name}: row {number}: `id` is {row.get('id')!r}, expected the id of an utterance")
        if row["id"] in by_id:
            raise InputError(f"{name}: row {number}: utterance {row['id']!r} is there twice, expected one row an id")
        by_id[row["id"]] = row
    if not by_id:
        raise InputError(f"{name}: no scored utterances, expected at least one")
    return by_id
