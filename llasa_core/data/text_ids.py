"""Token ids of all texts of a codes dataset, computed once per tokenizer and cached.

Files next to a memory-mapped dataset: {key}.text-ids.npy int32 (T,) and {key}.text-borders.npy
int64 (N + 1,); the key is a hash of parts and tokenizer. Texts are cut where Llama-3's word pattern
never joins (before a space that a letter follows, between an ASCII letter and a sign), and each
distinct piece is encoded once: 20 times as fast. Tokenizers with another word pattern encode text
by text, because there a cut could fall inside a word.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llasa_core.data.dataset import CodesDataset, NumberedNames
from llasa_core.data.text_tokenizers import WORD_PATTERN, byte_letters
from llasa_core.errors import InputError
from llasa_core.files import names_full_disk
from llasa_core.tokenizer import name_of, text_encoder, vocabulary_of

BLOCK = 20_000  # texts encoded together


def text_ids(dataset: CodesDataset, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 (T,), borders int64 (N + 1,)) of the dataset's texts; mapped where the dataset is.

    InputError for a text without words.
    """
    if dataset.cache is None:
        blocks = list(_encoded(dataset, tokenizer))
        sizes = np.concatenate([np.zeros(0, np.int64), *(sizes for _, sizes in blocks)])
        return np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in blocks)]), _borders(sizes)
    key = _key(dataset, tokenizer)
    ids_path, borders_path = (
        dataset.cache / f"{key}.text-{name}.npy" for name in ("ids", "borders")
    )
    if not borders_path.exists():
        with open(dataset.cache / "unpack.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not borders_path.exists():  # another process may just have done it
                _write(dataset, tokenizer, ids_path, borders_path)
    try:
        return np.load(ids_path, "r", allow_pickle=False), np.load(
            borders_path, "r", allow_pickle=False
        )
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{ids_path}: cannot be read ({error}); delete it, it is made again"
        ) from None


def _write(dataset: CodesDataset, tokenizer, ids_path: Path, borders_path: Path) -> None:
    """Write both files, the borders last: their presence marks the ids as complete."""
    raw, part = ids_path.with_suffix(".raw"), ids_path.with_suffix(".part")
    try:
        with names_full_disk(ids_path):
            _write_parts(dataset, tokenizer, raw, part, borders_path)
            part.replace(ids_path)
            borders_path.with_suffix(".part").replace(borders_path)
    finally:
        for path in (raw, part, borders_path.with_suffix(".part")):
            path.unlink(missing_ok=True)


def _write_parts(
    dataset: CodesDataset, tokenizer, raw: Path, part: Path, borders_path: Path
) -> None:
    sizes = []
    with raw.open("wb") as file:
        for ids, one in _encoded(dataset, tokenizer):
            file.write(ids)
            sizes.append(one)
    borders = _borders(np.concatenate([np.zeros(0, np.int64), *sizes]))
    # Space is taken first: a memory map of a file that the disk has no room for is SIGBUS.
    with part.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<i4", "fortran_order": False, "shape": (max(int(borders[-1]), 1),)}
        )
        with raw.open("rb") as source:
            shutil.copyfileobj(source, file)
        if not borders[-1]:
            file.write(b"\0\0\0\0")
    with borders_path.with_suffix(".part").open("wb") as file:
        np.save(file, borders, allow_pickle=False)


def _encoded(dataset: CodesDataset, tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and sizes of the texts, one block at a time."""
    bulk = BulkText(tokenizer)
    for number, texts in enumerate(dataset.column("text")):
        for first in range(0, len(texts), BLOCK):
            block = texts.slice(first, BLOCK)
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(block)), 0)
            if pc.any(blank).as_py():
                at = first + blank.to_pylist().index(True)
                name = dataset.column("id")[number][at]
                raise InputError(
                    f"text: expected a text with words in it, got {texts[at].as_py()!r} ({name})"
                )
            ids, borders = bulk.encode(block)
            yield ids, np.diff(borders)


def _borders(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _key(dataset: CodesDataset, tokenizer) -> str:
    shards = [shard["sha256"] for shard in dataset.meta["shards"]]
    digest = hashlib.sha256(json.dumps(shards).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def speakers_of(dataset: CodesDataset) -> tuple[list[str], np.ndarray]:
    """The speakers, and int32 (N,): the number of each row's."""
    coded = NumberedNames()
    for column in dataset.column("speaker"):
        coded.add(column)
    return list(coded.names), np.concatenate([np.zeros(0, np.int32), *coded.numbers])


MOST_PIECES = 400_000  # remembered; then they are forgotten, so that memory stays flat

_LETTERS, _SIGNS = np.zeros((2, 256), bool)

_LETTERS[[*range(65, 91), *range(97, 123)]] = True

_SIGNS[[*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)]] = True


