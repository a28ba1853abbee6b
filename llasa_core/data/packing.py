"""Packing: several whole utterances share one row of a batch, and no utterance is ever cut.

A batch is one flat row of documents: input_ids, position_ids (restarting at 0 in each document) and
labels (-100 = no label), each (1, L), with cu_seqlens (N + 1,) for the document borders. Labels
follow the Hugging Face convention (labels[t] is the token at t; the loss shifts by one). The first
token of a document never carries a label, so the shift cannot make one utterance predict the next.
The rows of a step depend on seed and step alone.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llasa_core.data.examples import ExampleSource
from llasa_core.errors import InputError

NO_LABEL = -100


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` grouped into rows of at most `capacity` tokens.

    The longest document goes first, each into the fullest row that still has room. Deterministic;
    ties keep the given order. Raises InputError for a length below 1 or above `capacity`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        bad = int(np.flatnonzero((lengths < 1) | (lengths > capacity))[0])
        raise InputError(f"document {bad} has {lengths[bad]} tokens, expected 1 to {capacity}")
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by their free tokens
    open_rooms = 0  # bit r set = some row has r free tokens
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                open_rooms &= ~(1 << room)
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        by_room[room - length].append(row)
        open_rooms |= 1 << (room - length)
    return rows


def packed_windows(
    lengths: Sequence[int], capacity: int, seed: Sequence[int], window: int = 8192
) -> Iterator[list[np.ndarray]]:
    """Shuffle, pack each window of `window` documents with `pack_lengths`, and shuffle its rows:
    one list per window.

    The order is a function of the arguments only. The window bounds memory; with 8,192 documents
    the last, partly filled row of each window costs well below 1 %.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    generator = np.random.default_rng(list(seed))
    order = generator.permutation(len(lengths))
    for start in range(0, len(order), window):
        members = order[start : start + window]
        packed = pack_lengths(lengths[members], capacity)
        yield [members[packed[i]] for i in generator.permutation(len(packed))]


def single_windows(
    count: int, seed: Sequence[int], window: int = 8192
) -> Iterator[list[np.ndarray]]:
    """As `packed_windows`, but every document is a separate row."""
    order = np.random.default_rng(list(seed)).permutation(count)
    for start in range(0, count, window):
        yield [order[one : one + 1] for one in range(start, min(start + window, count))]


class _Rows:
    """Rows of indices, concatenated: ten million documents in two arrays."""

    def __init__(self, windows: Iterator[list[np.ndarray]]):
        flat, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for rows in windows:
            flat.append(np.concatenate(rows).astype(np.int32))
            sizes.append(np.array([len(row) for row in rows]))
        self._flat, self._borders = (
            np.concatenate(flat),
            np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
        )

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self._flat[self._borders[row] : self._borders[row + 1]]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """int64 (R,): the sum of `values` over each row."""
        return (
            np.add.reduceat(values[self._flat], self._borders[:-1])
            if len(self)
            else np.zeros(0, np.int64)
        )


