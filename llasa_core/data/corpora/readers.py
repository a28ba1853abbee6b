"""Readers of speech corpora: metadata tables, LibriSpeech and LibriTTS trees, manifests, recordings
with a text file each, Hugging Face datasets -> utterances.

They look at lists and names, not at audio: an utterance whose audio is missing, or a recording
without a transcript, is passed on as it is, for `prepare.prepare` to count; a line that cannot be
one is passed on as Unread. A missing, malformed or ambiguous list is an InputError with file and
line.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path

from llasa_core.data.corpora.manifests import (
    COLUMNS,
    SPLIT_NAMES,
    manifest_utterances,
    utterance_of,
)
from llasa_core.data.corpora.recordings import KNOWN_SUFFIXES, Recordings, id_of, located
from llasa_core.data.corpora.tables import read_table
from llasa_core.errors import InputError, needs_extra
from llasa_core.files import parse_object, read_bytes, text_lines
from llasa_core.manifest import SPLITS, Unread, Utterance

_LISTS = (".csv", ".tsv", ".psv", ".txt", ".list", ".lst")  # suffixes of tables

_JSON = (".jsonl", ".json", ".ndjson")

_TEXTS = (".txt", ".lab", ".json", ".normalized.txt")  # of the text next to a recording


def read_corpus(
    source: str | Path,
    layout: str = "auto",
    speaker: str | None = None,
    language: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Utterance]:
    """The utterances of a corpus, in a fixed order.

    Layouts: "table" (also "ljspeech"), a list such as metadata.csv (`tables`) with its recordings
    next to or below it; "libritts", a tree speaker/chapter of LibriTTS (ID.normalized.txt) or
    LibriSpeech (ID.trans.txt), whose own train, dev and test parts are kept; "jsonl", a manifest
    (`manifests`), or a folder of train, dev and test.jsonl; "pairs", recordings with ID.txt,
    ID.lab or ID.json next to each; "hf", a Hugging Face dataset: a folder (of `save_to_disk`, or of
    data files) or a hub id, package `datasets`. `speaker` and `language` replace what the corpus
    says. `tell` is called with lines that say what was decided. Raises InputError where the source
    is not of that layout.
    """
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"layout {layout!r}: expected one of auto, {', '.join(LAYOUTS)}")
    path = Path(source)
    layout = _layout_of(path, str(source)) if layout == "auto" else layout
    if layout != "hf" and not path.exists():
        raise InputError(f"{source}: no such file or folder, expected a corpus of layout {layout}")
    tell = tell or (lambda line: None)
    utterances = LAYOUTS[layout](path, tell)
    tell(f"{source}: read as layout {layout}")
    for utterance in utterances:
        if not isinstance(utterance, Unread):
            spoken_by = utterance.speaker if speaker is None else speaker
            spoken_in = utterance.language if language is None else language
            utterance = replace(utterance, speaker=spoken_by, language=spoken_in)
        yield utterance


def _layout_of(path: Path, source: str) -> str:
    if path.is_file():
        if re.search(r"\.(tar|tar\.gz|tgz|parquet)$", path.name):
            raise InputError(f"{source}: expected a list; `llasa encode` reads tar and parquet")
        with path.open("rb") as file:
            start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return "jsonl" if path.suffix.lower() in _JSON or start in (b"{", b"[") else "table"
    if not path.exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            return "hf"
        raise InputError(f"{source}: no such file or folder, expected a corpus")
    if (path / "metadata.csv").is_file():
        return "table"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "hf"
    if any((path / f"{split}.jsonl").is_file() for split in SPLITS):
        return "jsonl"
    if next(_transcripts(path), None):
        return "libritts"
    for suffixes, layout in ((_LISTS[:3], "table"), (_JSON, "jsonl"), (_LISTS, "table")):
        if _lists(path, suffixes):
            return layout
    if next(path.rglob("*.parquet"), None):
        return "hf"
    if any(_texts_beside(file) for file in _recordings(path)):
        return "pairs"
    expected = "metadata.csv or another table, *.normalized.txt, *.trans.txt, *.jsonl, ID.txt or"
    raise InputError(
        f"{source}: no corpus of a known layout, expected {expected} ID.json next to recordings,"
        " state.json or *.parquet in it"
    )


def _lists(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder that may list its recordings: not the text or facts of one alone."""
    names = {file.stem for file in path.iterdir() if file.suffix.lower() in KNOWN_SUFFIXES}
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in suffixes]
    return [file for file in found if file.is_file() and file.stem not in names and _is_list(file)]


