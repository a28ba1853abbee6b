"""Manifests: utterances as JSON lines (id audio text speaker language seconds split), and splits by
hash of the id.

In memory audio paths are absolute; in a file they are relative to its folder, so a corpus can be
moved as a whole.

What is to be spoken: requests, their JSON-lines file, and how long a text may take. No torch here.

A line of the file has id and text, and may have speaker, reference_speaker, language, seed, voice
(audio, relative to the file) and voice_text, or voice_in_text: true where the text begins with the
words of the voice (speech is continued within an utterance).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from llasa_core.errors import InputError, at_least, check_fields, fits
from llasa_core.files import is_url, join, numbered_rows, parse_object, text_lines, write_rows
from llasa_core.prompts import Voice, language_of

T = TypeVar("T")

SPLITS = ("train", "dev", "test")

_EXPECTED = "a JSON object with id, audio, text and perhaps speaker, language, seconds, split"


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    audio: the path or URL of its file (or, where a dataset holds files inside itself, the bytes of
    one). language: "" becomes that of the script of the text (`language_of`). seconds: its
    length, where known. split: "train", "dev" or "test", where the corpus says
    so; None: by hash.
    """

    id: str
    audio: str | Path | bytes
    text: str
    speaker: str = ""
    language: str = ""
    seconds: float | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.language == "":
            object.__setattr__(self, "language", language_of(self.text))


@dataclass(frozen=True)
class Unread(Utterance):
    """What a source holds but cannot give as an utterance: to be counted as left out for `reason`.

    where: its line or member.
    """

    reason: str = ""
    where: str = ""


def checked(utterance: Utterance, where: str = "") -> Utterance:
    """An utterance whose names can be written; Unread, with the reason, where one cannot.

    "bad_id", "bad_speaker", "bad_language": half a character (a lone surrogate) or a NUL in it, or
    no id at all. "bad_path": also a path longer than file systems allow.
    """
    if isinstance(utterance, Unread):
        return utterance
    names = {"bad_speaker": utterance.speaker, "bad_language": utterance.language}
    reason = next((why for why, name in names.items() if _unwritable(name)), None)
    if not isinstance(utterance.audio, bytes) and not is_url(utterance.audio):
        parts = str(utterance.audio).encode("utf-8", "surrogatepass").split(b"/")
        long = max(map(len, parts)) > 255 or sum(map(len, parts)) + len(parts) > 4095
        reason = "bad_path" if long or _unwritable(str(utterance.audio)) else reason
    reason = "bad_id" if not utterance.id or _unwritable(utterance.id) else reason
    if reason is None:
        return utterance
    return Unread(printable(utterance.id), utterance.audio, "", reason=reason, where=where)


def _unwritable(name: str) -> bool:
    return re.search("[\0\ud800-\udfff]", name) is not None


def printable(name: str) -> str:
    """A name in letters that can be written, at most 200 of them."""
    name = name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return name if len(name) <= 200 else f"{name[:120]}..{name[-60:]}"


def read_manifest(path: str | Path) -> list[Utterance]:
    """The utterances of a JSON-lines manifest, audio as absolute paths (whether they exist is not
    looked at).

    Raises InputError with file and line for a missing file, a malformed line, an unknown split or a
    repeated id.
    """
    utterances, lines = [], {}
    for number, utterance in manifest_lines(path):
        if utterance.id in lines:
            first = lines[utterance.id]
            raise InputError(
                f"{path}:{number}: duplicate id {utterance.id!r} (first on line {first})"
            )
        lines[utterance.id] = number
        utterances.append(utterance)
    return utterances


