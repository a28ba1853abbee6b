"""The codes dataset: parquet parts of (id, text, codes, speaker, language, seconds) and meta.json.

meta.json is written last: where it exists, the dataset is complete. Each part records the codec and
its source in its parquet metadata, so that a stopped extraction can resume. Reading checks every
part against the sha256 in meta.json; parts come by path or URL, into memory or unpacked once into
memory-mapped files. Independent of any text tokenizer; nothing is unpickled.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa_core.errors import InputError, fits
from llasa_core.files import (
    brief,
    full_disk,
    is_url,
    join,
    listing,
    names_full_disk,
    parse_object,
    read_bytes,
    read_object,
    sha256,
    sync,
    write_json,
    write_rows,
)

_INFO = b"llasa"  # key of a part's own facts in its parquet metadata


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def write_part(path: Path, rows: Sequence[dict], info: dict) -> None:
    """Write rows (dicts with SCHEMA's keys, codes integer (F,)) as one part, by rename.

    `info` is JSON kept in the file: codec, codec_fingerprint, codes_fingerprint, codebook_size,
    frame_rate, dropped ([[id, reason], ..]), source and audio (fingerprints of what it was made
    from); unknown ones are omitted.
    """
    size = info["codebook_size"]
    if not 1 <= size <= 2**16:
        raise InputError(f"{path}: a codebook of {size} codes, expected at most 65536")
    for row in rows:
        codes = np.asarray(row["codes"])
        if len(codes) and not 0 <= codes.min() <= codes.max() < size:
            raise InputError(
                f"utterance {row['id']!r}: its codes go from {codes.min()} to {codes.max()},"
                f" expected 0..{size - 1}"
            )
    borders = np.cumsum([0, *(len(row["codes"]) for row in rows)])
    flat = np.concatenate(
        [np.zeros(0, np.uint16), *(np.asarray(row["codes"]) for row in rows)]
    ).astype(np.uint16)
    columns = {
        field.name: pa.array([row[field.name] for row in rows], field.type)
        for field in SCHEMA
        if field.name != "codes"
    }
    columns["codes"] = code_lists(borders, flat)
    write_table(
        path, pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA), info
    )


def code_lists(borders: np.ndarray, codes: np.ndarray) -> pa.Array:
    """Codes uint16 (F,) and borders (N + 1,) as a part's column; InputError from 2**31 codes on."""
    if borders[-1] >= 2**31:
        raise InputError(
            f"a part of {borders[-1]} codes, expected fewer than 2**31; take fewer rows a part"
        )
    return pa.ListArray.from_arrays(borders.astype(np.int32), codes)


def write_table(path: Path, table: pa.Table, info: dict) -> None:
    """Write a table of SCHEMA with checked codes as one part; otherwise as `write_part`."""
    counts = {"codes": len(joined(table["codes"]).values), "seconds": _seconds(table)}
    counts["speakers"] = dict(Counter(table["speaker"].to_pylist()))
    schema = SCHEMA.with_metadata(
        {_INFO: json.dumps({**info, "counts": counts}, sort_keys=True).encode()}
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # The two bytes of a code apart compress to two bytes; whole, zstd needs two and a half and
    # twice the time.
    split = {"codes.list.element": "BYTE_STREAM_SPLIT"}
    size = max(len(table), 1)
    settings = {
        "compression": "zstd",
        "use_dictionary": False,
        "row_group_size": size,
        "column_encoding": split,
    }
    try:
        pq.write_table(table.cast(schema), temporary, **settings)
        sync(temporary)
        os.replace(temporary, path)
    except FileNotFoundError:
        # Another worker on the same shard has finished the dataset and cleaned up.
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
        return parse_object(found.decode(), str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); delete it and run again") from None
    except KeyError:
        raise InputError(f"{path}: written by something else; choose another folder") from None


def part_size(path: Path) -> int:
    """The number of utterances that a part was made from, including dropped ones."""
    return pq.read_metadata(path).num_rows + len(part_info(path)["dropped"])


def finish(folder: Path, parts: int, settings: dict) -> dict:
    """Write meta.json over the parts 0..parts-1, which must all exist, and return it; dropped.jsonl
    lists the dropped utterances.

    `settings`: codec, codebook_size, frame_rate and anything else to record. InputError if a part
    does not belong there, or no utterance is left.
    """
    expected = [part_name(number) for number in range(parts)]
    refuse_others(folder, expected)
    shards, dropped, speakers, codes, seconds, listed = [], Counter(), Counter(), 0, 0.0, []
    compared = changed = 0
    for name in expected:
        info, counts = _part_counts(folder / name)
        dropped.update(reason for _, reason in info["dropped"])
        listed += [{"id": id, "reason": reason, "part": name} for id, reason in info["dropped"]]
        compared += info.get("bf16", {}).get("compared", 0)
        changed += info.get("bf16", {}).get("changed", 0)
        speakers.update(counts["speakers"])
        codes, seconds = codes + counts["codes"], seconds + counts["seconds"]
        shards.append({"file": name, "rows": counts["rows"], "sha256": sha256(folder / name)})
    rows = sum(shard["rows"] for shard in shards)
    if not rows and parts:
        first = {row["reason"]: row["id"] for row in reversed(listed)}
        reasons = "; ".join(
            f"{reason} {count}, first {first[reason]}" for reason, count in sorted(dropped.items())
        )
        raise InputError(
            f"{folder}: no utterance is left ({reasons or 'there was none'}), expected at least one"
        )
    meta = {
        **settings,
        "utterances": rows,
        "codes": codes,
        "seconds": round(seconds, 3),
        "shards": shards,
    }
    meta |= {"speakers": dict(sorted(speakers.items())), "dropped": dict(sorted(dropped.items()))}
    if compared:
        meta["bf16"] = {"compared": compared, "changed": changed}
    try:
        if listed:
            write_rows(folder / "dropped.jsonl", listed)
        write_json(folder / "meta.json", meta)
    except FileNotFoundError:
        # Another worker has finished the dataset, with the same content, and cleaned up.
        if not (folder / "meta.json").exists():
            raise
    for pattern in ("part-*.parquet.*.tmp", "dropped.jsonl.*.part", "meta.json.*.part"):
        for leftover in folder.glob(pattern):  # of workers that were killed while they wrote
            leftover.unlink(missing_ok=True)
    return meta


def _part_counts(path: Path) -> tuple[dict, dict]:
    """A part's info, rows, codes, seconds and {speaker: utterances}, without reading its codes."""
    info = part_info(path)
    if "counts" in info:
        return info, {**info["counts"], "rows": pq.read_metadata(path).num_rows}
    table = read_table(path)
    counts = {
        "rows": len(table),
        "codes": len(joined(table["codes"]).values),
        "seconds": _seconds(table),
    }
    return info, {**counts, "speakers": Counter(table["speaker"].to_pylist())}


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

_META = {
    "codec": str,
    "codebook_size": int,
    "frame_rate": float,
    "utterances": int,
    "codes": int,
    "shards": list,
}


class CodesDataset:
    """A codes dataset with random access: `len(dataset)`, `dataset[i]`, `dataset.lengths()`.

    A row is a dict of id, text, codes (uint16 (F,), a read-only view), speaker, language, seconds.
    `meta` is the content of meta.json. Codes take 2 bytes each, in memory or mapped; processes
    forked from this one share them. `cache` is the folder of the mapped files, None in memory.
    """

    def __init__(self, meta: dict, tables: Sequence[pa.Table], cache: Path | None = None):
        self.meta, self.cache = meta, cache
        self._columns, self._borders, self._codes = [], [], []
        for table in tables:
            lists = joined(table["codes"])
            self._columns.append(
                {name: joined(table[name]) for name in SCHEMA.names if name != "codes"}
            )
            self._borders.append(lists.offsets.to_numpy())
            self._codes.append(lists.values.to_numpy())
        self._starts = list(accumulate((len(table) for table in tables), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part, at = self._place(int(index) % len(self))
        row = {name: column[at].as_py() for name, column in self._columns[part].items()}
        row["codes"] = self._codes[part][self._borders[part][at] : self._borders[part][at + 1]]
        return row

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def codes(self, index: int) -> np.ndarray:
        """uint16 (F,): the codes of a row, 0 <= index < len(self), without its other columns."""
        part, at = self._place(index)
        borders = self._borders[part]
        return self._codes[part][borders[at] : borders[at + 1]]

    def value(self, name: str, index: int):
        """A value of another column of a row, 0 <= index < len(self)."""
        part, at = self._place(index)
        return self._columns[part][name][at].as_py()

    def column(self, name: str) -> list[pa.Array]:
        """Another column, one array per part."""
        return [columns[name] for columns in self._columns]

    def lengths(self) -> np.ndarray:
        """int64 (N,): the number of codes of each row."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.diff(borders) for borders in self._borders)]
        ).astype(np.int64)


def read_codes(
    folder: str | Path, verify: bool = True, cache: str | Path | None = None
) -> CodesDataset:
    """Open a codes dataset; `verify` compares the sha256 of every part first.

    The parts are unpacked into memory; with `cache`, once into files of that folder, which are
    mapped: processes share them, and a dataset larger than memory opens at once. `folder` may be a
    URL (s3://, ..): parts are then fetched one after the other, with `cache` only once for all
    processes of a machine.

    Raises InputError, which names the file, where meta.json is missing (an unfinished extraction)
    or malformed, or a part is missing, damaged, changed, of another schema, unlisted, or holds
    codes outside the codebook.
    """
    meta = read_meta(folder)
    tables = []
    for shard in meta["shards"]:
        unpacked = None if cache is None else Path(cache) / f"{shard['sha256']}.arrow"
        if unpacked is None:
            tables.append(read_part(folder, shard, meta["codebook_size"], verify))
            continue
        if not unpacked.exists():
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            with open(unpacked.parent / "unpack.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not unpacked.exists():  # another process may just have done it
                    _unpack(read_part(folder, shard, meta["codebook_size"], verify), unpacked)
        tables.append(_mapped(unpacked))
    return CodesDataset(meta, tables, None if cache is None else Path(cache))


def read_part(folder: str | Path, shard: dict, codebook_size: int, verify: bool = True) -> pa.Table:
    """One part listed in meta.json, each column in one chunk. InputError as `read_codes`."""
    path = join(folder, shard["file"])
    try:
        content = read_bytes(path) if is_url(path) else None
        if content is None and not path.is_file():
            raise FileNotFoundError
    except FileNotFoundError:
        raise InputError(f"{path}: missing, expected it as meta.json lists it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({brief(error)})") from None
    if verify and shard["sha256"] != (
        sha256(path) if content is None else hashlib.sha256(content).hexdigest()
    ):
        raise InputError(
            f"{path}: its sha256 is not that of meta.json, expected the file as it was written"
        )
    table = read_table(path, content)
    if len(table) != shard["rows"]:
        raise InputError(f"{path}: {len(table)} rows, expected {shard['rows']} as in meta.json")
    table = table.combine_chunks()
    _refuse_foreign_codes(path, table, codebook_size)
    return table


def _unpack(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with names_full_disk(path):
            sink = pa.OSFile(str(temporary), "wb")
            with sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _mapped(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: cannot be read ({brief(error)}); delete it, it is made again"
        ) from None


def read_meta(folder: str | Path) -> dict:
    """meta.json of a finished dataset; InputError if missing, malformed or a part is unlisted."""
    path = join(folder, "meta.json")
    meta = read_object(path, "the meta.json of a finished codes dataset")
    for key, kind in _META.items():
        if not fits(meta.get(key), kind):
            raise InputError(
                f"{path}: {key} is missing or of another type, expected the meta.json of a codes"
                " dataset"
            )
    if not 1 <= meta["codebook_size"] <= 2**16 or not 0 < meta["frame_rate"] < 10**6:
        sizes = f"codebook_size {meta['codebook_size']:.9g}, frame_rate {meta['frame_rate']:.9g}"
        raise InputError(f"{path}: {sizes}, expected at most 65536 codes and a positive rate")
    for shard in meta["shards"]:
        if (
            not isinstance(shard, dict)
            or [type(shard.get(key)) for key in ("file", "rows", "sha256")] != [str, int, str]
            or not re.fullmatch(r"[\w.-]+", shard["file"])
            or not re.fullmatch(r"\w+", shard["sha256"])
        ):
            raise InputError(
                f"{path}: shards holds {json.dumps(shard)[:60]}, expected file, rows and sha256"
            )
    refuse_others(folder, [shard["file"] for shard in meta["shards"]])
    return meta


def read_table(path: str | Path, content: bytes | None = None) -> pa.Table:
    """A parquet file (or its content) as a table of SCHEMA; InputError if damaged or of another."""
    try:
        table = (
            pq.read_table(path, memory_map=True)
            if content is None
            else pq.read_table(pa.BufferReader(content))
        )
        table.validate(full=True)  # borders in order, texts UTF-8: nothing checks them later
        found = {field.name: field.type for field in table.schema}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as parquet ({brief(error)})") from None
    for field in SCHEMA:
        if found.get(field.name) != field.type:
            raise InputError(
                f"{path}: column {field.name} is {found.get(field.name)}, expected {field.type}"
            )
        if table[field.name].null_count:
            raise InputError(f"{path}: column {field.name} has nulls, expected a value in each row")
    return table.select(SCHEMA.names)


def codec_of(meta: dict) -> dict:
    """What meta.json records about the codec, for a dataset derived from this one."""
    keys = ("codec", "codebook_size", "frame_rate")
    keys += ("codec_fingerprint", "codes_fingerprint", "codec_folder")
    return {key: meta[key] for key in keys if key in meta}


def _refuse_foreign_codes(path: Path, table: pa.Table, codebook_size: int) -> None:
    lists = joined(table["codes"])
    codes = lists.values.to_numpy()
    wrong = np.flatnonzero(codes >= codebook_size)
    if len(wrong):
        row = int(np.searchsorted(lists.offsets.to_numpy(), wrong[0], side="right")) - 1
        name = table["id"][row].as_py()
        raise InputError(
            f"{path}: code {codes[wrong[0]]} in row {row} ({name}), expected 0..{codebook_size - 1}"
        )


def refuse_others(folder: str | Path, expected: Sequence[str]) -> None:
    """InputError if the folder contains an unexpected part."""
    there = {PurePosixPath(name).name for name in listing(folder, ".parquet")}
    others = sorted(name for name in there - set(expected) if name.startswith("part-"))
    if others:
        raise InputError(
            f"{join(folder, others[0])}: belongs to another dataset; choose another folder or"
            " delete it"
        )


def joined(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array, whose offsets start at 0."""
    return (
        column.combine_chunks()
        if column.num_chunks != 1 or column.chunk(0).offset
        else column.chunk(0)
    )


class NumberedNames:
    """A column of names as numbers across parts, in order of first occurrence."""

    def __init__(self):
        self.names: dict[str, int] = {}
        self.numbers: list[np.ndarray] = []  # int32, an array for each part

    def add(self, column: pa.Array) -> None:
        found = column.dictionary_encode()
        known = [
            self.names.setdefault(name, len(self.names)) for name in found.dictionary.to_pylist()
        ]
        self.numbers.append(np.array(known, np.int32)[found.indices.to_numpy()])
