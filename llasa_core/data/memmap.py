"""Import and export of the public memory map (format: memmap_rows), streamed one part of rows at a
time.

A row is imported completely or not at all: rows whose END is cut off, or whose decoded text would
get other ids, are dropped and counted. Imported rows are exported byte for byte.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from llasa_core.data.dataset import (
    SCHEMA,
    code_lists,
    finish,
    part_info,
    part_name,
    read_meta,
    read_part,
    write_table,
)
from llasa_core.data.memmap_rows import RowFormat, RowParts, read_shape, row_blocks
from llasa_core.data.text_ids import BulkText
from llasa_core.errors import InputError
from llasa_core.files import full_disk, publish

T = TypeVar("T")

WIDTH = 2048

# Template tokens that public training puts before the END of a row, which it then truncates.
TEMPLATE_TOKENS = 41

PART_BYTES = 2**27  # of rows at most in one part

WRITE_BYTES = 2**24  # of rows written at a time: with less, threads wait for each other more often

_DIRECT = getattr(os, "O_DIRECT", 0)


def import_memmap(
    folder: str | Path,
    out: str | Path,
    tokenizer,
    codec: str = "xcodec2",
    frame_rate: float = 50.0,
    rows_per_part: int = 10_000,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """Each split of a folder of public rows -> the codes dataset out/SPLIT; returns their meta.json
    by split.

    Ids are SPLIT-ROW; speaker and language are empty, seconds are those of the codes. A stopped
    import resumes with the missing parts. Dropped and counted: "cut" (as long as the width, so
    without END), "no_end", "foreign_ids" (an id out of place), "textless", "no_codes",
    "text_differs" (the decoded text has other ids). InputError for bad files.
    """
    folder, out = Path(folder), Path(out)
    splits = sorted(
        path.name.removesuffix("_input_ids.memmap") for path in folder.glob("*_input_ids.memmap")
    )
    if not splits:
        raise InputError(
            f"{folder}: no *_input_ids.memmap in it, expected public memory-mapped rows"
        )
    shapes = {split: read_shape(folder, split) for split in splits}
    rows_of, texts = RowFormat(tokenizer), BulkText(tokenizer)
    size = rows_of.vocabulary.codebook_size
    if size > 2**16:
        raise InputError(f"{texts.name}: a codebook of {size} codes, expected at most 65536")
    metas = {}
    for split, (rows, width) in shapes.items():
        place = out / split
        place.mkdir(parents=True, exist_ok=True)
        settings = {"codec": codec, "codebook_size": size, "frame_rate": frame_rate}
        parts = _parts(
            folder / f"{split}_input_ids.memmap", rows, width, rows_per_part, rows_of, settings
        )
        numbers = 0
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            written: Future | None = None
            for number, (first, count, blocks, source) in enumerate(_ahead(parts, reader)):
                path = place / part_name(number)
                if path.exists():
                    if part_info(path).get("source") != source:
                        raise InputError(f"{path}: made from other rows; choose another folder")
                else:
                    table, dropped = _table(blocks, texts, split, first, count, frame_rate)
                    if written is not None:
                        # one part is written while the next is read: no more wait in memory
                        written.result()
                    written = writer.submit(
                        write_table, path, table, {**settings, "source": source, "dropped": dropped}
                    )
                numbers += 1
                if progress:
                    progress(count)
            if written is not None:
                written.result()
        metas[split] = finish(place, numbers, {**settings, "memmap_width": width})
    return metas


def _parts(
    path: Path, rows: int, width: int, rows_per_part: int, rows_of: RowFormat, settings: dict
) -> Iterator[tuple[int, int, list[RowParts], str]]:
    """(first row, number of rows, their parsed blocks, a hash of their content), for each part."""
    most = min(rows_per_part, max(1, PART_BYTES // (4 * width)))
    first, count, blocks = 0, 0, []
    for block in row_blocks(path, rows, width):
        while len(block):
            taken, block = block[: most - count], block[most - count :]
            blocks.append(rows_of.parse(taken))
            count += len(taken)
            if count == most:
                yield first, count, blocks, _source(blocks, settings)
                first, count, blocks = first + count, 0, []
    if count:
        yield first, count, blocks, _source(blocks, settings)


def _source(blocks: list[RowParts], settings: dict) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for block in blocks:
        for values in (block.text_ids, block.text_sizes, block.codes, block.code_sizes):
            digest.update(values)
        digest.update(repr(block.reasons).encode())
    return digest.hexdigest()[:16]


def _table(
    blocks: list[RowParts], texts: BulkText, split: str, first: int, count: int, frame_rate: float
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """The utterances of a part, and (id, reason) of the dropped rows."""
    reasons: dict[int, str] = {}
    done = 0
    for block in blocks:
        reasons |= {done + row: reason for row, reason in block.reasons.items()}
        done += len(block.text_sizes) + len(block.reasons)
    numbers = np.delete(np.arange(count), sorted(reasons))
    text_ids, codes = (
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("text_ids", "codes")
    )
    text_borders, code_borders = (
        np.concatenate([[0], np.cumsum(np.concatenate([getattr(block, name) for block in blocks]))])
        for name in ("text_sizes", "code_sizes")
    )
    strings, fine = texts.decode(text_ids, text_borders)
    fine &= texts.matches(text_ids, text_borders, strings) if len(strings) else True
    sizes = np.diff(code_borders)
    if not fine.all():
        reasons |= dict.fromkeys(numbers[~fine].tolist(), "text_differs")
        codes, numbers, strings = (
            codes[np.repeat(fine, sizes)],
            numbers[fine],
            strings.filter(pa.array(fine)),
        )
        sizes = sizes[fine]
    empty = pa.array(np.full(len(numbers), ""), pa.string())
    columns = {
        "id": _names(split, first + numbers),
        "text": strings,
        "speaker": empty,
        "language": empty,
    }
    columns["codes"] = code_lists(np.concatenate([[0], np.cumsum(sizes)]), codes)
    columns["seconds"] = pa.array((sizes / frame_rate).astype(np.float32))
    dropped = [(f"{split}-{first + row:08d}", reasons[row]) for row in sorted(reasons)]
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA), dropped


def _names(split: str, numbers: np.ndarray) -> pa.Array:
    """SPLIT-00000000 .. for each number, of 8 digits or as many as the largest needs."""
    if len(numbers) and numbers.max() >= 10**8:
        return pa.array([f"{split}-{number:08d}" for number in numbers.tolist()], pa.string())
    prefix = np.frombuffer(f"{split}-".encode(), np.uint8)
    digits = numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")
    letters = np.concatenate([np.tile(prefix, (len(numbers), 1)), digits.astype(np.uint8)], axis=1)
    borders = np.arange(len(numbers) + 1, dtype=np.int32) * letters.shape[1]
    return pa.StringArray.from_buffers(
        len(numbers), pa.py_buffer(borders), pa.py_buffer(letters.tobytes())
    )


def export_memmap(
    codes: str | Path,
    folder: str | Path,
    tokenizer,
    width: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """A codes dataset (split "train"), or a folder with one per split, -> public rows in `folder`.

    `width`: tokens per row; by default that of the imported rows, else 2,048. Imported rows are
    exported byte for byte. Returns for each split: rows, width, dropped (utterances longer than a
    row), and end_lost_in_public: rows whose END public training truncates, because it adds a
    template. InputError for a tokenizer of another codebook, and for a full disk.
    """
    codes, folder = Path(codes), Path(folder)
    rows_of, texts = RowFormat(tokenizer), BulkText(tokenizer)
    places = {path.parent.name: path.parent for path in sorted(codes.glob("*/meta.json"))}
    places = {"train": codes} if (codes / "meta.json").exists() or not places else places
    metas = {split: read_meta(place) for split, place in places.items()}
    for meta in metas.values():
        if meta["codebook_size"] != rows_of.vocabulary.codebook_size:
            found = (
                f"{meta['codebook_size']} codes, {texts.name} {rows_of.vocabulary.codebook_size}"
            )
            raise InputError(f"{codes}: {found}; expected a tokenizer of the same codec")
    folder.mkdir(parents=True, exist_ok=True)
    reports = {}
    for split, place in places.items():
        meta = metas[split]
        columns = width or meta.get("memmap_width", WIDTH)
        path, shape = folder / f"{split}_input_ids.memmap", folder / f"{split}_input_ids_shape.npy"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        rows = overlong = robbed = 0
        try:
            parts = (read_part(place, shard, meta["codebook_size"]) for shard in meta["shards"])
            # Three more threads: one reads a part, one encodes the texts of another, one
            # writes rows.
            with _open_for_blocks(temporary, 4 * columns) as file, ThreadPoolExecutor(3) as aside:
                rows_file = _RowsFile(file, columns, rows_of, aside)
                encoded = (
                    (*texts.encode(part["text"].chunk(0)), part["codes"].chunk(0))
                    for part in _ahead(parts, aside)
                )
                for ids, borders, lists in _ahead(encoded, aside):
                    lengths = rows_file.write(ids, borders, lists)
                    fitting = lengths <= columns
                    rows, overlong = rows + int(fitting.sum()), overlong + int((~fitting).sum())
                    robbed += int((fitting & (lengths > max(columns - TEMPLATE_TOKENS, 0))).sum())
                    if progress:
                        progress(len(lengths))
            shape.unlink(missing_ok=True)
            os.replace(temporary, path)
        except OSError as error:
            raise full_disk(error, path) from None
        finally:
            temporary.unlink(missing_ok=True)
        _publish_shape(shape, (rows, columns))
        reports[split] = {"rows": rows, "width": columns, "dropped": {"overlong": overlong}}
        reports[split]["end_lost_in_public"] = robbed
    return reports


def _ahead(items: Iterator[T], aside: ThreadPoolExecutor) -> Iterator[T]:
    """The items of an iterator, each computed by a thread while the previous one is used."""
    items = iter(items)
    following = aside.submit(next, items, None)
    while (item := following.result()) is not None:
        following = aside.submit(next, items, None)
        yield item


class _RowsFile:
    """A file of rows: one block is built while another thread writes the previous one."""

    def __init__(self, file: io.FileIO, width: int, rows_of: RowFormat, aside: ThreadPoolExecutor):
        self.file, self.width, self.rows_of, self.aside = file, width, rows_of, aside
        step = max(1, WRITE_BYTES // (4 * width))
        memory = mmap.mmap(-1, 8 * step * width)  # it begins with a page, as direct writing needs
        self.blocks = np.frombuffer(memory, np.int32).reshape(2, step, width)

    def write(self, ids: np.ndarray, at: np.ndarray, codes: pa.ListArray) -> np.ndarray:
        """Append texts ids[at[i] : at[i + 1]] with their codes; int64 (N,): the lengths of all
        rows, those above the width are not written.
        """
        width, borders = self.width, codes.offsets.to_numpy().astype(np.int64)
        code_ids = codes.values.to_numpy().astype(np.int32) + self.rows_of.vocabulary.first_code
        lengths = np.diff(at) + np.diff(borders) + 4
        if (lengths > width).any():
            fits = lengths <= width
            ids, code_ids = (
                ids[np.repeat(fits, np.diff(at))],
                code_ids[np.repeat(fits, np.diff(borders))],
            )
            at, borders = (
                np.concatenate([[0], np.cumsum(np.diff(each)[fits])]) for each in (at, borders)
            )
        step, writing = self.blocks.shape[1], None
        for number, first in enumerate(range(0, len(at) - 1, step)):
            end = min(first + step, len(at) - 1)
            block = self.blocks[number % 2, : end - first]
            self.rows_of.build(block, ids, at[first : end + 1], code_ids, borders[first : end + 1])
            if writing is not None:
                writing.result()  # of the other block, which is built anew next
            writing = self.aside.submit(_write_all, self.file, block)
        if writing is not None:
            writing.result()
        return lengths


def _open_for_blocks(path: Path, row_bytes: int) -> io.FileIO:
    """A new file for blocks of rows; without the page cache where rows are whole pages."""
    if row_bytes % mmap.PAGESIZE == 0:
        with contextlib.suppress(OSError):
            return open(
                path,
                "wb",
                buffering=0,
                opener=lambda name, flags: os.open(name, flags | _DIRECT, 0o666),
            )
    return path.open("wb", buffering=0)


def _write_all(file: io.FileIO, block: np.ndarray) -> None:
    data = memoryview(block.reshape(-1).view(np.uint8))
    while len(data):
        try:
            data = data[file.write(data) :]
        except OSError as error:
            # The file system has less space than it promised, or the disk is full.
            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & _DIRECT:
                raise
            fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)


def _publish_shape(path: Path, shape: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(shape), allow_pickle=False)
    publish(path, buffer.getvalue())