def manifest_lines(path: str | Path) -> Iterator[tuple[int, Utterance]]:
    """Line numbers (from 1) and utterances, duplicate ids included; errors as `read_manifest`."""
    folder = path.rpartition("/")[0] if is_url(path) else Path(os.path.realpath(Path(path).parent))
    for number, item in numbered_rows(path, _EXPECTED):
        yield number, _utterance(item, f"{path}:{number}", folder)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all. Absolute audio paths become relative to its folder."""
    folder = Path(os.path.realpath(Path(path).parent))
    write_rows(path, (_row(utterance, folder) for utterance in utterances))


def evenly(items: Sequence[T], limit: int) -> Sequence[T]:
    """At most `limit` items spread evenly over a list, in its order; 0 takes all."""
    return (
        [items[place * len(items) // limit] for place in range(limit)]
        if 0 < limit < len(items)
        else items
    )


def split_of(id: str, fractions: tuple[float, float, float] = (0.96, 0.02, 0.02)) -> str:
    """ "train", "dev" or "test" by sha256 of the id; `fractions` are their shares, which sum to 1.

    What is test stays test whatever the share of dev. InputError unless the
    fractions are non-negative and sum to 1.
    """
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9)
    ):
        raise InputError(
            f"split fractions {fractions}: expected the shares of train, dev and test, which sum"
            " to 1"
        )
    _, dev, test = fractions
    value = place_of_id(id)
    if value < test:
        return "test"
    return "dev" if value < test + dev else "train"


def place_of_id(id: str) -> float:
    """Where an id stands from 0 to 1, by sha256: test is what comes first, then dev, then train."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64


def _utterance(item: dict, where: str, folder: Path | str) -> Utterance:
    for key in ("id", "audio", "text"):
        if key not in item:
            raise InputError(f"{where}: the key {key!r} is missing, expected {_EXPECTED}")
        if not isinstance(item[key], str):
            raise InputError(f"{where}: {key} is {json.dumps(item[key])[:40]}, expected a string")
    for key in ("speaker", "language", "split"):
        if not isinstance(item.get(key, ""), str | None):
            raise InputError(f"{where}: {key} is {json.dumps(item[key])[:40]}, expected a string")
    for key in ("id", "audio"):
        if not item[key].strip() or "\0" in item[key]:
            raise InputError(f"{where}: {key} is {item[key]!r}, expected a name")
    seconds, split = item.get("seconds"), item.get("split") or None
    if seconds is not None and not (fits(seconds, float) and seconds >= 0):
        raise InputError(
            f"{where}: seconds is {json.dumps(seconds)[:40]}, expected a number of at least 0"
        )
    if split not in (None, *SPLITS):
        raise InputError(f"{where}: split is {split!r}, expected train, dev or test")
    audio = item["audio"] if is_url(item["audio"]) else join(folder, item["audio"])
    audio = Path(os.path.normpath(audio)) if isinstance(audio, Path) else audio
    speaker, language = item.get("speaker") or "", item.get("language") or ""
    return Utterance(item["id"], audio, item["text"], speaker, language, seconds, split)


def _row(utterance: Utterance, folder: Path) -> dict:
    if isinstance(utterance.audio, bytes):
        raise InputError(
            f"utterance {utterance.id!r}: its audio is not a file, expected one (prepare writes it)"
        )
    audio = utterance.audio if is_url(utterance.audio) else Path(utterance.audio)
    if isinstance(audio, Path):
        # The name itself may be a link (into a cache) and stays as it is.
        there = (
            Path(os.path.relpath(audio.parent.resolve() / audio.name, folder))
            if audio.is_absolute()
            else audio
        )
        audio = there.as_posix()
    fields = {
        "id": utterance.id,
        "audio": audio,
        "text": utterance.text,
        "speaker": utterance.speaker,
    }
    fields |= {
        "language": utterance.language,
        "seconds": utterance.seconds,
        "split": utterance.split,
    }
    return {key: value for key, value in fields.items() if value is not None}


FILE_SAFE_ID = re.compile(r"[^\W]([\w.+@=,-]*[\w+@=,-])?")


def file_name(id: str) -> str:
    """A file name, without suffix, for any id: the id where it is one, else its letters and digits
    and 8 digits of its hash, so that ids that differ never share a file.
    """
    if FILE_SAFE_ID.fullmatch(id) and len(id.encode()) <= 200:
        return id
    letters = re.sub(r"[^\w+=-]+", "_", unicodedata.normalize("NFC", id)).strip("_+=-")
    short = letters.encode("utf-8", "ignore")[:100].decode(errors="ignore") or "u"
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{short}-{digest[:8]}"