def _is_list(file: Path) -> bool:
    """Whether a file of a suffix that may mean anything (README.txt, config.json) is a list."""
    if file.suffix.lower() not in (".txt", ".json"):
        return True
    with file.open("rb") as opened:
        start = opened.read(2**16).decode("utf-8-sig", "replace")
    if file.suffix.lower() == ".json":
        return re.match(r'\s*(\[|\{[^\n]*")', start) is not None
    lines = [line for line in start.splitlines() if line.strip()]
    return bool(lines) and all("|" in line or "\t" in line for line in lines[:-1] or lines)


def _chosen(path: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, str | None]]:
    """(list, split) of a corpus: a file is the list; of a folder metadata.*, or train, dev and
    test, or the only one.
    """
    if path.is_file():
        return [(path, None)]
    lists = _lists(path, suffixes)
    if main := [file for file in lists if file.stem == "metadata"]:
        lists = main
    if len(lists) == 1:
        return [(lists[0], _split_named(lists[0]))]
    named = [(file, split) for file in lists if (split := _split_named(file))]
    if named and len({split for _, split in named}) == len(named):
        return sorted(named, key=lambda one: SPLITS.index(one[1]))
    names = ", ".join(file.name for file in lists[:4])
    raise InputError(
        f"{path}: lists {names}, expected one (name it instead of the folder), or one for each of"
        " train, dev and test"
        if lists
        else f"{path}: no list in it, expected a file *{', *'.join(suffixes[:3])}"
    )


