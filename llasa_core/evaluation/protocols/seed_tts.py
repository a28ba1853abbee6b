"""Seed-TTS-Eval lists (`meta.lst`, `hardcase.lst`): utt|prompt text|prompt wav|text[|reference
wav].

Paths are relative to the list's folder. Where a line names no reference recording, wavs/UTT.wav is
used if it exists. The public script skips missing files; here a missing wav is an error.
"""

from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import Trial
from llasa_core.files import text_lines

EXPECTED = "utt|prompt text|prompt wav|text or utt|prompt text|prompt wav|text|reference wav"


def read_en(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Trials of test-en."""
    return _read(folder, "en", "meta.lst")


def read_zh(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Trials of test-zh."""
    return _read(folder, "zh", "meta.lst")


def read_hard(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Trials of test-hard, Chinese."""
    return _read(folder, "zh", "hardcase.lst")


def _read(folder: Path, language: str, name: str) -> tuple[list[Trial], dict[str, int]]:
    candidates = [folder] if folder.is_file() else [folder / language / name, folder / name]
    listing = next((path for path in candidates if path.is_file()), None)
    if listing is None:
        raise InputError(
            f"{folder}: no {language}/{name} and no {name} in it, expected the Seed-TTS-Eval"
            " test set"
        )
    trials = []
    for number, line in text_lines(listing, f"lines of {EXPECTED}"):
        where, fields = f"{listing}:{number}", [part.strip() for part in line.split("|")]
        if len(fields) not in (4, 5) or not all(fields):
            raise InputError(
                f"{where}: {line[:60]!r} has {len(fields)} fields, expected {EXPECTED}, none empty"
            )
        utterance, prompt_text, prompt, text = fields[:4]
        recording = listing.parent / "wavs" / f"{utterance}.wav"
        reference = (
            listing.parent / fields[4]
            if len(fields) == 5
            else recording
            if recording.is_file()
            else None
        )
        trials.append(
            Trial(
                utterance,
                text,
                language,
                where,
                prompt=listing.parent / prompt,
                prompt_text=prompt_text,
                reference=reference,
            )
        )
    return trials, {}
