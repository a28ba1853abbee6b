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
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from llasa_core.audio import AUDIO_SUFFIXES
from llasa_core.data.corpora.manifests import COLUMNS, manifest_utterances, utterance_of
from llasa_core.data.corpora.recordings import Recordings, located
from llasa_core.data.tar_samples import MOST_BYTES, tar_samples
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
from llasa_core.manifest import Unread, Utterance, printable

_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")


class ManifestSource:
    """Parts of `rows_per_part` utterances of a manifest."""

    def __init__(self, path: str | Path, rows_per_part: int):
        self.name = str(path)
        self._folder = (
            self.name.rpartition("/")[0] if is_url(path) else str(Path(path).parent.resolve())
        )
        self._recordings = cache(partial(Recordings, self._folder))
        self._utterances, self._rows, lines = [], rows_per_part, {}
        for number, utterance in enumerate(manifest_utterances(path), start=1):
            first = lines.setdefault(utterance.id, number)
            if first != number:
                raise InputError(
                    f"{path}:{number}: id {utterance.id!r} is that of line {first} too, expected"
                    " unique ids"
                )
            self._utterances.append(utterance)
        self.rows = len(self._utterances)
        self.parts = -(-self.rows // rows_per_part)

    def fingerprint(self, part: int) -> str:
        """16 hex digits over the ids, texts, speakers and languages of a part."""
        digest = hashlib.sha256()
        for utterance in self._utterances[part * self._rows : (part + 1) * self._rows]:
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
        found = self._utterances[part * self._rows : (part + 1) * self._rows]
        return iter(found) if is_url(self.name) else located(found, self._recordings)


class TarSource:
    """One part a tar; members of one name are one utterance, as WebDataset has it (`tar_samples`).

    Audio: what libsndfile reads; text: .txt, or .json with text and perhaps speaker, language and
    id. Members that belong to no audio are Unread.
    """

    def __init__(self, paths: list[str]):
        self.name, self._paths, self.parts, self.rows = paths[0], paths, len(paths), None

    def fingerprint(self, part: int) -> str:
        """16 hex digits over the name and size of a tar."""
        return _of_file(self._paths[part])

    def audio(self, part: int) -> None:
        """None: the audio is inside the tar, whose size the fingerprint has."""

    def utterances(self, part: int) -> Iterator[Utterance]:
        """The utterances of a tar; InputError names it if damaged or with a duplicate id."""
        path, seen = self._paths[part], set()
        try:
            for name, found in tar_samples(path):
                if isinstance(found, str):
                    utterance = Unread(printable(name), b"", "", reason=found, where=path)
                else:
                    utterance = _tar_utterance(name, found, path)
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
    """One part a row group of parquet files with audio, as Hugging Face publishes datasets."""

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
        """None: audio in the file is in its fingerprint; files named by a column are not."""

    def utterances(self, part: int) -> Iterator[Utterance]:
        """The utterances of a row group, a few in memory at a time."""
        import pyarrow as pa

        path, group = self._groups[part]
        stem, number = PurePosixPath(path).stem, 0
        try:
            file = self._open(path)
            columns = _columns_of(file.schema_arrow, path)
            wanted = sorted(set(columns.values()))
            rows = _rows_at_once(file.metadata.row_group(group), columns["audio"])
            if not rows:
                for number in range(file.metadata.row_group(group).num_rows):
                    name = f"{stem}-{group:05d}-{number:08d}"
                    yield Unread(name, b"", "", reason="too_large", where=f"{path}: {name}")
                return
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=wanted):
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
    if names[0].lower().endswith((".csv", ".tsv", ".psv")):
        raise InputError(f"{spec}: a table, expected a manifest, which `llasa prepare` makes of it")
    return ManifestSource(spec, rows_per_part)


def _of_file(path: str) -> str:
    try:
        size = size_of(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected a file to encode") from None
    return hashlib.sha256(f"{PurePosixPath(path).name} {size}".encode()).hexdigest()[:16]


def _rows_at_once(group, audio: str) -> int:
    """So many rows of a row group that memory holds few recordings, 16 at most; 0 where one alone
    is too large, or the column unpacks to what no audio does: more than 50 times its size.
    """
    chunks = [group.column(at) for at in range(group.num_columns)]
    chunks = [one for one in chunks if one.path_in_schema.partition(".")[0] == audio]
    unpacked = sum(one.total_uncompressed_size for one in chunks)
    packed = sum(one.total_compressed_size for one in chunks)
    each = unpacked // max(group.num_rows, 1)
    if each > MOST_BYTES or unpacked > max(MOST_BYTES, 50 * packed):
        return 0
    return min(max(2**26 // max(each, 1), 1), 16)


def _tar_utterance(name: str, members: dict[str, bytes], path: str) -> Utterance:
    audio = next((members[suffix] for suffix in AUDIO_SUFFIXES if suffix in members), b"")
    where = f"{path}: {name}"
    try:
        facts = parse_object(members.get(".json", b"{}").decode(), f"{where}.json")
        if ".txt" in members:
            facts["text"] = members[".txt"].decode().strip()
    except (UnicodeDecodeError, InputError):
        return Unread(printable(name), b"", "", reason="bad_text", where=where)
    return utterance_of(facts, where, id=name, audio=audio)


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
            f"{path}: columns {', '.join(there)[:80]}, "
            f"expected audio and {'/'.join(COLUMNS['text'])}"
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
    if len(audio) > MOST_BYTES and isinstance(audio, bytes):
        return Unread(name, b"", "", reason="too_large", where=f"{path}: {name}")
    facts = {key: row[column] for key, column in columns.items() if key != "audio"}
    return utterance_of(facts, f"{path}: {name}", id=name, audio=audio)