class BulkText:
    """Encodes and decodes blocks of texts with a merged tokenizer, never to control tokens."""

    def __init__(self, tokenizer):
        self.name, self.text_size = name_of(tokenizer), vocabulary_of(tokenizer).text_size
        self._backend, self._encoder = tokenizer.backend_tokenizer, text_encoder(tokenizer)
        self.by_pieces = _cuts_at_words(self._backend)
        self._bytes: tuple[np.ndarray, np.ndarray] | None = None
        self._words = self._whole_words() if self.by_pieces else None
        self._forget()

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Strings (N,) without nulls -> ids int32 (T,), concatenated; borders int64 (N + 1,)."""
        if not self.by_pieces:
            rows = [
                item.ids
                for item in self._encoder.encode_batch_fast(
                    texts.to_pylist(), add_special_tokens=False
                )
            ]
            borders = np.cumsum([0, *map(len, rows)])
            return np.concatenate(
                [np.zeros(0, np.int32), *(np.array(row, np.int32) for row in rows)]
            ), borders
        data, at = _buffers(texts)
        starts = _piece_starts(data, at)
        offsets = np.append(starts, len(data)).astype(np.int32)
        pieces = pa.StringArray.from_buffers(
            len(starts), pa.py_buffer(offsets), pa.py_buffer(data)
        ).dictionary_encode()
        entry = self._entries(pieces.dictionary.to_pylist())[pieces.indices.to_numpy()]
        sizes = self._sizes[entry]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        return self._ids[_ragged(self._places[entry], sizes, ends)], ends[
            np.searchsorted(starts, at)
        ]

    def decode(self, ids: np.ndarray, borders: np.ndarray) -> tuple[pa.Array, np.ndarray]:
        """Ids (T,) of N concatenated texts, borders (N + 1,) -> string array (N,), and bool (N,):
        False where it is not a text.

        That is the case for ids outside the text vocabulary, added tokens, and invalid UTF-8; the
        string is then empty.
        """
        letters, places = self._byte_table()
        known = (ids >= 0) & (ids < len(places) - 1)
        sizes = np.diff(places)[np.where(known, ids, 0)] * known
        ends = np.concatenate([[0], np.cumsum(sizes)])
        at = ends[borders]
        bad = np.concatenate([[0], np.cumsum(sizes == 0)])
        fine = bad[borders[1:]] == bad[borders[:-1]]
        data = letters[_ragged(places[np.where(known, ids, 0)], sizes, ends)]
        whole = data.tobytes()
        if fine.all() and not _inside_a_character(data, at).any() and _is_utf8(whole):
            return _strings(whole, at), fine
        texts = [
            whole[first:end] for first, end in zip(at[:-1].tolist(), at[1:].tolist(), strict=True)
        ]
        fine &= [_is_utf8(text) for text in texts]
        return pa.array(
            [text.decode() if good else "" for text, good in zip(texts, fine, strict=True)]
        ), fine

    def matches(self, ids: np.ndarray, borders: np.ndarray, texts: pa.Array) -> np.ndarray:
        """bool (N,): whether each text is encoded as exactly these ids."""
        again, found = self.encode(texts)
        same = np.diff(found) == np.diff(borders)
        if same.all():
            wrong = np.concatenate([[0], np.cumsum(again != ids)])
            return wrong[borders[1:]] == wrong[borders[:-1]]
        for row in np.flatnonzero(same):
            same[row] = np.array_equal(
                again[found[row] : found[row + 1]], ids[borders[row] : borders[row + 1]]
            )
        return same

    def _forget(self) -> None:
        self._known: dict[str, int] = {}
        self._ids, self._used = np.zeros(1 << 16, np.int32), 0
        self._places, self._sizes = np.zeros(1 << 14, np.int64), np.zeros(1 << 14, np.int64)
        if self._words is not None:
            self._learn(*self._words)

    def _entries(self, pieces: list[str]) -> np.ndarray:
        """int64 (P,): the index of each piece in the tables of places and sizes."""
        if len(self._known) > MOST_PIECES:
            self._forget()
        entries = np.fromiter(map(self._known.get, pieces, repeat(-1)), np.int64, len(pieces))
        new = np.flatnonzero(entries < 0)
        if len(new):
            entries[new] = len(self._known) + np.arange(len(new))
            missing = [pieces[at] for at in new.tolist()]
            self._learn(missing, *self._encoded(missing))
        return entries

    def _encoded(self, pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all pieces, concatenated, and their counts; words share a call, for speed."""
        words = [
            len(piece) > 1 and piece[0] == " " and piece.isascii() and piece[1].isalpha()
            for piece in pieces
        ]
        joined = [pieces[at] for at in np.flatnonzero(words)]
        others = [pieces[at] for at in np.flatnonzero(np.logical_not(words))]
        texts = ["".join(joined[first : first + 200]) for first in range(0, len(joined), 200)]
        rows = [
            item.ids
            for item in self._encoder.encode_batch_fast(texts + others, add_special_tokens=False)
        ]
        ids = np.array(list(chain.from_iterable(rows)), np.int32)
        sizes = np.zeros(len(pieces), np.int64)
        sizes[np.logical_not(words)] = [len(row) for row in rows[len(texts) :]]
        if texts:
            together = sum(map(len, rows[: len(texts)]))
            # Words are ASCII, so characters are bytes.
            ends = np.cumsum(np.diff(self._byte_table()[1])[ids[:together]])
            at = np.searchsorted(ends, np.cumsum([len(word) for word in joined]))
            sizes[words] = np.diff(np.concatenate([[-1], at]))
        places = np.zeros(len(pieces), np.int64)
        order = np.concatenate([np.flatnonzero(words), np.flatnonzero(np.logical_not(words))])
        places[order] = np.cumsum(sizes[order]) - sizes[order]
        borders = np.concatenate([[0], np.cumsum(sizes)])
        return ids[_ragged(places, sizes, borders)], sizes

    def _learn(self, pieces: list[str], ids: np.ndarray, sizes: np.ndarray) -> None:
        first, end = len(self._known), len(self._known) + len(pieces)
        self._places, self._sizes = _room(self._places, end), _room(self._sizes, end)
        self._ids = _room(self._ids, self._used + len(ids))
        self._sizes[first:end] = sizes
        self._places[first:end] = self._used + np.cumsum(sizes) - sizes
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)
        self._known.update(zip(pieces, range(first, end), strict=True))

    def _whole_words(self) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """ASCII words that are a token, which skip merges; None: the model does not."""
        if not getattr(self._backend.model, "ignore_merges", False):
            return None
        space, words = byte_letters()[32], {}
        for id, token in enumerate(self._tokens()):
            letters = token.removeprefix(space)
            if letters.isascii() and letters.isalpha():
                words[token.replace(space, " ", 1)] = id
        return list(words), np.array(list(words.values()), np.int32), np.ones(len(words), np.int64)

    def _tokens(self) -> list[str]:
        """The letters of each text token; fills the table of their bytes."""
        tokens = [""] * self.text_size
        for token, id in self._backend.get_vocab(with_added_tokens=False).items():
            if id < self.text_size:
                tokens[id] = token
        values = {ord(letter): byte for byte, letter in byte_letters().items()}
        letters = "".join(tokens).translate(values).encode("latin-1")
        self._bytes = np.frombuffer(letters, np.uint8), np.cumsum([0, *map(len, tokens)])
        return tokens

    def _byte_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of all text tokens, concatenated, and starts (text_size + 1,)."""
        if self._bytes is None:
            self._tokens()
        return self._bytes


def _cuts_at_words(backend) -> bool:
    """Whether the tokenizer is byte-level BPE over Llama-3's words, without a normalizer."""
    if (
        backend.normalizer is not None
        or type(backend.model).__name__ != "BPE"
        or backend.pre_tokenizer is None
    ):
        return False
    steps = json.loads(backend.pre_tokenizer.__getstate__()).get("pretokenizers") or [{}]
    words = {
        "type": "Split",
        "pattern": {"Regex": WORD_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return len(steps) == 2 and steps[0] == words and letters.items() <= steps[1].items()


def _buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a string array, uint8 (B,), and the borders of its texts, int64 (N + 1,)."""
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, values = texts.buffers()
    at = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.zeros(0, np.uint8) if values is None else np.frombuffer(values, np.uint8)
    return data[at[0] : at[-1]], at - at[0]


def _piece_starts(data: np.ndarray, at: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(data) + 1, bool)
    letters = _LETTERS[data]
    starts[: max(len(data) - 1, 0)] = (data[:-1] == 32) & letters[1:]
    starts[at[1:-1] - (at[1:-1] > 0)] = False  # the letter would be that of the next text
    starts[1 : len(data)] |= letters[:-1] & _SIGNS[data[1:]]
    starts[at] = True
    return np.flatnonzero(starts[: len(data)])


def _ragged(places: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Indices of the runs places[i] .. places[i] + sizes[i] - 1 end to end; ends (N + 1,) are their
    borders.
    """
    return np.repeat(places - ends[:-1], sizes) + np.arange(ends[-1])


def _room(array: np.ndarray, size: int) -> np.ndarray:
    return (
        array
        if size <= len(array)
        else np.concatenate([array, np.zeros(max(size - len(array), len(array)), array.dtype)])
    )


def _inside_a_character(data: np.ndarray, at: np.ndarray) -> np.ndarray:
    return (data[at[at < len(data)]] & 0xC0) == 0x80


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strings(data: bytes, at: np.ndarray) -> pa.Array:
    return pa.StringArray.from_buffers(
        len(at) - 1, pa.py_buffer(at.astype(np.int32)), pa.py_buffer(data)
    )