def collate(
    examples: Sequence[Any],
    distort: Callable[[np.ndarray], np.ndarray] | None = None,
    mask_eot: bool = False,
) -> dict[str, Any]:
    """Concatenate examples into one flat batch.

    `examples` have input_ids (T,), spans and eot_positions (prompts.Example). `distort` maps the
    concatenated ids (L,) to the ids that the model sees; labels keep the true ids. `mask_eot`
    removes the template's end-of-turn tokens and leaves gaps in the positions: the loss of the
    public code, which masks them as keys and gives them no label. Returns input_ids, position_ids,
    labels (1, L) int64 and cu_seqlens (N + 1,) int32. Raises InputError for an example that labels
    its first token.
    """
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.concatenate([example.input_ids for example in examples]).astype(np.int64)
    labels = np.full_like(input_ids, NO_LABEL)
    for start, example in zip(borders[:-1], examples, strict=True):
        for first, end in example.spans:
            if not 1 <= first < end <= len(example.input_ids):
                raise InputError(
                    f"an example of {len(example.input_ids)} tokens labels {first}:{end}, "
                    "expected a range that starts after the first token"
                )
            labels[start + first : start + end] = input_ids[start + first : start + end]
    position_ids = np.arange(len(input_ids)) - np.repeat(borders[:-1], lengths)
    if mask_eot:
        holes = [
            start + at
            for start, one in zip(borders[:-1], examples, strict=True)
            for at in one.eot_positions
        ]
        input_ids, labels, position_ids = (
            np.delete(array, holes) for array in (input_ids, labels, position_ids)
        )
        kept = lengths - [len(example.eot_positions) for example in examples]
        borders = np.concatenate([[0], np.cumsum(kept)])
    seen = input_ids if distort is None else distort(input_ids)
    return {
        "input_ids": torch.from_numpy(np.ascontiguousarray(seen, dtype=np.int64))[None],
        "position_ids": torch.from_numpy(position_ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "cu_seqlens": torch.from_numpy(borders.astype(np.int32)),
    }


def code_noise(
    vocabulary: Any, probability: float, generator: np.random.Generator
) -> Callable[[np.ndarray], np.ndarray]:
    """A `distort` for `collate`: replaces each code, with `probability`, by a uniform one."""

    def distort(ids: np.ndarray) -> np.ndarray:
        codes = np.flatnonzero(vocabulary.is_code(ids))
        chosen = codes[generator.random(len(codes)) < probability]
        noisy = ids.copy()
        noisy[chosen] = vocabulary.first_code + generator.integers(
            0, vocabulary.codebook_size, len(chosen)
        )
        return noisy

    return distort


class PackedRows:
    """An endless, reproducible sequence of packed rows over one or more sources, epoch after epoch.

    packing: several utterances share a row; without it a row is one utterance.

    Row n is the same on every machine and after every restart. Utterances longer than `capacity`
    are dropped and counted in `dropped_overlong` (distinct utterances). Raises InputError if
    nothing is left to pack.
    """

    def __init__(
        self,
        sources: Sequence[ExampleSource],
        capacity: int,
        seed: int,
        window: int = 8192,
        packing: bool = True,
    ) -> None:
        self.packing = packing
        self.sources, self.capacity, self.seed, self.window = list(sources), capacity, seed, window
        longest = [source.longest() for source in self.sources]
        self.dropped_overlong = int(sum((tokens > capacity).sum() for tokens in longest))
        self._keep = [tokens <= capacity for tokens in longest]
        self._starts = [0]  # number of the first row of each epoch known so far
        self._epochs: dict[int, tuple[_Rows, np.ndarray, np.ndarray, np.ndarray]] = {}
        self._tokens: list[np.ndarray] = []  # tokens in each row, by epoch
        if not any(keep.any() for keep in self._keep):
            raise InputError(
                f"no utterance fits a row of {capacity} tokens; raise `context` or check `codes`"
            )

    def _plan(self, epoch: int) -> tuple[_Rows, np.ndarray, np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            origin, members, tokens = [], [], []
            for number, source in enumerate(self.sources):
                indices, lengths = source.epoch_members(epoch, self.seed)
                kept = self._keep[number][indices]
                origin.append(np.full(int(kept.sum()), number, np.int16))
                members.append(indices[kept])
                tokens.append(lengths[kept])
            lengths = np.concatenate(tokens)
            order = (self.seed, epoch)
            if self.packing:
                rows = _Rows(packed_windows(lengths, self.capacity, order, self.window))
            else:
                rows = _Rows(single_windows(len(lengths), order, self.window))
            if len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = (rows, np.concatenate(origin), np.concatenate(members), lengths)
            if epoch == len(self._tokens):
                self._tokens.append(rows.totals(lengths))
                self._starts.append(self._starts[-1] + len(rows))
        return self._epochs[epoch]

    def rows_in_epoch(self, epoch: int) -> int:
        """Number of rows of one epoch."""
        return len(self._plan(epoch)[0])

    def fill(self, epoch: int = 0) -> float:
        """Share of the row capacity that holds tokens."""
        self._plan(epoch)
        return float(self._tokens[epoch].sum() / (len(self._tokens[epoch]) * self.capacity))

    def _locate(self, number: int) -> tuple[int, int]:
        while self._starts[-1] <= number:
            self._plan(len(self._tokens))
        epoch = bisect_right(self._starts, number) - 1
        return epoch, number - self._starts[epoch]

    def tokens_before(self, number: int) -> int:
        """Tokens in rows 0 .. number - 1."""
        epoch, row = self._locate(number)
        return int(
            sum(tokens.sum() for tokens in self._tokens[:epoch]) + self._tokens[epoch][:row].sum()
        )

    def _members(self, number: int) -> tuple[list[tuple[ExampleSource, int]], int]:
        """The source and index of each utterance of row `number`, and the epoch."""
        epoch, row = self._locate(number)
        rows, origin, members, _ = self._plan(epoch)
        return [(self.sources[origin[i]], int(members[i])) for i in rows[row]], epoch

    def examples(self, number: int) -> list[Any]:
        """The examples of row `number`."""
        members, epoch = self._members(number)
        return [source.example(index, epoch) for source, index in members]

    def identifiers(self, number: int) -> list[str]:
        """The utterance ids of row `number`, in the order of `examples`."""
        return [source.identifier(index) for source, index in self._members(number)[0]]