@dataclass(frozen=True)
class Request:
    """One utterance to speak. `id` names its file (`file_name`).

    `voice` is a prompt (text and codes) whose voice is continued.
    `speaker` becomes the tag before the speech; with a voice prompt it is only a label of the
    utterance. `language` and `reference_speaker` change nothing of the speech and stay with it: by
    which rules words are counted, and with whose recordings the speech is compared, where that is
    not `speaker`, because the prompt has no tag.
    """

    id: str
    text: str
    speaker: str | None = None
    voice: Voice | None = None
    seed: int = 0
    language: str = ""
    reference_speaker: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or _unwritable(self.id):
            raise InputError(f"request {self.id!r}: the id must be text")
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError(f"request {self.id}: the text is empty")
        if not has_words(self.text):
            raise InputError(
                f"request {self.id}: the text {self.text[:40]!r} has no word in it, expected"
                " something to say"
            )
        for name in ("text", "speaker", "reference_speaker"):
            value = getattr(self, name)
            if isinstance(value, str) and (lone := re.search("[\ud800-\udfff]", value)):
                raise InputError(
                    f"request {self.id}: the {name} holds {lone[0]!a}, half a character, expected"
                    " text"
                )
        check_fields(self, f"request {self.id}", seed=at_least(0))
        if not self.language:
            object.__setattr__(self, "language", language_of(self.text))

    @property
    def wanted_speaker(self) -> str | None:
        """Whose voice the speech should have."""
        return self.reference_speaker or self.speaker

    def identity(self) -> dict:
        """What makes two requests of one id the same; of the voice a hash, None without one."""
        voice = None
        if self.voice is not None:
            codes = np.ascontiguousarray(self.voice.codes, dtype="<i4").tobytes()
            voice = hashlib.sha256(self.voice.text.encode() + b"\0" + codes).hexdigest()[:12]
        return {
            "text": self.text,
            "speaker": self.speaker,
            "reference_speaker": self.reference_speaker,
            "seed": self.seed,
            "language": self.language,
            "voice": voice,
        }

    @property
    def continues(self) -> bool:
        """Whether the text begins with its voice prompt's words, so it cannot be cut."""
        return self.voice is not None and not self.voice.text


def has_words(text: str) -> bool:
    """Whether a text holds a letter or a digit: "..." and an emoji say nothing."""
    return any(character.isalnum() for character in text)


def refuse_repeated(requests: Sequence[Request], where: str = "requests") -> None:
    """InputError for an id that several requests have."""
    counts = Counter(request.id for request in requests)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise InputError(f"{where}: the id {repeated[0]!r} is there more than once")


def read_requests(
    path,
    voice: Callable[[Path, str], Voice] | None = None,
    seed: int = 0,
    language: str = "",
    refused: list[InputError] | None = None,
) -> list[Request]:
    """Requests from JSON lines (keys: see the head of this module); seed and language are those of
    lines without; "": the language of the script.

    A corpus manifest is such a file, and so are test sentences (`understanding`): their audio,
    seconds, split, category and expected say nothing about what to speak. `voice` makes a prompt of
    an audio file and its words: `Synthesizer.voice`; each distinct prompt is made once. Of a .txt
    each line is a request, and its number the id; ids and speakers may be numbers. `refused`, where
    given, receives the error of each bad line, and the other lines go on.
    """
    path, expected = Path(path), "requests as JSON lines, one object a line"
    plain = path.suffix.lower() == ".txt"
    prompts: dict[tuple[str, str], Voice] = {}
    requests: dict[str, Request] = {}
    lines: dict[str, int] = {}
    for number, line in text_lines(path, "a sentence a line" if plain else expected):
        where = f"{path}:{number}"
        try:
            if plain:
                item = {"id": f"{number:04d}", "text": line.strip()}
            else:
                item = parse_object(line, where, expected)
            request = _request(item, where, path.parent, voice, prompts, seed, language)
            if request.id in lines:
                raise InputError(
                    f"{where}: the id {request.id!r} is there more than once, first on line"
                    f" {lines[request.id]}"
                )
        except InputError as error:
            if refused is None:
                raise
            refused.append(error)
            continue
        requests[request.id], lines[request.id] = request, number
    if not requests:
        raise refused[0] if refused else InputError(f"{path}: no requests in it")
    return list(requests.values())


