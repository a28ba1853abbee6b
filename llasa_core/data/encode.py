"""Audio -> codes: a source becomes a codes dataset (format: `dataset`), part by part, resumable
and in shards.

Shard I of N makes the parts p with p % N == I; the finished folder is the same, byte for byte,
whatever N and the number of workers were and however often the work was stopped. Worker processes
read, decode and check while the codec computes and a thread writes. Codes are those of each
recording alone: only equal lengths ever share a batch.
"""

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llasa_core.audio import decode_audio
from llasa_core.codecs.interface import Codec, other_weights
from llasa_core.data.corpora.prepare import Limits, check_utterance
from llasa_core.data.corpora.segmentation import Segmenter
from llasa_core.data.dataset import finish, part_info, part_name, part_size, write_part
from llasa_core.data.sources import open_source
from llasa_core.errors import InputError
from llasa_core.files import full_disk
from llasa_core.manifest import Unread, Utterance, checked
from llasa_core.processes import worker_pool

WINDOW_SECONDS = 600.0  # of audio in memory, among which utterances of equal length meet

CHUNK = 8  # utterances that a worker decodes at a time


@dataclass
class _Part:
    """A part in progress: utterances in order, each with a drop reason or None, and rows."""

    number: int
    source: str
    audio: str | None = None  # fingerprint of the files, taken before they are read
    known: dict[str, str | None] = field(default_factory=dict)
    rows: dict[str, dict] = field(default_factory=dict)
    compared: int = 0  # codes also made exactly, and how many of them differ
    changed: int = 0


def encode_manifest(
    manifest: str | Path,
    out: str | Path,
    codec: Codec,
    shards: int = 1,
    shard: int = 0,
    rows_per_part: int = 1000,
    batch_seconds: float = 60.0,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int = 0,
    segmenter: Segmenter | None = None,
) -> dict | None:
    """Encode a manifest, tar shards or parquet files with audio (`open_source`) into the codes
    dataset `out`.

    A stopped extraction resumes with the missing parts. What fails
    `check_utterance` is left out, counted by reason and listed in dropped.jsonl. `segmenter` cuts
    recordings that are too long at silence, and their text with them. batch_seconds: audio handed
    to the codec at once, which bounds its memory and changes no code. `workers`: processes that
    read and decode (0: this one). `progress` is called with the number of utterances just finished.

    Returns the content of meta.json, or None while other shards still have parts to make (the last
    one writes it). Raises InputError for a bad source, a full disk, or an `out` made from something
    else or by another codec: by its weights, where the parts and the codec tell them, and by names
    and sizes of a manifest's audio files.
    """
    out, limits = Path(out), limits or Limits()
    if not 0 <= shard < shards or rows_per_part < 1 or batch_seconds <= 0:
        raise InputError(
            f"shard {shard} of {shards}, {rows_per_part} rows a part: expected 0 <= shard < shards,"
            " positive rows"
        )
    if not codec.codebook_size:
        raise InputError(f"codec {codec.name} has no codebook: a dataset holds codes, not packets")
    source = open_source(manifest, rows_per_part)
    settings = _settings(codec, limits, segmenter is not None)
    work = _Work(source, out, settings, codec, batch_seconds, limits, workers, segmenter)
    try:
        out.mkdir(parents=True, exist_ok=True)
        todo = []
        for number in range(shard, source.parts, shards):
            info, path = {**settings, "source": source.fingerprint(number)}, out / part_name(number)
            if path.exists():
                made = {"limits": settings.get("limits"), "audio": source.audio(number)}
                refuse_another(path, info | made, codec)
                if progress:
                    progress(part_size(path))
            else:
                todo.append(_Part(number, info["source"]))
        _make_parts(work, todo, progress)
        if not all((out / part_name(number)).exists() for number in range(source.parts)):
            return None
        return finish(out, source.parts, _settings_of_all(work))
    except OSError as error:
        raise full_disk(error, out) from None


