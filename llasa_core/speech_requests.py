"""What is to be spoken: requests, their JSON-lines file, and how long a text may take. No torch here.

A line of the file has id and text, and may have speaker, language, seed, voice (audio, relative to the file) and
voice_text, or voice_in_text: true where the text begins with the words of the voice (speech is continued within an
utterance).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest, text_lines
from llasa_core.prompts import Voice

FILE_SAFE_ID = re.compile(r"[^\W]([\w.+@=,-]*[\w+@=,-])?")


@dataclass(frozen=True)
class Request:
    """One utterance to speak. `id` names its file; `voice` is a prompt (text and codes) whose voice is continued.

    `speaker` becomes the tag before the speech; beside a voice prompt it is a mere label of the utterance. `language`
    changes nothing of the speech: it says by which rules words are counted, and stays with the utterance.
    """

    id: str
    text: str
    speaker: str | None = None
    voice: Voice | None = None
    seed: int = 0
    language: str = "en"

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not FILE_SAFE_ID.fullmatch(self.id):
            raise InputError(f"request {self.id!r}: the id must be a file name of letters, digits and ._+@=,-")
        if (size := len(self.id.encode())) > 200:
            raise InputError(f"request {self.id[:40]}..: the id takes {size} bytes, expected a file name of up to 200")
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError(f"request {self.id}: the text is empty")
        for name, value in (("text", self.text), ("speaker", self.speaker)):
            if isinstance(value, str) and (lone := re.search("[\ud800-\udfff]", value)):
                raise InputError(f"request {self.id}: the {name} holds {lone[0]!a}, half a character, expected text")
        if self.speaker is not None and not isinstance(self.speaker, str):
            raise InputError(f"request {self.id}: speaker must be a name, got {self.speaker!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"request {self.id}: seed must be an integer of at least 0, got {self.seed!r}")
        if not isinstance(self.language, str) or not self.language:
            raise InputError(f"request {self.id}: language must be a code like en, got {self.language!r}")

    @property
    def continues(self) -> bool:
        """Whether the text begins with the words of its voice prompt: then it cannot be cut into pieces."""
        return self.voice is not None and not self.voice.text


def parse_object(line: str, where: str) -> dict:
    """One JSON object; `where` (file and line) opens the message of the InputError."""
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(item).__name__}")
    return item


def refuse_repeated(requests: Sequence[Request]) -> None:
    """InputError for an id that several requests have."""
    if repeated := [name for name, count in Counter(request.id for request in requests).items() if count > 1]:
        raise InputError(f"requests: the id {repeated[0]!r} is there more than once")


def read_requests(
    path, voice: Callable[[Path, str], Voice] | None = None, seed: int = 0, language: str = "en"
) -> list[Request]:
    """Requests from JSON lines (keys: see the head of this module); seed and language are those of lines without.

    A corpus manifest is such a file, and so are test sentences (`understanding`): their audio, seconds, split,
    category and expected say nothing about what to speak.
    `voice` makes a prompt of an audio file and its words: `Synthesizer.voice`; each distinct prompt is made once.
    """
    path = Path(path)
    known = {"id", "text", "speaker", "language", "seed", "voice", "voice_text", "voice_in_text"}
    known |= {"audio", "seconds", "split", "category", "expected"}
    voices: dict[tuple[str, str], Voice] = {}
    requests: list[Request] = []
    for number, line in text_lines(path, "requests as JSON lines"):
        where = f"{path}:{number}"
        item = parse_object(line, where)
        if unknown := sorted(set(item) - known):
            raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        if missing := [key for key in ("id", "text") if key not in item]:
            raise InputError(f"{where}: the key {missing[0]!r} is missing")
        prompt = None
        if item.get("voice"):
            within = item.get("voice_in_text") is True
            if voice is None or bool(item.get("voice_text")) == within:
                raise InputError(f"{where}: a voice needs its words in voice_text, or voice_in_text: true, not both")
            key = (str(item["voice"]), str(item["text"] if within else item["voice_text"]))
            if key not in voices:
                voices[key] = voice(path.parent / key[0], key[1])
            prompt = replace(voices[key], text="") if within else voices[key]
        try:
            said = item.get("language", language)
            requests.append(
                Request(item["id"], item["text"], item.get("speaker") or None, prompt, item.get("seed", seed), said)
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if not requests:
        raise InputError(f"{path}: no requests in it")
    return requests


def voice_clips(
    manifest: str | Path, speakers: Iterable[str], shortest: float = 2.0, longest: float = 4.0
) -> dict[str, Utterance]:
    """{speaker: the first recording of its own between these lengths, seconds}, to be made a voice prompt.

    Raises InputError for a speaker who has none: another voice, or none, would change what is measured.
    """
    clips: dict[str, Utterance] = {}
    for item in read_manifest(manifest):
        if shortest <= (item.seconds or 0) <= longest:
            clips.setdefault(item.speaker, item)
    wanted = sorted(set(speakers))
    if missing := [speaker for speaker in wanted if speaker not in clips]:
        raise InputError(
            f"{manifest}: no recording of {shortest:g} to {longest:g} s by speaker {missing[0]!r} "
            f"({len(missing)} of {len(wanted)} speakers have none), expected one each for the voice prompts"
        )
    return {speaker: clips[speaker] for speaker in wanted}


def spoken_characters(text: str) -> float:
    """Length of `text` as read aloud, in letters: a digit or symbol counts 5 (its name), an ideograph or kana 4."""
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


def seconds_per_character(texts: Sequence[str], seconds: Sequence[float], quantile: float = 0.99) -> float:
    """The pace that `quantile` of the utterances keep below: what `length_limit` wants, learnt from training data."""
    if not texts or len(texts) != len(seconds):
        raise InputError(f"pace: {len(texts)} texts and {len(seconds)} durations; expected as many, at least one")
    return float(np.quantile([s / spoken_characters(t) for t, s in zip(texts, seconds, strict=True)], quantile))


def length_limit(
    text: str,
    seconds_per_character: float = 0.08,
    factor: float = 2.0,
    extra_seconds: float = 1.0,
    frame_rate: float = 50.0,
) -> int:
    """The most codes that `text` may take: `factor` times its time at the given pace, and `extra_seconds` of silence.

    The default pace suits English read aloud (median about 0.065 s a character).
    """
    return math.ceil(frame_rate * (extra_seconds + factor * seconds_per_character * spoken_characters(text)))
