"""Rows of the public memory map, {split}_input_ids.memmap (int32) and its _shape.npy, read and
built in blocks.

A row is TEXT_UNDERSTANDING_START text END SPEECH_GENERATION_START codes END, padded with
<|eot_id|>. The shape file is parsed by hand, at most a few bytes, so that a forged one neither
unpickles nor allocates anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.tokenizer import MARKERS, name_of, vocabulary_of

BLOCK_BYTES = 2**21  # rows read and checked at a time, so that they stay in the CPU cache

MOST_COLUMNS = 2**20

_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[iu][1248])', 'fortran_order': (?:True|False), 'shape': \((\d+),\),"
    rb" \}\s*"
)


@dataclass(frozen=True)
class RowParts:
    """The content of the valid rows of one block: ids and codes concatenated in row order."""

    reasons: dict[int, str]  # row of the block -> why it is invalid
    text_ids: np.ndarray  # int32 (T,)
    text_sizes: np.ndarray  # int64 (G,), G rows without a reason
    codes: np.ndarray  # uint16 (F,)
    code_sizes: np.ndarray  # int64 (G,)


def read_shape(folder: Path, split: str) -> tuple[int, int]:
    """(rows, width) of one split. InputError if its two files disagree or are unreadable."""
    path, shape_path = folder / f"{split}_input_ids.memmap", folder / f"{split}_input_ids_shape.npy"
    try:
        with shape_path.open("rb") as file:
            content = file.read(4097)
    except OSError as error:
        raise InputError(
            f"{shape_path}: cannot be read ({error.strerror}), expected rows and width"
        ) from None
    shape = _shape_of(content)
    if isinstance(shape, str):
        raise InputError(
            f"{shape_path}: cannot be read ({shape}), expected a NumPy file of two integers, no"
            " pickle"
        )
    if len(shape) != 2 or min(shape) < 1 or shape[1] > MOST_COLUMNS:
        raise InputError(f"{shape_path}: holds {shape}, expected rows and width, both at least 1")
    rows, width = shape
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected rows of ids"
        ) from None
    if size != rows * width * 4:
        raise InputError(
            f"{path}: {size} bytes, expected {rows} rows of {width} int32 = {rows * width * 4}"
        )
    return rows, width


def _shape_of(content: bytes) -> list[int] | str:
    """The integers of a small .npy file, or a description of what is wrong with it."""
    if len(content) > 4096:
        return "more than 4096 bytes"
    if content[:6] != b"\x93NUMPY" or len(content) < 12 or content[6] not in (1, 2, 3):
        return "no NumPy file"
    start = 10 if content[6] == 1 else 12
    end = start + int.from_bytes(content[8:start], "little")
    header = _HEADER.fullmatch(content[start:end])
    if not header:
        return "its header is not that of an array of integers"
    kind, count = np.dtype(header[1].decode()), int(header[2])
    if count * kind.itemsize != len(content) - end:
        return f"{len(content) - end} bytes of data, its header announces {count * kind.itemsize}"
    return np.frombuffer(content, kind, offset=end).tolist()


def row_blocks(path: Path, rows: int, width: int) -> Iterator[np.ndarray]:
    """Rows in blocks int32 (R, width), in one reused buffer. InputError for a truncated file."""
    buffer = np.empty((min(rows, max(1, BLOCK_BYTES // (4 * width))), width), np.int32)
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < rows:
            block = buffer[: min(len(buffer), rows - done)]
            target, filled = memoryview(block.reshape(-1).view(np.uint8)), 0
            while filled < len(target):
                got = file.readinto(target[filled:])
                if not got:
                    raise InputError(
                        f"{path}: ends in row {done + filled // (4 * width)}, expected {rows} rows"
                    )
                filled += got
            yield block
            done += len(block)


class RowFormat:
    """Parses and builds the rows of one tokenizer."""

    def __init__(self, tokenizer):
        self.vocabulary, self.padding = vocabulary_of(tokenizer), end_of_turn(tokenizer)
        ids = self.vocabulary
        self._order = [ids.text_understanding_start, ids.text_understanding_end]
        self._order += [ids.speech_generation_start, ids.speech_generation_end]

    def parse(self, block: np.ndarray) -> RowParts:
        """Rows (R, width) -> their parts; each invalid row gets a reason."""
        ids, count = self.vocabulary, len(block)
        sizes = _true_in_each_row(block != self.padding)
        used = np.concatenate([row[:size] for row, size in zip(block, sizes.tolist(), strict=True)])
        ends = np.cumsum(sizes)
        starts = ends - sizes
        markers = np.flatnonzero((used - ids.text_size).view(np.uint32) < len(MARKERS))
        is_code = (used - ids.first_code).view(np.uint32) < ids.codebook_size
        if len(markers) == 4 * count:
            at = markers.reshape(count, 4)
            flips = np.flatnonzero(is_code[1:] != is_code[:-1])
            rest = used[~is_code]
            whole = (
                (used[at] == self._order).all()
                and (at[:, 0] == starts).all()
                and (at[:, 3] == ends - 1).all()
            )
            whole = whole and (at[:, 2] == at[:, 1] + 1).all() and (at[:, 1] > at[:, 0] + 1).all()
            # From START's to the last code, and back at END: codes stand there and nowhere else.
            whole = whole and np.array_equal(flips, (at[:, 2:] - [0, 1]).reshape(-1))
            # The padding was counted, not located: none may stand among the first `size` ids of a
            # row.
            whole = (
                whole
                and (rest.view(np.uint32) < ids.first_code).all()
                and not (rest == self.padding).any()
            )
            if whole:
                codes = (used[is_code] - ids.first_code).astype(np.uint16)
                return RowParts(
                    {},
                    rest[rest < ids.text_size],
                    at[:, 1] - at[:, 0] - 1,
                    codes,
                    at[:, 3] - at[:, 2] - 1,
                )
        return self._parse_one_by_one(block)

    def _parse_one_by_one(self, block: np.ndarray) -> RowParts:
        """The slow path for blocks with invalid rows: each row alone."""
        ids, reasons, texts, codes = self.vocabulary, {}, [], []
        for number, row in enumerate(block):
            parts = self._split(row)
            if isinstance(parts, str):
                reasons[number] = parts
            else:
                texts.append(parts[0])
                codes.append((parts[1] - ids.first_code).astype(np.uint16))
        sizes = [np.array([*map(len, one)], np.int64) for one in (texts, codes)]
        text_ids, flat = (
            np.concatenate([np.zeros(0, np.int32), *texts]),
            np.concatenate([np.zeros(0, np.uint16), *codes]),
        )
        return RowParts(reasons, text_ids, sizes[0], flat, sizes[1])

    def _split(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray] | str:
        """Text ids and code ids of a row, or the reason why it is invalid."""
        ids = self.vocabulary
        ends = np.flatnonzero(row == ids.speech_generation_end)
        if not len(ends):
            return "no_end" if row[-1] == self.padding else "cut"
        markers = np.flatnonzero((row >= ids.text_size) & (row < ids.first_code))
        if row[markers].tolist() != self._order or markers[0] != 0 or markers[2] != markers[1] + 1:
            return "foreign_ids"
        text, speech, padding = (
            row[1 : markers[1]],
            row[markers[2] + 1 : ends[0]],
            row[ends[0] + 1 :],
        )
        texts_are_text = ((text >= 0) & (text < ids.text_size) & (text != self.padding)).all()
        if not texts_are_text or not ids.is_code(speech).all() or (padding != self.padding).any():
            return "foreign_ids"
        if not len(speech):
            return "no_codes"
        return (text, speech) if len(text) else "textless"

    def build(self, block: np.ndarray, text_ids, text_borders, code_ids, code_borders) -> None:
        """Fill rows (R, width) with texts and codes, with borders (R + 1,); all must fit."""
        ids, rows = self.vocabulary, np.arange(len(block))
        block.fill(self.padding)
        middle = np.diff(text_borders) + 1
        end = middle + np.diff(code_borders) + 2
        block[:, 0] = ids.text_understanding_start
        block[rows, middle], block[rows, middle + 1] = (
            ids.text_understanding_end,
            ids.speech_generation_start,
        )
        block[rows, end] = ids.speech_generation_end
        texts, codes = text_borders.tolist(), code_borders.tolist()
        places = zip(
            block, middle.tolist(), end.tolist(), texts, texts[1:], codes, codes[1:], strict=False
        )
        for row, first, last, text, text_end, code, code_end in places:
            row[1:first] = text_ids[text:text_end]
            row[first + 2 : last] = code_ids[code:code_end]


def end_of_turn(tokenizer) -> int:
    """The id of <|eot_id|>, which pads rows. InputError if there is none."""
    found = tokenizer.backend_tokenizer.token_to_id("<|eot_id|>")
    if found is None:
        raise InputError(
            f"{name_of(tokenizer)}: no <|eot_id|> in it, expected a tokenizer with Llama-3's"
            " special tokens"
        )
    return found


def _true_in_each_row(mask: np.ndarray) -> np.ndarray:
    """int64 (R,): the number of True in each row of bool (R, width)."""
    bits = np.packbits(mask, axis=1)
    if bits.shape[1] % 8:
        bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return np.bitwise_count(bits.view(np.uint64)).sum(axis=1, dtype=np.int64)
