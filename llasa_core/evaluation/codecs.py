"""Table 1 of the paper for codecs that run here: the same utterances through each, the same judges,
one row a codec.

What cannot run (weights out of reach, a package missing) is a separate row with the reason, not a
blank.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from llasa_core import intervals
from llasa_core.codecs import load_codec
from llasa_core.codecs.classical import Metered
from llasa_core.codecs.interface import Codec
from llasa_core.codecs.roundtrip import resynthesize
from llasa_core.errors import InputError
from llasa_core.evaluation.scoring import SpeakerReferences, evaluate_manifest
from llasa_core.judges import Judges


def available(names: Sequence[str]) -> tuple[dict[str, Codec], dict[str, str]]:
    """({name: codec}, {name: why it does not run}); a folder is named by its last part. InputError
    for a name twice.
    """
    codecs, missing = {}, {}
    for name in names:
        short = Path(name).name
        if short in codecs | missing:
            raise InputError(f"codecs: duplicate codec name {short!r}")
        try:
            codecs[short] = load_codec(name)
        except InputError as error:
            missing[short] = " ".join(str(error).split())
    return codecs, missing


def score_codec(
    codec: Codec,
    manifest: str | Path,
    out: str | Path,
    judges: Judges,
    references: SpeakerReferences,
    limit: int = 0,
    seed: int = 0,
) -> tuple[list[dict], dict[str, float]]:
    """Round trip and scores of one codec: rows and summary as of `evaluate_manifest`, with the
    bits.

    A row has also `bits`; the summary bits_per_second with its interval over utterances and n.
    Waves are written below `out`/wavs.
    """
    metered = Metered(codec)
    pair = resynthesize(manifest, out, metered, limit)
    rows, summary = evaluate_manifest(
        pair.resynthesis,
        out,
        judges,
        references=references,
        reference_audio=pair.originals,
        seed=seed,
    )
    rows = [row | {"bits": bits} for row, bits in zip(_placeless(rows), metered.bits, strict=True)]
    low, high = intervals.bootstrap_interval(metered.bits, metered.seconds, seed=seed)
    rate = {"bits_per_second": sum(metered.bits) / sum(metered.seconds), "bits_per_second_low": low}
    return rows, summary | rate | {"bits_per_second_high": high, "bits_per_second_n": len(rows)}


def score_originals(
    manifest: str | Path,
    out: str | Path,
    judges: Judges,
    references: SpeakerReferences,
    seed: int = 0,
) -> tuple[list[dict], dict[str, float]]:
    """The originals by the same judges: rows and summary, without bits, PESQ and STOI."""
    rows, summary = evaluate_manifest(manifest, out, judges, references, seed=seed)
    return _placeless(rows), summary


def _placeless(rows: Sequence[dict]) -> list[dict]:
    """Rows without the file of the wave, which says where a corpus lies on one machine."""
    return [{key: value for key, value in row.items() if key != "audio"} for row in rows]


def measured(summaries: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Metrics with an interval that any codec has, in order of appearance."""
    names = [name for summary in summaries.values() for name in summary if f"{name}_low" in summary]
    return list(dict.fromkeys(names))


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with each system's rate after its name, for a figure; recordings have none."""
    rates = table.get("bits_per_second", pd.Series(math.nan, table.index))
    names = [
        f"{name}, {rate:,.0f} bit/s" if math.isfinite(rate) else name
        for name, rate in zip(table["system"], rates, strict=True)
    ]
    return table.assign(system=names)


def table(summaries: Mapping[str, Mapping[str, float]], missing: Mapping[str, str]) -> pd.DataFrame:
    """A row a system, `system` first, then numbers; those that did not run have only not_run."""
    rows = [{"system": name, **summary} for name, summary in summaries.items()]
    return pd.DataFrame(
        [*rows, *({"system": name, "not_run": reason} for name, reason in missing.items())]
    )