@dataclass(frozen=True)
class _Work:
    """What makes parts: their source, where they go, and how they are encoded."""

    source: Any
    out: Path
    settings: dict  # of every part
    codec: Codec
    batch_seconds: float
    limits: Limits
    workers: int
    segmenter: Segmenter | None

    def publish(self, part: _Part) -> None:
        """Write a part whose utterances are all encoded."""
        dropped = [(name, reason) for name, reason in part.known.items() if reason]
        info = {**self.settings, "source": part.source, "dropped": dropped}
        info |= {"audio": part.audio} if part.audio else {}
        if part.compared:
            info["bf16"] = {"compared": part.compared, "changed": part.changed}
        rows = [part.rows[name] for name in part.known if name in part.rows]
        write_part(self.out / part_name(part.number), rows, info)

    def pieces(
        self, part: _Part, results: list
    ) -> Iterator[tuple[Utterance, np.ndarray, np.ndarray | None]]:
        """What is to be encoded of decoded utterances (`_decode`), cut where they are too long;
        each is noted in the part, with why it is left out.
        """
        front = self.codec.front if self.workers else None
        for utterance, wave, reason, features in results:
            found = [(utterance, wave, reason)]
            if reason == "too_long" and self.segmenter is not None:
                found = self.segmenter.cut(utterance, wave, self.codec.sample_rate, self.limits)
            for piece, cut, why in found:
                if piece.id in part.known:
                    raise InputError(
                        f"{self.source.name}: id {piece.id!r} occurs twice, expected unique ids"
                    )
                part.known[piece.id] = why
                if why is None:
                    made = front(cut) if front is not None and features is None else features
                    yield piece, cut, made


def _settings(codec: Codec, limits: Limits, segmented: bool) -> dict:
    """What every part of a dataset is made with."""
    settings = {
        "codec": codec.name,
        "codebook_size": codec.codebook_size,
        "frame_rate": codec.frame_rate,
    }
    settings |= {"precision": codec.precision} if codec.precision else {}
    settings |= codec.weights
    settings |= {"segmented": True} if segmented else {}
    if others := asdict(limits).items() - asdict(Limits()).items():
        settings["limits"] = dict(sorted(others))
    return settings


def _settings_of_all(work: _Work) -> dict:
    """What meta.json says of all parts; InputError where one was made from something else."""
    settings, made_by = dict(work.settings), set()
    for number in range(work.source.parts):
        wanted = {**work.settings, "source": work.source.fingerprint(number)}
        found = refuse_another(work.out / part_name(number), wanted, work.codec)
        made_by.add(found.get("codec_fingerprint"))
    if made_by != {work.codec.fingerprint}:
        # Some part is older and tells no weights, or is of a codec with another decoder.
        settings.pop("codec_fingerprint", None)
    elif work.codec.fingerprint and work.codec.folder:
        settings["codec_folder"] = work.codec.folder
    if None in made_by:
        settings.pop("codes_fingerprint", None)
    return settings


def _make_parts(work: _Work, todo: Sequence[_Part], progress: Callable[[int], None] | None) -> None:
    """Make the parts `todo`: decode audio ahead of the codec, across parts, and write behind it."""
    codec, workers = work.codec, work.workers
    window: list[tuple[Utterance, np.ndarray, np.ndarray | None]] = []
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(worker_pool(workers)) if workers and todo else None
        writer = stack.enter_context(ThreadPoolExecutor(1))
        writing: Future | None = None
        front = codec.front if workers else None
        settings = (codec.sample_rate, work.limits, work.segmenter is not None, front)
        for part, results, last in _decoded(work.source, todo, settings, pool, workers):
            window += work.pieces(part, results)
            samples = sum(len(wave) for _, wave, _ in window)
            if samples >= WINDOW_SECONDS * codec.sample_rate or last:
                _encode_window(part, window, codec, work.batch_seconds * codec.sample_rate)
                window = []
            if progress:
                progress(len(results))
            if last:
                if writing is not None:
                    # one part is written while the next is made: no more wait in memory
                    writing.result()
                writing = writer.submit(work.publish, part)
        if writing is not None:
            writing.result()


def _encode_window(part: _Part, window: list, codec: Codec, most_samples: float) -> None:
    """Codes of the utterances of a window to the rows of their part."""
    first = next(iter(part.known), None)
    for batch in _batches(window, most_samples):
        waves, features = [wave for _, wave, _ in batch], [made for _, _, made in batch]
        found = (
            codec.encode(waves) if features[0] is None else codec.encode(waves, features=features)
        )
        for (utterance, wave, _), codes in zip(batch, found, strict=True):
            if not len(codes):
                part.known[utterance.id] = "too_short"
                continue
            row = {
                "id": utterance.id,
                "text": utterance.text,
                "codes": codes,
                "speaker": utterance.speaker,
            }
            part.rows[utterance.id] = row | {
                "language": utterance.language,
                "seconds": len(wave) / codec.sample_rate,
            }
            if codec.exact is not None and (
                utterance.id == first or chosen_to_compare(utterance.id)
            ):
                part.compared += len(codes)
                part.changed += int((codec.exact.encode([wave])[0] != codes).sum())


