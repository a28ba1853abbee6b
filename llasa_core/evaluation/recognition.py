"""Speech recognition by the same model and trainer, the sides swapped: codes in, text out, and its
word errors.

Scores stand in the rows of `summary.summarise`. Nothing is chosen on the test set: decoding is
greedy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llasa_core import intervals
from llasa_core.errors import InputError
from llasa_core.evaluation.scoring import count_words
from llasa_core.manifest import evenly


def task_entries(codes: str | Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Entries of `codes` for TrainConfig: the dataset once for each task ("tts", "asr")."""
    unknown = set(tasks) - {"tts", "asr"}
    if unknown or not tasks:
        raise InputError(f"tasks {list(tasks)}, expected some of tts and asr")
    return [{"path": str(codes), "task": task} for task in tasks]


def recognise(
    synthesizer: Any,
    dataset: Any,
    limit: int = 0,
    block: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[dict]:
    """Transcribe utterances of a codes dataset: rows with id, speaker, language, text, hypothesis,
    seconds and errors.

    limit: at most so many, spread evenly over the dataset; 0 for all. progress: called with the
    number just done.
    """
    chosen = evenly(range(len(dataset)), limit)
    rows = []
    for start in range(0, len(chosen), block):
        members = [dataset[index] for index in chosen[start : start + block]]
        heard = synthesizer.transcribe_codes([row["codes"] for row in members])
        for row, hypothesis in zip(members, heard, strict=True):
            scored = {key: row[key] for key in ("id", "speaker", "language", "text")}
            scored["seconds"] = round(float(row["seconds"]), 4)
            count_words(scored, hypothesis)
            rows.append(scored)
        if progress:
            progress(len(members))
    return rows


def compare_losses(
    rows_a: Sequence[dict], rows_b: Sequence[dict], seed: int = 0
) -> dict[str, float]:
    """Paired bootstrap of model b minus a over `held_out.held_out_rows` of the same utterances, in
    bits a second.

    Keys bits_per_second_difference, and with _low, _high, _p and _n.
    """
    import math

    by_id_a, by_id_b = ({row["id"]: row for row in rows} for rows in (rows_a, rows_b))
    if by_id_a.keys() != by_id_b.keys():
        example = min(by_id_a.keys() ^ by_id_b.keys())
        raise InputError(
            f"utterance {example!r} is measured in only one of the two models, expected the"
            " same ids"
        )
    bits = [[by_id[id_]["nats"] / math.log(2) for id_ in by_id_a] for by_id in (by_id_a, by_id_b)]
    seconds = [by_id_a[id_]["seconds"] for id_ in by_id_a]
    change = intervals.paired_bootstrap(*bits, seconds, seed=seed)
    names = ("", "_low", "_high", "_p", "_n")
    return {
        f"bits_per_second_difference{end}": value for end, value in zip(names, change, strict=True)
    }
