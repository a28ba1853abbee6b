"""The format of a codes dataset: parquet parts of (id, text, codes, speaker, language, seconds) and meta.json.

meta.json is written last: where it is, the dataset is whole. A part carries, in its own parquet metadata, the codec
and what it was made from, so that a stopped extraction knows what it has. No text tokenizer is involved.
"""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa_core.errors import InputError
from llasa_core.manifest import full_disk, publish

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("codes", pa.list_(pa.uint16())),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("seconds", pa.float32()),
    ]
)
_INFO = b"llasa"  # key of a part's own facts in its parquet metadata
_META = {"codec": str, "codebook_size": int, "frame_rate": int | float, "utterances": int, "codes": int, "shards": list}


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def write_part(path: Path, rows: Sequence[dict], info: dict) -> None:
    """Write rows (dicts with SCHEMA's keys, codes as integer arrays (F,)) as one part, published by rename.

    `info` is JSON kept in the file: codec, codebook_size, frame_rate, dropped ([[id, reason], ..]), source.
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
    counts = {"codes": len(_joined(table["codes"]).values), "seconds": _seconds(table)}
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
        raise InputError(f"{path}: damaged ({_brief(error)}); delete it and run again") from None
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
    _refuse_others(folder, expected)
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
        shards.append({"file": name, "rows": counts["rows"], "sha256": _sha256(folder / name)})
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
    table = _read_table(path)
    counts = {"rows": len(table), "codes": len(_joined(table["codes"]).values), "seconds": _seconds(table)}
    return info, {**counts, "speakers": Counter(table["speaker"].to_pylist())}


class CodesDataset:
    """A codes dataset, open for random access by row: `len(dataset)`, `dataset[i]`, `dataset.lengths()`.

    A row is a dict of id, text, codes (uint16 (F,), a read-only view), speaker, language, seconds. `meta` is the
    content of meta.json. Codes take 2 bytes each, in memory or mapped; processes forked from this one share them.
    """

    def __init__(self, meta: dict, tables: Sequence[pa.Table]):
        self.meta = meta
        self._columns, self._borders, self._codes = [], [], []
        for table in tables:
            lists = _joined(table["codes"])
            self._columns.append({name: _joined(table[name]) for name in SCHEMA.names if name != "codes"})
            self._borders.append(lists.offsets.to_numpy())
            self._codes.append(lists.values.to_numpy())
        self._starts = np.cumsum([0, *(len(table) for table in tables)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index = int(index) % len(self)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        at = index - int(self._starts[part])
        row = {name: column[at].as_py() for name, column in self._columns[part].items()}
        row["codes"] = self._codes[part][self._borders[part][at] : self._borders[part][at + 1]]
        return row

    def lengths(self) -> np.ndarray:
        """int64 (N,): the number of codes of each row."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(borders) for borders in self._borders)]).astype(
            np.int64
        )


def read_codes(folder: str | Path, verify: bool = True, cache: str | Path | None = None) -> CodesDataset:
    """Open a codes dataset; `verify` compares the sha256 of every part first.

    The parts are unpacked into memory; with `cache`, once into files of that folder, which are mapped: processes share
    them, and a dataset larger than memory opens at once.

    Raises InputError, which names the file, where meta.json is missing (an unfinished extraction) or malformed, or a
    part is missing, damaged, changed, of another schema, unlisted, or holds codes outside the codebook.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    tables = []
    for shard in meta["shards"]:
        unpacked = None if cache is None else Path(cache) / f"{shard['sha256']}.arrow"
        if unpacked is None or not unpacked.exists():
            table = read_part(folder, shard, meta["codebook_size"], verify)
            if unpacked is not None:
                _unpack(table, unpacked)
        tables.append(table if unpacked is None else _mapped(unpacked))
    return CodesDataset(meta, tables)


def read_part(folder: Path, shard: dict, codebook_size: int, verify: bool = True) -> pa.Table:
    """One part that meta.json lists, each column in one chunk. InputError as `read_codes`."""
    path = folder / shard["file"]
    if not path.is_file():
        raise InputError(f"{path}: missing, expected it as meta.json lists it")
    if verify and _sha256(path) != shard["sha256"]:
        raise InputError(f"{path}: its sha256 is not that of meta.json, expected the file as it was written")
    table = _read_table(path)
    if len(table) != shard["rows"]:
        raise InputError(f"{path}: {len(table)} rows, expected {shard['rows']} as in meta.json")
    table = table.combine_chunks()
    _refuse_foreign_codes(path, table, codebook_size)
    return table


def _unpack(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    os.replace(temporary, path)


def _mapped(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({_brief(error)}); delete it, it is made again") from None


def read_meta(folder: str | Path) -> dict:
    """The meta.json of a finished codes dataset; InputError where it is missing or malformed, or a part is unlisted."""
    folder = Path(folder)
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found, expected the folder of a finished codes dataset") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_brief(error)}), expected JSON") from None
    for key, kind in _META.items():
        if not isinstance(meta, dict) or not isinstance(meta.get(key), kind):
            raise InputError(f"{path}: {key} is missing or of another type, expected the meta.json of a codes dataset")
    for shard in meta["shards"]:
        if (
            not isinstance(shard, dict)
            or not {"file", "rows", "sha256"} <= shard.keys()
            or Path(shard["file"]).name != shard["file"]
        ):
            raise InputError(f"{path}: shards holds {json.dumps(shard)[:60]}, expected file, rows and sha256")
    _refuse_others(folder, [shard["file"] for shard in meta["shards"]])
    return meta


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as parquet ({_brief(error)})") from None
    found = {field.name: field.type for field in table.schema}
    for field in SCHEMA:
        if found.get(field.name) != field.type:
            raise InputError(f"{path}: column {field.name} is {found.get(field.name)}, expected {field.type}")
        if table[field.name].null_count:
            raise InputError(f"{path}: column {field.name} has nulls, expected a value in each row")
    return table.select(SCHEMA.names)


def _refuse_foreign_codes(path: Path, table: pa.Table, codebook_size: int) -> None:
    lists = _joined(table["codes"])
    codes = lists.values.to_numpy()
    wrong = np.flatnonzero(codes >= codebook_size)
    if len(wrong):
        row = int(np.searchsorted(lists.offsets.to_numpy(), wrong[0], side="right")) - 1
        name = table["id"][row].as_py()
        raise InputError(f"{path}: code {codes[wrong[0]]} in row {row} ({name}), expected 0..{codebook_size - 1}")


def _refuse_others(folder: Path, expected: Sequence[str]) -> None:
    others = sorted({path.name for path in folder.glob("part-*.parquet")} - set(expected))
    if others:
        raise InputError(f"{folder / others[0]}: belongs to another dataset; choose another folder or delete it")


def _joined(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array, whose offsets start at 0."""
    return column.combine_chunks() if column.num_chunks != 1 or column.chunk(0).offset else column.chunk(0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