def _split_named(file: Path) -> str | None:
    words = re.split(r"[\W_]+", file.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _tables(path: Path, tell: Callable[[str], None]) -> Iterator[Utterance]:
    lists = _chosen(path, _LISTS)
    recordings = Recordings(lists[0][0].parent)
    tables = []
    for listing, split in lists:
        table = read_table(listing, lambda name: _there(recordings, name))
        tell(table.said)
        tables.append((listing, split, table))
    for listing, split, table in tables:
        for number, row in table.rows:
            where = f"{listing}:{number}"
            name = row.get("audio") or row.get("id", "")
            file, reason = recordings.find(name)
            if reason in ("ambiguous_audio", "bad_path"):
                yield Unread(where, file, "", reason=reason, where=where)
                continue
            elsewhere = reason is None and re.match(r"[A-Za-z]:|[/\\]|\.\.", name)
            id = id_of(str(file) if elsewhere else name, recordings.folder)
            item = {"split": split, **{key: value for key, value in row.items() if value}}
            yield utterance_of(item, where, id=id, audio=file)


def _there(recordings: Recordings, name: str) -> bool:
    return bool(name) and recordings.find(name)[1] is None


def _recordings(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.suffix.lower() in KNOWN_SUFFIXES)


def _texts_beside(recording: Path) -> list[Path]:
    named = (recording.with_name(recording.stem + suffix) for suffix in _TEXTS)
    return [file for file in named if file.is_file()]


def _pairs(path: Path) -> Iterator[Utterance]:
    folder = path.resolve()
    for file in sorted(_recordings(folder)):
        item, where = {}, str(file)
        for beside in _texts_beside(file)[:1]:
            text = read_bytes(beside, 2**20).decode("utf-8-sig", "replace")
            item, where = {"text": text.strip()}, str(beside)
            if beside.suffix == ".json":
                item = parse_object(text, where)
        if file.parent not in (folder, folder / "wavs"):
            item = {"speaker": file.relative_to(folder).parts[0], **item}
        yield utterance_of(item, where, id=id_of(str(file), folder), audio=file)


def _libritts(path: Path) -> Iterator[Utterance]:
    chapters = sorted({transcript.parent for transcript in _transcripts(path)})
    if not chapters:
        raise InputError(
            f"{path}: no *.normalized.txt or *.trans.txt in it, expected a LibriSpeech or LibriTTS"
            " tree"
        )
    for chapter in chapters:
        texts = {}
        for listing in sorted(chapter.glob("*.trans.txt")):
            for number, line in text_lines(listing, "lines of an id, a space and a text"):
                id, _, text = line.strip().partition(" ")
                if not text.strip() or id in texts:
                    raise InputError(
                        f"{listing}:{number}: {line[:60]!r}, expected a new id, a space and a text"
                    )
                texts[id] = text.strip()
        for listing in sorted(chapter.glob("*.normalized.txt")):
            lines = [line.strip() for _, line in text_lines(listing, "a transcript")]
            texts[listing.name.removesuffix(".normalized.txt")] = " ".join(lines)
        recordings = {
            file.stem for file in chapter.iterdir() if file.suffix.lower() in KNOWN_SUFFIXES
        }
        folder, speaker, split = (
            chapter.resolve(),
            chapter.resolve().parent.name,
            _split_in(chapter, path),
        )
        for id in sorted(texts.keys() | recordings):
            yield Utterance(id, _audio_of(folder, id), texts.get(id, ""), speaker, split=split)


def _transcripts(path: Path) -> Iterator[Path]:
    return chain(path.rglob("*.trans.txt"), path.rglob("*.normalized.txt"))


def _split_in(chapter: Path, root: Path) -> str | None:
    """The split that a folder such as train-clean-100 or dev-other on the way from the corpus to
    the chapter names.
    """
    for name in (root.resolve().name, *chapter.resolve().relative_to(root.resolve()).parts):
        if named := re.match(r"(train|dev|test)\b", name):
            return named[1]
    return None


def _audio_of(folder: Path, id: str) -> Path:
    """The recording of an id with whatever suffix is there; ID.wav if there is none."""
    for suffix in KNOWN_SUFFIXES:
        if (folder / f"{id}{suffix}").is_file():
            return folder / f"{id}{suffix}"
    return folder / f"{id}.wav"


def _jsonl(path: Path) -> Iterator[Utterance]:
    for listing, split in _chosen(path, _JSON):
        recordings = cache(partial(Recordings, listing.parent))
        for utterance in located(manifest_utterances(listing), recordings):
            if utterance.split is None and split and not isinstance(utterance, Unread):
                utterance = replace(utterance, split=split)
            yield utterance


def _hugging_face(path: Path, source: str) -> Iterator[Utterance]:
    what = source if path.exists() else f"{source}: no such folder, and as a dataset of the hub"
    with needs_extra(what, "datasets", "datasets"):
        import datasets

    try:
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        loaded = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(source)
    except Exception as error:  # datasets and the hub client raise kinds of their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{what}: cannot be loaded by the package datasets ({reason})") from None
    for name, part in (
        loaded.items() if isinstance(loaded, datasets.DatasetDict) else [("", loaded)]
    ):
        yield from _hugging_face_part(part, name, source)


def _hugging_face_part(part, name: str, source: str) -> Iterator[Utterance]:
    import datasets

    there = part.column_names
    columns = {
        key: next((name for name in names if name in there), None) for key, names in COLUMNS.items()
    }
    audio = next(
        (key for key, feature in part.features.items() if isinstance(feature, datasets.Audio)), None
    )
    audio = "audio" if audio is None and "audio" in there else audio
    if audio is None or columns["text"] is None:
        raise InputError(
            f"{source}: columns {', '.join(there)}, expected audio and {'/'.join(COLUMNS['text'])}"
        )
    if isinstance(part.features[audio], datasets.Audio):
        # Our own decoder reads the audio, as everywhere.
        part = part.cast_column(audio, datasets.Audio(decode=False))
    split = SPLIT_NAMES.get(name.split(".")[0])
    for number, row in enumerate(part):
        item = {key: row[column] for key, column in columns.items() if column}
        where = f"{name or 'row'}-{number:08d}"
        found = {**item, "text": item["text"] or "", "split": split}
        yield utterance_of(found, where, id=where, audio=_hugging_face_audio(row[audio]))


def _hugging_face_audio(value) -> Path | bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    return value if isinstance(value, bytes) else Path(value).absolute()


LAYOUTS: dict[str, Callable[[Path, Callable[[str], None]], Iterator[Utterance | Unread]]] = {
    "table": _tables,
    "ljspeech": _tables,
    "libritts": lambda path, tell: _libritts(path),
    "jsonl": lambda path, tell: _jsonl(path),
    "pairs": lambda path, tell: _pairs(path),
    "hf": lambda path, tell: _hugging_face(path, str(path)),
}
