"""Readers of speech corpora: LJSpeech, LibriSpeech and LibriTTS trees, JSON lines, Hugging Face
datasets -> utterances.

They look at lists and names, not at audio: an utterance whose audio is missing, or a recording
without a transcript, is passed on as it is, for `corpus.prepare` to count. A missing or malformed
list is an InputError with file and line.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.files import text_lines
from llasa_core.manifest import SPLITS, Utterance, manifest_lines

LAYOUTS = ("auto", "ljspeech", "libritts", "jsonl", "hf")

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")

COLUMNS = {
    "id": ("id", "utterance_id", "file_id", "segment_id"),
    "text": (
        "text",
        "normalized_text",
        "text_normalized",
        "transcription",
        "transcript",
        "sentence",
    ),
    "speaker": ("speaker", "speaker_id", "speaker_name", "client_id"),
    "language": ("language", "lang", "locale"),
}


def read_corpus(
    source: str | Path,
    layout: str = "auto",
    speaker: str | None = None,
    language: str | None = None,
) -> Iterator[Utterance]:
    """The utterances of a corpus, in a fixed order.

    Layouts: "ljspeech", a folder with metadata.csv (id|text or id|text|normalised text) and
    wavs/ID.wav (or .flac ..); "libritts", a tree speaker/chapter of LibriTTS (ID.normalized.txt) or
    LibriSpeech (ID.trans.txt), whose own train, dev and test parts are kept; "jsonl", a manifest,
    or a folder of train, dev and test.jsonl; "hf", a Hugging Face dataset: a folder (of
    `save_to_disk`, or of data files) or a hub id, package `datasets`. `speaker` and `language`
    replace what the corpus says. Raises InputError where the source is not of that layout.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    path = Path(source)
    layout = _layout_of(path, str(source)) if layout == "auto" else layout
    if layout != "hf" and not path.exists():
        raise InputError(f"{source}: no such file or folder, expected a corpus of layout {layout}")
    if layout == "hf":
        utterances = _hugging_face(path, str(source))
    else:
        utterances = {"ljspeech": _ljspeech, "libritts": _libritts, "jsonl": _jsonl}[layout](path)
    for utterance in utterances:
        yield Utterance(
            utterance.id,
            utterance.audio,
            utterance.text,
            utterance.speaker if speaker is None else speaker,
            utterance.language if language is None else language,
            utterance.seconds,
            utterance.split,
        )


def _layout_of(path: Path, source: str) -> str:
    if path.is_file():
        return "ljspeech" if path.name == "metadata.csv" else "jsonl"
    if not path.exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            return "hf"
        raise InputError(f"{source}: no such file or folder, expected a corpus")
    if (path / "metadata.csv").is_file():
        return "ljspeech"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "hf"
    if any((path / f"{split}.jsonl").is_file() for split in SPLITS):
        return "jsonl"
    if next(_transcripts(path), None):
        return "libritts"
    if next(path.rglob("*.parquet"), None):
        return "hf"
    expected = "metadata.csv, *.normalized.txt, *.trans.txt, train.jsonl, state.json or *.parquet"
    raise InputError(f"{source}: no corpus of a known layout, expected {expected} in it")


def _ljspeech(path: Path) -> Iterator[Utterance]:
    listing = path if path.is_file() else path / "metadata.csv"
    folder = listing.parent.resolve() / "wavs"
    expected = "lines of id|text or id|text|normalised text"
    for number, line in text_lines(listing, expected):
        fields = line.split("|")
        id = fields[0].strip()
        if len(fields) not in (2, 3) or not id or "/" in id or "\0" in id:
            raise InputError(
                f"{listing}:{number}: {line[:60]!r}, expected id|text or id|text|normalised text"
            )
        yield Utterance(id, _audio_of(folder, id), fields[-1].strip() or fields[1].strip())


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
            file.stem for file in chapter.iterdir() if file.suffix.lower() in AUDIO_SUFFIXES
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
    for suffix in AUDIO_SUFFIXES:
        if (folder / f"{id}{suffix}").is_file():
            return folder / f"{id}{suffix}"
    return folder / f"{id}.wav"


def _jsonl(path: Path) -> Iterator[Utterance]:
    if path.is_file():
        yield from (utterance for _, utterance in manifest_lines(path))
        return
    listings = [path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").is_file()]
    if not listings:
        raise InputError(
            f"{path}: no train.jsonl, dev.jsonl or test.jsonl in it, expected a manifest"
        )
    for listing in listings:
        yield from (utterance for _, utterance in manifest_lines(listing))


def _hugging_face(path: Path, source: str) -> Iterator[Utterance]:
    what = source if path.exists() else f"{source}: no such folder, and as a dataset of the hub"
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{what}: package datasets is not installed: pip install 'llasa-core[datasets]'"
        ) from None

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
        part = part.cast_column(
            audio, datasets.Audio(decode=False)
        )  # our own decoder reads it, as everywhere
    split = {"validation": "dev", "valid": "dev", "val": "dev"}.get(
        name.split(".")[0], name.split(".")[0]
    )
    for number, row in enumerate(part):
        found = {key: row[column] for key, column in columns.items() if column}
        id, speaker = found.get("id"), found.get("speaker")
        id = f"{name or 'row'}-{number:08d}" if id is None else str(id)
        yield Utterance(
            re.sub(r"[^\w.+@=,-]", "_", id),
            _hugging_face_audio(row[audio]),
            found["text"] or "",
            "" if speaker is None else str(speaker),
            str(found.get("language") or "en"),
            split=split if split in SPLITS else None,
        )


def _hugging_face_audio(value) -> Path | bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    return value if isinstance(value, bytes) else Path(value).absolute()
