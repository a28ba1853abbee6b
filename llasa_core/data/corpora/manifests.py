"""JSON of any tool -> utterances: our manifests, those of NeMo, Emilia, WebDataset and Hugging Face
folders, lines or one array.

The same for a line of a manifest, the JSON next to a recording in a tar, a row of parquet and a row
of a table. What cannot be used is passed on as Unread, with a reason and its line; only a file that
is no JSON at all is an InputError.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llasa_core.data.corpora.recordings import id_of
from llasa_core.errors import InputError
from llasa_core.files import is_url, join, numbered_rows, open_binary, parse_json, read_bytes
from llasa_core.manifest import Unread, Utterance, checked, printable

COLUMNS = {
    "id": ("id", "utterance_id", "utt_id", "utt", "file_id", "segment_id", "key"),
    "text": (
        "text",
        "normalized_text",
        "text_normalized",
        "normalised_text",
        "transcription",
        "transcript",
        "sentence",
    ),
    "speaker": ("speaker", "speaker_id", "speaker_name", "client_id", "spk", "spk_id"),
    "language": ("language", "lang", "locale"),
}

AUDIO_NAMES = ("audio", "audio_filepath", "audio_path", "audio_file", "wav", "wav_path")
AUDIO_NAMES += ("file_name", "filename", "path", "filepath", "file", "wav_file")

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "dev": "dev"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "eval"), "dev")

_EXPECTED = "JSON lines or an array of objects with audio, text and perhaps id, speaker, language"

MOST_BYTES = 2**28  # of an array, which is read whole


def manifest_utterances(path: str | Path) -> Iterator[Utterance]:
    """The utterances of a manifest, audio as absolute paths or URLs (whether it is there is not
    looked at); Unread what cannot be one. InputError, with the line, where the first has no key for
    audio or text, for then it is no manifest.
    """
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent.resolve())
    for place, (number, item) in enumerate(_items(path)):
        for what, names in (("audio", AUDIO_NAMES), ("text", COLUMNS["text"])):
            if not place and not item.keys() & set(names):
                raise InputError(
                    f"{path}:{number}: no {what} among the keys {', '.join(item)[:80]!r}, expected"
                    f" {_EXPECTED}"
                )
        yield utterance_of(item, f"{path}:{number}", folder)


def _items(path: str | Path) -> Iterator[tuple[int | str, dict]]:
    try:
        with open_binary(path) as file:
            array = file.read(4096).decode("utf-8-sig", "replace").lstrip()[:1] == "["
        content = read_bytes(path, MOST_BYTES) if array else b""
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected {_EXPECTED}") from None
    if not array:
        yield from numbered_rows(path, _EXPECTED)
        return
    text = content.decode("utf-8-sig", "replace")
    for number, item in enumerate(parse_json(text, str(path), _EXPECTED), start=1):
        if not isinstance(item, dict):
            raise InputError(
                f"{path}: item {number}: a JSON {type(item).__name__}, expected {_EXPECTED}"
            )
        yield f"item {number}", item


def utterance_of(
    item: dict[str, Any], where: str, folder: str = "", id: str = "", audio: Any = None
) -> Utterance:
    """The utterance that a JSON object describes, or Unread.

    where: the file and line, to be named. folder: of relative audio paths. id, audio: what it has
    where the object does not tell.
    """
    try:
        utterance = _utterance(item, folder, id, audio)
    except _Unusable as error:
        reason = str(error)
    else:
        found = checked(utterance, where)
        if found is utterance:
            return utterance
        reason = found.reason
    # Its own id may be none, or that of another: it goes by its line among what is left out.
    name = printable(id or where.rpartition("/")[2])
    return Unread(name, b"", "", reason=reason, where=where)


class _Unusable(Exception):
    """The reason for which an item is no utterance."""


def _utterance(item: dict, folder: str, id: str, audio: Any) -> Utterance:
    if audio is None:
        name = _first(item, AUDIO_NAMES)
        name = name.get("path") if isinstance(name, dict) else name
        if not isinstance(name, str) or not name.strip():
            raise _Unusable("missing_audio")
        id, audio = id or id_of(name, folder), _path(name, folder)
    if item.get("offset") not in (None, 0):
        raise _Unusable("offset")  # a piece of a longer recording, which must be cut out first
    text = _first(item, COLUMNS["text"])
    if text is None:
        raise _Unusable("textless")
    told = _first(item, COLUMNS["id"])
    language = _first(item, COLUMNS["language"])
    split = str(item.get("split") or "").lower()
    if split and split not in SPLIT_NAMES:
        raise _Unusable("bad_split")
    seconds = item.get("seconds", item.get("duration"))
    known = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return Utterance(
        _name(told, "bad_id") if told not in (None, "") else id,
        audio,
        one_line(_name(text, "bad_text")),
        _name(_first(item, COLUMNS["speaker"], ""), "bad_speaker"),
        _name(language or "", "bad_language"),
        seconds if known and 0 <= seconds < math.inf else None,
        SPLIT_NAMES.get(split),
    )


def _first(item: dict, keys: tuple[str, ...], default: Any = None) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), default)


def _name(value: Any, reason: str) -> str:
    """Text, or a number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Unusable(reason)
    try:
        return value if isinstance(value, str) else str(value)
    except ValueError:  # an integer of thousands of digits
        raise _Unusable(reason) from None


def _path(name: str, folder: str) -> str | Path:
    if is_url(name):
        return name
    path = join(folder or ".", name)
    return Path(os.path.normpath(path)) if isinstance(path, Path) else path


def one_line(text: str) -> str:
    """A text with spaces in place of its tabs and line breaks."""
    return re.sub(r" *[\t\n\r\v\f]+ *", " ", text).strip() if re.search(r"[\t-\r]", text) else text
