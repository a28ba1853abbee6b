"""The token ids of all texts of a codes dataset, made once for a tokenizer and kept beside a mapped dataset.

A corpus of ten million texts takes a tokenizer a quarter of an hour and is the same at every start of every process.
Files: {key}.text-ids.npy int32 (T,) and {key}.text-borders.npy int64 (N + 1,), the key a hash of parts and tokenizer.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from llasa_core.bulk_text import BulkText
from llasa_core.codes_reading import CodesDataset, NumberedNames
from llasa_core.errors import InputError

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
    ids_path, borders_path = (dataset.cache / f"{key}.text-{name}.npy" for name in ("ids", "borders"))
    if not borders_path.exists():
        with open(dataset.cache / "unpack.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not borders_path.exists():  # another process may just have done it
                _write(dataset, tokenizer, ids_path, borders_path)
    try:
        return np.load(ids_path, "r", allow_pickle=False), np.load(borders_path, "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{ids_path}: cannot be read ({error}); delete it, it is made again") from None


def _write(dataset: CodesDataset, tokenizer, ids_path: Path, borders_path: Path) -> None:
    """Both files, the borders last: where they are, the ids are whole."""
    raw, sizes = ids_path.with_suffix(".raw"), []
    with raw.open("wb") as file:
        for ids, one in _encoded(dataset, tokenizer):
            file.write(ids)
            sizes.append(one)
    borders = _borders(np.concatenate([np.zeros(0, np.int64), *sizes]))
    whole = np.lib.format.open_memmap(ids_path.with_suffix(".part"), "w+", np.int32, (max(int(borders[-1]), 1),))
    if borders[-1]:
        whole[:] = np.memmap(raw, np.int32, "r")
    whole.flush()
    raw.unlink()
    ids_path.with_suffix(".part").replace(ids_path)
    with borders_path.with_suffix(".part").open("wb") as file:
        np.save(file, borders, allow_pickle=False)
    borders_path.with_suffix(".part").replace(borders_path)


def _encoded(dataset: CodesDataset, tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and sizes of the texts, a block at a time."""
    bulk = BulkText(tokenizer)
    for number, texts in enumerate(dataset.column("text")):
        for first in range(0, len(texts), BLOCK):
            block = texts.slice(first, BLOCK)
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(block)), 0)
            if pc.any(blank).as_py():
                at = first + blank.to_pylist().index(True)
                name = dataset.column("id")[number][at]
                raise InputError(f"text: expected a text with words in it, got {texts[at].as_py()!r} ({name})")
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
