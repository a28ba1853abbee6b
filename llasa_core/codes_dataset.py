"""The format of a codes dataset: parquet parts of (id, text, codes, speaker, language, seconds) and meta.json.

meta.json is written last: where it is, the dataset is whole. A part carries, in its own parquet metadata, the codec
and what it was made from, so that a stopped extraction knows what it has. No text tokenizer is involved.
"""

import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa_core.codes_reading import (
    SCHEMA,
    CodesDataset,
    brief,
    codec_of,
    joined,
    read_codes,
    read_meta,
    read_part,
    read_table,
    refuse_others,
    sha256,
)
from llasa_core.errors import InputError
from llasa_core.manifest import full_disk, publish

__all__ = [
    "SCHEMA",
    "CodesDataset",
    "codec_of",
    "finish",
    "read_codes",
    "read_meta",
    "read_part",
    "write_part",
    "write_table",
]

_INFO = b"llasa"  # key of a part's own facts in its parquet metadata


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def write_part(path: Path, rows: Sequence[dict], info: dict) -> None:
    """Write rows (dicts with SCHEMA's keys, codes as integer arrays (F,)) as one part, published by rename.

    `info` is JSON kept in the file: codec, codec_fingerprint, codebook_size, frame_rate, dropped ([[id, reason], ..]),
    source and audio (fingerprints of what it was made from); those not known are left out.
    """
    size = info["codebook_size"]
    if not 1 <= size <= 2**16:
        raise InputError(f"{path}: a codebook of {size} codes, expected at most 65536")
    for row in rows:
        codes = np.asarray(row["codes"])
        if len(codes) and not 0 <= codes.min() <= codes.max() < size:
            raise InputError(
                f"utterance {row['id']!r}: its codes go from {codes.min()} to {codes.max()}, expected 0..{size - 1}"
            )
    borders = np.cumsum([0, *(len(row["codes"]) for row in rows)])
    flat = np.concatenate([np.zeros(0, np.uint16), *(np.asarray(row["codes"]) for row in rows)]).astype(np.uint16)
    columns = {
        field.name: pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA if field.name != "codes"
    }
    columns["codes"] = code_lists(borders, flat)
    write_table(path, pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA), info)


def code_lists(borders: np.ndarray, codes: np.ndarray) -> pa.Array:
    """Codes uint16 (F,) between borders (N + 1,) as the column of a part; InputError for 2**31 codes or more."""
    if borders[-1] >= 2**31:
        raise InputError(f"a part of {borders[-1]} codes, expected fewer than 2**31; take fewer rows a part")
    return pa.ListArray.from_arrays(borders.astype(np.int32), codes)


def write_table(path: Path, table: pa.Table, info: dict) -> None:
    """Write a table of SCHEMA, its codes known to be inside the codebook, as one part; the rest as `write_part`."""
    counts = {"codes": len(joined(table["codes"]).values), "seconds": _seconds(table)}
    counts["speakers"] = dict(Counter(table["speaker"].to_pylist()))
    schema = SCHEMA.with_metadata({_INFO: json.dumps({**info, "counts": counts}, sort_keys=True).encode()})
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # The two bytes of a code apart compress to two bytes; whole, zstd needs two and a half and twice the time.
    split = {"codes.list.element": "BYTE_STREAM_SPLIT"}
    size = max(len(table), 1)
    settings = {"compression": "zstd", "use_dictionary": False, "row_group_size": size, "column_encoding": split}
    try:
        pq.write_table(table.cast(schema), temporary, **settings)
        os.replace(temporary, path)
    except FileNotFoundError:  # another worker on the same shard has finished the dataset and swept up
        if not path.exists():
            raise
    except OSError as error:
        raise full_disk(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def _seconds(table: pa.Table) -> float:
    return float(np.sum(table["seconds"].to_numpy(), dtype=np.float64))


def part_info(path: Path) -> dict:
    """The `info` of a part. InputError if it cannot be read or was not written by `write_part`."""
    try:
        found = (pq.read_schema(path).metadata or {})[_INFO]
        return json.loads(found)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); delete it and run again") from None
    except KeyError:
        raise InputError(f"{path}: written by something else; choose another folder") from None


def part_size(path: Path) -> int:
    """The number of utterances that a part was made from, those left out included."""
    return pq.read_metadata(path).num_rows + len(part_info(path)["dropped"])


def finish(folder: Path, parts: int, settings: dict) -> dict:
    """Write meta.json over the parts 0..parts-1, which must all be there, and return it; dropped.jsonl lists the rest.

    `settings`: codec, codebook_size, frame_rate and whatever else shall stand in it. InputError if a part does not
    belong there, or no utterance is left.
    """
    expected = [part_name(number) for number in range(parts)]
    refuse_others(folder, expected)
    shards, dropped, speakers, codes, seconds, listed = [], Counter(), Counter(), 0, 0.0, []
    compared = changed = 0
    for name in expected:
        info, counts = _part_counts(folder / name)
        dropped.update(reason for _, reason in info["dropped"])
        listed += [json.dumps({"id": id, "reason": reason, "part": name}) + "\n" for id, reason in info["dropped"]]
        compared += info.get("bf16", {}).get("compared", 0)
        changed += info.get("bf16", {}).get("changed", 0)
        speakers.update(counts["speakers"])
        codes, seconds = codes + counts["codes"], seconds + counts["seconds"]
        shards.append({"file": name, "rows": counts["rows"], "sha256": sha256(folder / name)})
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise InputError(f"{folder}: no utterance is left ({reasons or 'there was none'}), expected at least one")
    meta = {**settings, "utterances": rows, "codes": codes, "seconds": round(seconds, 3), "shards": shards}
    meta |= {"speakers": dict(sorted(speakers.items())), "dropped": dict(sorted(dropped.items()))}
    if compared:
        meta["bf16"] = {"compared": compared, "changed": changed}
    if listed:
        publish(folder / "dropped.jsonl", "".join(listed).encode())
    publish(folder / "meta.json", (json.dumps(meta, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
    for leftover in folder.glob("part-*.parquet.*.tmp"):
        leftover.unlink(missing_ok=True)
    return meta


def _part_counts(path: Path) -> tuple[dict, dict]:
    """The info of a part, and its rows, codes, seconds and {speaker: utterances}; without reading its codes."""
    info = part_info(path)
    if "counts" in info:
        return info, {**info["counts"], "rows": pq.read_metadata(path).num_rows}
    table = read_table(path)
    counts = {"rows": len(table), "codes": len(joined(table["codes"]).values), "seconds": _seconds(table)}
    return info, {**counts, "speakers": Counter(table["speaker"].to_pylist())}