_REQUEST_KEYS = frozenset({"id", "text", "speaker", "reference_speaker", "language", "seed"})
_REQUEST_KEYS |= {"voice", "voice_text", "voice_in_text"}
_REQUEST_KEYS |= {"audio", "seconds", "split", "category", "expected"}


def _request(
    item: dict,
    where: str,
    folder: Path,
    voice: Callable[[Path, str], Voice] | None,
    prompts: dict[tuple[str, str], Voice],
    seed: int,
    language: str,
) -> Request:
    """The request of one line; `prompts` holds the voices that were made before."""
    for key in ("id", "speaker"):
        if isinstance(item.get(key), int) and not isinstance(item[key], bool):
            item[key] = str(item[key])
    if unknown := sorted(set(item) - _REQUEST_KEYS):
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_REQUEST_KEYS))}"
        )
    if missing := [key for key in ("id", "text") if key not in item]:
        raise InputError(f"{where}: the key {missing[0]!r} is missing")
    try:
        request = Request(
            item["id"],
            item["text"],
            item.get("speaker") or None,
            None,
            item.get("seed", seed),
            item.get("language", language),
            item.get("reference_speaker") or None,
        )
        if not item.get("voice"):
            return request
        within = item.get("voice_in_text") is True
        if voice is None or bool(item.get("voice_text")) == within:
            raise InputError(
                "a voice needs its words in voice_text, or voice_in_text: true, not both"
            )
        key = (str(item["voice"]), str(item["text"] if within else item["voice_text"]))
        if key not in prompts:
            prompts[key] = voice(folder / key[0], key[1])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return replace(request, voice=replace(prompts[key], text="") if within else prompts[key])


def voice_clips(
    manifest: str | Path, speakers: Iterable[str], shortest: float = 2.0, longest: float = 4.0
) -> dict[str, Utterance]:
    """{speaker: the first recording of its own between these lengths, seconds}, to be made a voice
    prompt.

    Raises InputError for a speaker who has none: another voice, or none, would change what is
    measured.
    """
    clips: dict[str, Utterance] = {}
    for item in read_manifest(manifest):
        if shortest <= (item.seconds or 0) <= longest:
            clips.setdefault(item.speaker, item)
    wanted = sorted(set(speakers))
    if missing := [speaker for speaker in wanted if speaker not in clips]:
        raise InputError(
            f"{manifest}: no recording of {shortest:g} to {longest:g} s by speaker {missing[0]!r}"
            f" ({len(missing)} of {len(wanted)} speakers have none), expected one each for the"
            " voice prompts"
        )
    return {speaker: clips[speaker] for speaker in wanted}


def spoken_characters(text: str) -> float:
    """Length of `text` read aloud, in letters: digits and symbols count 5, ideographs, kana 4."""
    total = 0.0
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Lo":
            total += 4
        elif kind[0] == "N" or kind in ("Sc", "Sm", "So") or character in "%&@#":
            total += 5
        else:
            total += 1
    return total


def seconds_per_character(
    texts: Sequence[str], seconds: Sequence[float], quantile: float = 0.99
) -> float:
    """Pace below which `quantile` of the training utterances stay; what `length_limit` takes."""
    if not texts or len(texts) != len(seconds):
        raise InputError(
            f"pace: {len(texts)} texts and {len(seconds)} durations; expected as many, at least one"
        )
    return float(
        np.quantile(
            [s / spoken_characters(t) for t, s in zip(texts, seconds, strict=True)], quantile
        )
    )


def length_limit(
    text: str,
    seconds_per_character: float = 0.08,
    factor: float = 2.0,
    extra_seconds: float = 1.0,
    frame_rate: float = 50.0,
) -> int:
    """The most codes that `text` may take: `factor` times its time at the given pace, and
    `extra_seconds` of silence.

    The default pace suits English read aloud (median about 0.065 s a character).
    """
    return math.ceil(
        frame_rate * (extra_seconds + factor * seconds_per_character * spoken_characters(text))
    )