def chosen_to_compare(id: str) -> bool:
    """2 % of utterances, by id; with the first of each part, those on which bf16 is compared."""
    return hashlib.sha256(id.encode()).digest()[0] < 6


def _decoded(
    source, todo: Sequence[_Part], settings: tuple, pool, workers: int
) -> Iterator[
    tuple[_Part, list[tuple[Utterance, np.ndarray, str | None, np.ndarray | None]], bool]
]:
    """(part, its next utterances as from `_decode`, whether these were the last), decoded ahead."""
    waiting: deque = deque()

    def chunks():
        for part in todo:
            part.audio = source.audio(part.number)
            utterances = iter(source.utterances(part.number))
            chunk = list(islice(utterances, CHUNK))
            empty = not chunk
            while chunk:
                following = list(islice(utterances, CHUNK))
                yield part, chunk, not following
                chunk = following
            if empty:
                yield part, [], True

    def answered(part: _Part, chunk: list[Utterance], answer, last: bool):
        try:
            return part, answer.result() if pool is not None else answer, last
        except BrokenProcessPool:
            between = f"{chunk[0].id} and {chunk[-1].id}" if chunk else part.source
            raise InputError(
                f"{source.name}: a process that decoded audio was killed, near {between}; "
                "run again to resume"
            ) from None

    for part, chunk, last in chunks():
        task = (chunk, *settings)
        waiting.append(
            (part, chunk, pool.submit(_decode, *task) if pool is not None else _decode(*task), last)
        )
        if len(waiting) > (4 * workers if pool is not None else 0):
            yield answered(*waiting.popleft())
    while waiting:
        yield answered(*waiting.popleft())


def _decode(
    utterances: list[Utterance],
    sample_rate: int,
    limits: Limits,
    segmented: bool,
    front: Callable | None,
) -> list[tuple[Utterance, np.ndarray, str | None, np.ndarray | None]]:
    """Utterances (without audio bytes), waves at `sample_rate`, drop reasons, and features."""
    found, most = [], None if segmented else limits.max_seconds + 1
    for utterance in map(checked, utterances):
        if isinstance(utterance, Unread):
            wave, reason = np.zeros(0, np.float32), utterance.reason
        else:
            wave, reason = decode_audio(utterance.audio, sample_rate, most)
            reason = reason or check_utterance(utterance, wave, limits, sample_rate)
        kept = wave if reason is None or (reason == "too_long" and segmented) else wave[:0]
        bare = Utterance(utterance.id, "", utterance.text, utterance.speaker, utterance.language)
        found.append(
            (bare, kept, reason, front(kept) if front is not None and reason is None else None)
        )
    return found


def _batches(window: list, most_samples: float) -> Iterator[list]:
    """By length, so that codecs see utterances of equal length together; at least one each."""
    batch, samples = [], 0
    for item in sorted(window, key=lambda item: len(item[1])):
        if batch and samples + len(item[1]) > most_samples:
            yield batch
            batch, samples = [], 0
        batch.append(item)
        samples += len(item[1])
    if batch:
        yield batch


def refuse_another(path: Path, wanted: dict, codec: Codec | None = None) -> dict:
    """The `info` of a part; InputError where it was made from something else, or by another codec.

    A missing fingerprint on either side matches anything: older parts do not record it. `codec`:
    the one at hand, which can compare more than records do.
    """
    found = part_info(path)
    differ = other_weights(found, wanted) if codec is None else codec.other_weights(found)
    for key, value in wanted.items():
        if found.get(key) == value or key == "codec_folder":
            continue
        if key == "audio" and None in (found.get(key), value):
            continue
        if key in ("codec_fingerprint", "codes_fingerprint") and differ is None:
            continue
        weights = (
            differ and f"other weights of codec {wanted['codec']}: {differ[0]}, not {differ[1]}"
        )
        what = {
            "source": "other utterances (or rows_per_part)",
            "codec_fingerprint": weights,
            "codes_fingerprint": weights,
            "audio": "audio files of other names or sizes; delete it to encode them anew, or",
        }.get(key, f"{key} {found.get(key)}, not {value}")
        raise InputError(
            f"{path}: made with {what}{' ' if what.endswith('or') else '; '}choose another folder"
        )
    return found
