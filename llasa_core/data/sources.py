"""What `llasa encode` reads, in numbered parts: a manifest, WebDataset tars, or parquet with audio.

Paths or URLs. A part is a slice of the manifest, one tar, or one row group; its fingerprint is
known before its audio is read, so that a stopped extraction can resume. Tars and parquet files are
streamed, whatever sizes their headers announce. What is not read is reported with a reason.
"""

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from llasa_core.data.corpora.readers import AUDIO_SUFFIXES, COLUMNS
from llasa_core.errors import InputError
from llasa_core.files import (
    brief,
    expand,
    is_url,
    join,
    listing,
    open_binary,
    parse_object,
    size_of,
)
from llasa_core.manifest import Unread, Utterance, read_manifest

MOST_BYTES = 2**30  # of one recording

_READ = (*AUDIO_SUFFIXES, ".txt", ".json")


def tar_samples(
    archive: tarfile.TarFile, path: str
) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(name, {suffix: content}) of each sample with audio; (member, reason) of each member that
    belongs to none.

    Reasons: "missing_audio" of a text alone, "unknown_suffix", "link". Hidden members and folders
    are passed over, and so are further ones of a sample with audio (of a.wav: a.speaker.txt,
    a.cls). InputError, which names `path`, where a text stands apart from its audio or a member is
    larger than MOST_BYTES.
    """
    key, around, members = None, None, {}  # of the sample being read; its name up to the first dot
    # Texts with further dots: of audio still to come, or next to a text with fewer dots.
    ahead: dict[str, dict[str, bytes]] = {}
    heard: set[str] = set()  # names with audio
    strays: list[tuple[str, str]] = []  # (member, reason) of the same name up to the first dot

    def finished() -> Iterator[tuple[str, dict[str, bytes]]]:
        if any(suffix in members for suffix in AUDIO_SUFFIXES):
            heard.add(key)
            yield key, members
        else:
            astray(key, members)

    def astray(name: str | None, texts: dict[str, bytes]) -> None:
        if texts and name in heard:
            raise InputError(
                f"{path}: {name}: a text apart from its audio, expected members of one name side by"
                " side"
            )
        strays.extend((name + suffix, "missing_audio") for suffix in texts)

    def told() -> Iterator[tuple[str, str]]:
        for name, texts in ahead.items():
            astray(name, texts)
        for name, reason in strays:
            if heard.isdisjoint(_beginnings(name)):
                yield name, reason
        ahead.clear()
        strays.clear()

    for member in archive:
        if member.isdir() or PurePosixPath(member.name).name.startswith("."):
            continue
        here, suffix, first = _name(member.name)
        read = member.isfile() and suffix in _READ
        wait = read and here not in (first, key) and suffix not in AUDIO_SUFFIXES
        mine = read and not wait
        if first != around or (mine and (here != key or suffix in members)):
            yield from finished()
            if first != around:
                yield from told()
            key, around, members = (here, first, ahead.pop(here, {})) if mine else (None, first, {})
        if not read:
            strays.append((member.name, "unknown_suffix" if member.isfile() else "link"))
            continue
        if member.size > MOST_BYTES:
            raise InputError(
                f"{path}: {member.name} has {member.size} bytes, expected at most {MOST_BYTES}"
            )
        content = archive.extractfile(member).read()
        (ahead.setdefault(here, {}) if wait else members)[suffix] = content
    yield from finished()
    yield from told()


def _name(member: str) -> tuple[str, str, str]:
    """The name of a member's sample, its suffix, and the name up to the first dot, where
    WebDataset's ends.
    """
    path = PurePosixPath(member)
    stem, _, suffix = path.name.partition(".")
    first = str(path.with_name(stem))
    if f".{suffix.lower()}" in _READ or path.suffix.lower() not in _READ:
        return first, f".{suffix.lower()}", first
    return str(path.with_suffix("")), path.suffix.lower(), first


def _beginnings(member: str) -> Iterator[str]:
    """The names of the samples that a member can belong to: it, cut at each of its dots."""
    path = PurePosixPath(member)
    places = (at for at, letter in enumerate(path.name) if letter == "." and at)
    return (str(path.with_name(path.name[:at])) for at in places)


_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")


class ManifestSource:
    """Parts of `rows_per_part` utterances of a manifest."""

    def __init__(self, path: str | Path, rows_per_part: int):
        self.name = str(path)
        self._folder = (
            self.name.rpartition("/")[0] if is_url(path) else str(Path(path).parent.resolve())
        )
        self._utterances, self._rows = read_manifest(path), rows_per_part
        if not self._utterances:
            raise InputError(f"{path}: no utterances, expected at least one")
        self.rows = len(self._utterances)
        self.parts = -(-self.rows // rows_per_part)

    def fingerprint(self, part: int) -> str:
        """16 hex digits over the ids, texts, speakers and languages of a part."""
        digest = hashlib.sha256()
        for utterance in self.utterances(part):
            fields = [utterance.id, utterance.text, utterance.speaker, utterance.language]
            digest.update(json.dumps(fields).encode())
        return digest.hexdigest()[:16]

    def audio(self, part: int) -> str | None:
        """16 hex digits over the names and sizes of a part's audio files; None where none of them
        is there any more.

        Names are relative to the manifest, or the last one alone outside its folder, and times are
        left out, so a copied corpus is the same; a file that changed within its size is not seen.
        Of URLs the names count alone: a size would take a request for each.
        """
        digest, there = hashlib.sha256(), False
        for utterance in self.utterances(part):
            path, size = str(utterance.audio), None
            inside = path.startswith(f"{self._folder}/")
            name = path[len(self._folder) + 1 :] if inside else path.rpartition("/")[2]
            if not is_url(path):
                try:
                    size = os.stat(path).st_size
                except (OSError, ValueError):
                    size = -1
            there = there or size != -1
            digest.update(json.dumps([name, size]).encode())
        return digest.hexdigest()[:16] if there else None

    def utterances(self, part: int) -> Iterator[Utterance]:
        """The utterances of a part, in order."""
        return iter(self._utterances[part * self._rows : (part + 1) * self._rows])


class TarSource:
    """One part a tar; neighbouring members of one name are one utterance, as WebDataset has it
    (tar_samples).

    audio: .wav, .flac, .mp3, .ogg or .opus; text: .txt, or .json with text and perhaps speaker,
    language and id. Members that belong to no audio are Unread.
    """

    def __init__(self, paths: list[str]):
        self.name, self._paths, self.parts, self.rows = paths[0], paths, len(paths), None

    def fingerprint(self, part: int) -> str:
        """16 hex digits over the name and size of a tar."""
        return _of_file(self._paths[part])

    def audio(self, part: int) -> None:
        """None: the audio is inside the tar, whose size the fingerprint has."""

    def utterances(self, part: int) -> Iterator[Utterance]:
        """The utterances of a tar; InputError, which names it, where it is damaged or an id occurs
        twice.
        """
        path, seen = self._paths[part], set()
        try:
            with open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                for key, found in tar_samples(archive, path):
                    unread = isinstance(found, str)
                    utterance = (
                        Unread(_safe(key), b"", "", reason=found)
                        if unread
                        else _tar_utterance(key, found, path)
                    )
                    if utterance.id in seen:
                        raise InputError(
                            f"{path}: id {utterance.id!r} occurs twice, expected unique ids"
                        )
                    seen.add(utterance.id)
                    yield utterance
        except (
            tarfile.TarError,
            EOFError,
            OSError,
            zlib.error,
            ValueError,
            OverflowError,
        ) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: no whole tar ({brief(error)}), expected audio and text members"
            ) from None


class ParquetSource:
    """One part a row group of parquet files that hold audio, as Hugging Face datasets are
    published.
    """

    def __init__(self, paths: list[str]):
        self.name = paths[0]
        self._groups = [
            (path, group)
            for path in paths
            for group in range(self._open(path).metadata.num_row_groups)
        ]
        self.parts, self.rows = (
            len(self._groups),
            sum(self._open(path).metadata.num_rows for path in paths),
        )
        if not self.parts:
            raise InputError(f"{self.name}: no rows, expected at least one")

    def fingerprint(self, part: int) -> str:
        """16 hex digits over a file's name and size and the number of the row group."""
        path, group = self._groups[part]
        return hashlib.sha256(f"{_of_file(path)}/{group}".encode()).hexdigest()[:16]

    def audio(self, part: int) -> None:
        """None: the audio is inside the file, whose size the fingerprint has; files that a column
        names go unseen.
        """

    def utterances(self, part: int) -> Iterator[Utterance]:
        """The utterances of a row group, a few in memory at a time."""
        import pyarrow as pa

        path, group = self._groups[part]
        stem, number = PurePosixPath(path).stem, 0
        try:
            file = self._open(path)
            columns = _columns_of(file.schema_arrow, path)
            wanted = sorted(set(columns.values()))
            for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield _parquet_utterance(row, columns, f"{stem}-{group:05d}-{number:08d}", path)
                    number += 1
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: row group {group} cannot be read ({brief(error)})") from None

    @staticmethod
    def _open(path: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(open_binary(path), pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as parquet ({brief(error)})") from None


def open_source(spec: str | Path, rows_per_part: int = 1000) -> Any:
    """The source that a path, URL or pattern names: by suffix .tar or .parquet, a folder of these,
    else a manifest.

    It has `name`, `parts` (their number), `rows` (None: not known), and for each part
    `fingerprint(part)`, `audio(part)` (a fingerprint of files outside it) and `utterances(part)`.
    InputError if it cannot be read.
    """
    if rows_per_part < 1:
        raise InputError(f"{rows_per_part} rows a part, expected at least 1")
    names = [spec] if not is_url(spec) and Path(spec).is_file() else expand(spec)
    if len(names) == 1 and not re.search(r"\.\w+$", str(names[0])):
        inside = [listing(names[0], suffix) for suffix in (".tar", ".tar.gz", ".parquet")]
        names = next((found for found in inside if found), names)
    names = [str(name) for name in names]
    if all(_TAR.search(name) for name in names):
        return TarSource(names)
    if all(name.endswith(".parquet") for name in names):
        return ParquetSource(names)
    if len(names) > 1:
        raise InputError(
            f"{spec}: {len(names)} files, {names[0]} first; expected one manifest, tars or parquet"
            " files"
        )
    return ManifestSource(spec, rows_per_part)


def _of_file(path: str) -> str:
    try:
        size = size_of(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected a file to encode") from None
    return hashlib.sha256(f"{PurePosixPath(path).name} {size}".encode()).hexdigest()[:16]


def _tar_utterance(key: str, members: dict[str, bytes], path: str) -> Utterance:
    audio = next((members[suffix] for suffix in AUDIO_SUFFIXES if suffix in members), b"")
    try:
        texts = {
            suffix: members[suffix].decode() for suffix in (".json", ".txt") if suffix in members
        }
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {key}: byte {error.start} is no UTF-8, expected text") from None
    facts = parse_object(texts[".json"], f"{path}: {key}.json") if ".json" in texts else {}
    if ".txt" in texts:
        facts["text"] = texts[".txt"].strip()
    return _utterance(facts, key, audio)


def _columns_of(schema, path: str) -> dict[str, str]:
    there = schema.names
    columns = {
        key: next((name for name in names if name in there), None) for key, names in COLUMNS.items()
    }
    audio = [
        field.name for field in schema if field.name == "audio" or "bytes" in _fields(field.type)
    ]
    if not audio or columns["text"] is None:
        raise InputError(
            f"{path}: columns {', '.join(there)[:80]}, expected audio and"
            f" {'/'.join(COLUMNS['text'])}"
        )
    return {"audio": audio[0], **{key: name for key, name in columns.items() if name}}


def _fields(kind) -> list[str]:
    import pyarrow as pa

    return (
        [kind.field(number).name for number in range(kind.num_fields)]
        if pa.types.is_struct(kind)
        else []
    )


def _parquet_utterance(row: dict, columns: dict[str, str], name: str, path: str) -> Utterance:
    audio = row[columns["audio"]]
    if isinstance(audio, dict):
        audio = audio.get("bytes") or audio.get("path") or b""
    if isinstance(audio, str):
        audio = audio if is_url(audio) else join(path.rpartition("/")[0] or ".", audio)
    elif not isinstance(audio, bytes):
        raise InputError(
            f"{path}: column {columns['audio']} holds {type(audio).__name__}, expected bytes or a"
            " path"
        )
    return _utterance(
        {key: row[column] for key, column in columns.items() if key != "audio"}, name, audio
    )


def _utterance(facts: dict, name: str, audio) -> Utterance:
    text, speaker, language = (facts.get(key) for key in ("text", "speaker", "language"))
    id = name if facts.get("id") in (None, "") else str(facts["id"])
    return Utterance(
        _safe(id),
        audio,
        str(text or ""),
        "" if speaker is None else str(speaker),
        str(language or "en"),
    )


def _safe(id: str) -> str:
    return re.sub(r"[^\w.+@=,-]", "_", id)
