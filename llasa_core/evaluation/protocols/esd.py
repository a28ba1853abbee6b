"""Emotional Speech Dataset: SPEAKER/SPEAKER.txt (id, text, emotion; tabs) and
SPEAKER/EMOTION/[test/]ID.wav.

Lists are UTF-8, UTF-16 or GB 18030, depending on the speaker. The emotion is that of the folder,
because the lists name it in two languages. Without a folder `test`, the 21st to 50th of an
emotion's 350 sentences are the test.
"""

import codecs
import re
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import Trial

EMOTIONS = ("Angry", "Happy", "Neutral", "Sad", "Surprise")

SENTENCES = 350  # of each emotion, numbered through

TEST = range(21, 51)  # numbers, from 1, of an emotion's test sentences


def read_en(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Trials of the English speakers, 0011 to 0020."""
    return _read(folder, "en", range(11, 21)), {}


def read_zh(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Trials of the Chinese speakers, 0001 to 0010."""
    return _read(folder, "zh", range(1, 11)), {}


def _read(folder: Path, language: str, speakers: range) -> list[Trial]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected the Emotional Speech Dataset")
    names = sorted(
        path.name
        for path in folder.iterdir()
        if re.fullmatch(r"\d{4}", path.name) and path.is_dir()
    )
    names = [name for name in names if int(name) in speakers]
    if not names:
        expected = f"{speakers[0]:04d} to {speakers[-1]:04d}"
        raise InputError(
            f"{folder}: no folder of a speaker from {expected}, expected the Emotional Speech"
            " Dataset"
        )
    trials = []
    for name in names:
        listing = folder / name / f"{name}.txt"
        texts = _texts(listing)
        for emotion in EMOTIONS:
            wavs = _test_wavs(folder / name / emotion)
            for wav in wavs:
                if wav.stem not in texts:
                    raise InputError(
                        f"{listing}: no line for {wav.stem}, expected the text of {wav}"
                    )
            if len(wavs) < 2:
                raise InputError(
                    f"{folder / name / emotion}: {len(wavs)} test recordings, expected at least 2,"
                    " text and prompt"
                )
            for wav, prompt in zip(wavs, [*wavs[1:], wavs[0]], strict=True):
                (where, text), (_, prompt_text) = texts[wav.stem], texts[prompt.stem]
                trials.append(
                    Trial(
                        wav.stem,
                        text,
                        language,
                        where,
                        name,
                        prompt=prompt,
                        prompt_text=prompt_text,
                        reference=wav,
                        emotion=emotion,
                    )
                )
    return trials


def _test_wavs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected the recordings of an emotion")
    if any(path.is_dir() for path in folder.iterdir()):
        return sorted((folder / "test").glob("*.wav"))
    flat = sorted(folder.glob("*.wav"))
    for wav in flat:
        if not re.fullmatch(r"\d{4}_\d{6}", wav.stem):
            raise InputError(f"{wav}: expected a name such as 0011_000371.wav")
    return [wav for wav in flat if (int(wav.stem[5:]) - 1) % SENTENCES + 1 in TEST]


def _texts(listing: Path) -> dict[str, tuple[str, str]]:
    """{id: (file and line, text)}."""
    texts = {}
    for number, line in enumerate(_decoded(listing).splitlines(), start=1):
        if not line.strip():
            continue
        where, fields = f"{listing}:{number}", [part.strip() for part in line.split("\t")]
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise InputError(
                f"{where}: {line[:60]!r}, expected an id, a text and an emotion between tabs"
            )
        if fields[0] in texts:
            raise InputError(
                f"{where}: {fields[0]!r} is a duplicate id (first in {texts[fields[0]][0]})"
            )
        texts[fields[0]] = where, fields[1]
    return texts


def _decoded(listing: Path) -> str:
    try:
        content = listing.read_bytes()
    except OSError as error:
        raise InputError(
            f"{listing}: {error.strerror or error}, expected the speaker's texts"
        ) from None
    encodings = (
        ("utf-16",)
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        else ("utf-8-sig", "gb18030")
    )
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{listing}: neither UTF-8, UTF-16 nor GB 18030, expected the speaker's texts")
