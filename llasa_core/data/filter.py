"""Filters as public pipelines have them, on a codes dataset: each optional, what each leaves out
counted and listed.

The first filter that an utterance fails gives its reason. Codes are not looked at, so nothing is
encoded again. MOS and WER come from scores made before (`llasa evaluate`, utterances.jsonl): an
utterance without a score is left out as such.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llasa_core.data.dataset import (
    codec_of,
    finish,
    part_info,
    part_name,
    read_meta,
    read_part,
    write_table,
)
from llasa_core.errors import InputError, at_least, check_fields
from llasa_core.files import read_rows


@dataclass(frozen=True)
class Filters:
    """Limits for an utterance to be kept; None: no limit. Reasons are named as the fields."""

    min_seconds: float | None = None
    max_seconds: float | None = None
    min_characters_per_second: float | None = None
    max_characters_per_second: float | None = None
    languages: tuple[str, ...] | None = None
    min_mos: float | None = None  # predicted quality, 1 to 5
    max_wer: float | None = None  # word errors over words of the text

    def __post_init__(self):
        numbers = [name for name in asdict(self) if name != "languages"]
        check_fields(self, "filter", **dict.fromkeys(numbers, at_least(0)))
        for name in ("seconds", "characters_per_second"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise InputError(f"filter: min_{name} {low:g} is above max_{name} {high:g}")
        if all(value is None for value in asdict(self).values()):
            raise InputError("filter: no filter is set, expected at least one")


def filter_codes(
    codes: str | Path,
    out: str | Path,
    filters: Filters,
    scores: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """What passes the filters, as the codes dataset `out`; part p comes from part p. Returns the
    content of meta.json.

    scores: JSON lines with id and `quality` (for min_mos) or `errors` and `words` (for max_wer).
    A stopped filter resumes. InputError where these are missing or malformed, nothing
    is left, or `out` is of something else.
    """
    meta, out = read_meta(codes), Path(out)
    needed = [key for key in ("min_mos", "max_wer") if getattr(filters, key) is not None]
    if needed and scores is None:
        raise InputError(
            f"filter: {needed[0]} needs --scores, the utterances.jsonl of an evaluation"
        )
    table = _read_scores(scores, needed) if needed else {}
    made_from = json.dumps([asdict(filters), sorted(table.items())], sort_keys=True)
    settings = codec_of(meta) | {name: meta[name] for name in ("memmap_width",) if name in meta}
    out.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(meta["shards"]):
        path = out / part_name(number)
        source = hashlib.sha256(f"{shard['sha256']} {made_from}".encode()).hexdigest()[:16]
        if path.exists():
            if part_info(path).get("source") != source:
                raise InputError(
                    f"{path}: made from another dataset or by other filters; choose another folder"
                )
        else:
            part = read_part(codes, shard, meta["codebook_size"])
            reasons = _reasons(part, filters, table)
            dropped = [(part["id"][int(at)].as_py(), reasons[at]) for at in np.flatnonzero(reasons)]
            kept = part.filter(pa.array(reasons == "")).combine_chunks()
            write_table(path, kept, {**settings, "source": source, "dropped": dropped})
        if progress:
            progress(shard["rows"])
    return finish(
        out, len(meta["shards"]), {**settings, "filters": json.loads(json.dumps(asdict(filters)))}
    )


def _reasons(part: pa.Table, filters: Filters, scores: dict[str, dict[str, float]]) -> np.ndarray:
    """Why each utterance is left out, "" where it is not."""
    seconds = part["seconds"].to_numpy().astype(np.float64)
    rate = pc.utf8_length(part["text"]).to_numpy() / np.maximum(seconds, 1e-9)
    reasons = np.full(len(part), "", object)

    def leave_out(failed: np.ndarray, reason: str) -> None:
        reasons[failed & (reasons == "")] = reason

    for name, values in (("seconds", seconds), ("characters_per_second", rate)):
        if (least := getattr(filters, f"min_{name}")) is not None:
            leave_out(values < least, f"min_{name}")
        if (most := getattr(filters, f"max_{name}")) is not None:
            leave_out(values > most, f"max_{name}")
    if filters.languages is not None:
        found = pc.is_in(part["language"], pa.array(list(filters.languages), pa.string()))
        leave_out(~found.to_numpy(zero_copy_only=False), "languages")
    if filters.min_mos is not None or filters.max_wer is not None:
        rows = [scores.get(id) for id in part["id"].to_pylist()]
        leave_out(np.array([row is None for row in rows], bool), "no_score")
        if filters.min_mos is not None:
            leave_out(
                np.array([row is not None and row["mos"] < filters.min_mos for row in rows], bool),
                "min_mos",
            )
        if filters.max_wer is not None:
            leave_out(
                np.array([row is not None and row["wer"] > filters.max_wer for row in rows], bool),
                "max_wer",
            )
    return reasons


def _read_scores(path: str | Path, needed: list[str]) -> dict[str, dict[str, float]]:
    """{id: {"mos", "wer"}}, of them what is needed."""
    found = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            one = {"mos": float(row["quality"])} if "min_mos" in needed else {}
            if "max_wer" in needed:
                one["wer"] = row["errors"] / row["words"]
            if not all(math.isfinite(value) for value in one.values()):
                raise ValueError
            found[row["id"]] = one
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            keys = "id, " + " and ".join(
                {"min_mos": "quality", "max_wer": "errors, words"}[key] for key in needed
            )
            raise InputError(
                f"{path}: row {number}: expected {keys} as numbers of a scored utterance"
            ) from None
    return found
