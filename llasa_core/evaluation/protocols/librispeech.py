"""LibriSpeech subsets (SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt next to .flac) as trials of four
protocols.

A transcript without its recording, or a recording without its transcript, is an error. Utterances
outside the length filter are counted.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from llasa_core.audio import AUDIO_SUFFIXES, header_seconds
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import Trial
from llasa_core.files import text_lines
from llasa_core.manifest import manifest_lines

SECONDS = (4.0, 10.0)  # s, utterances to be synthesized

PROMPT_SECONDS = (2.0, 5.0)  # s, whole utterances used as prompts

CONTINUED_SECONDS = 3.0  # s, the beginning that is continued

CROSS_LIST = "cross_sentence.lst"


def read_recordings(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Every recording with its transcript, from a subset's folder or a manifest."""
    if folder.is_file():
        return [
            Trial(
                item.id,
                item.text,
                item.language,
                f"{folder}:{number}",
                item.speaker,
                reference=Path(item.audio),
            )
            for number, item in manifest_lines(folder)
        ], {}
    return _recordings(folder), {}


def read_continuation(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Utterances of 4 to 10 s, prompted by their own first 3 s, all their words as the text."""
    trials = []
    recordings = _recordings(folder)
    for item in recordings:
        if SECONDS[0] <= seconds_of(item) <= SECONDS[1]:
            trials.append(replace(item, prompt=item.reference, prompt_seconds=CONTINUED_SECONDS))
    return trials, {"not_4_to_10_seconds": len(recordings) - len(trials)}


def read_cross(folder: Path) -> tuple[list[Trial], dict[str, int]]:
    """Utterances of 4 to 10 s prompted by another one of their speaker; or the pairs of a list."""
    recordings = {item.id: item for item in _recordings(folder)}
    if (folder / CROSS_LIST).is_file():
        return _listed(folder / CROSS_LIST, recordings), {}
    short = defaultdict(list)
    for item in recordings.values():
        if PROMPT_SECONDS[0] <= seconds_of(item) <= PROMPT_SECONDS[1]:
            short[item.speaker].append(item)
    trials, left_out = [], {"not_4_to_10_seconds": 0, "no_prompt_of_2_to_5_seconds": 0}
    for item in recordings.values():
        others = [other for other in short[item.speaker] if other.id != item.id]
        if not SECONDS[0] <= seconds_of(item) <= SECONDS[1]:
            left_out["not_4_to_10_seconds"] += 1
        elif not others:
            left_out["no_prompt_of_2_to_5_seconds"] += 1
        else:
            prompt = next((other for other in others if other.id > item.id), others[0])
            trials.append(replace(item, prompt=prompt.reference, prompt_text=prompt.text))
    return trials, left_out


def _listed(listing: Path, recordings: dict[str, Trial]) -> list[Trial]:
    trials = []
    expected = "prompt utterance, seconds, text, utterance, seconds, text, between tabs"
    for number, line in text_lines(listing, f"lines of {expected}"):
        where, fields = f"{listing}:{number}", [part.strip() for part in line.split("\t")]
        if len(fields) != 6:
            raise InputError(
                f"{where}: {line[:60]!r} has {len(fields)} fields, expected 6: {expected}"
            )
        prompt, _, prompt_text, spoken, _, text = fields
        for id_ in (prompt, spoken):
            if id_ not in recordings:
                raise InputError(
                    f"{where}: utterance {id_!r} is not in {listing.parent}, expected one of its"
                    " recordings"
                )
        item = recordings[spoken]
        extra = {
            "prompt": recordings[prompt].reference,
            "prompt_text": prompt_text,
            "text": text,
            "where": where,
        }
        trials.append(replace(item, **extra))
    return trials


def seconds_of(item: Trial) -> float:
    """Length of a trial's recording, from its header; InputError where it cannot be read."""
    return header_seconds(item.reference, item.where)


def _recordings(folder: Path) -> list[Trial]:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder, expected a LibriSpeech subset such as test-clean"
        )
    listings = sorted(folder.rglob("*.trans.txt"))
    expected = (
        "expected a LibriSpeech subset such as test-clean, "
        "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt in it"
    )
    if not listings:
        raise InputError(f"{folder}: no *.trans.txt in it, {expected}")
    trials = []
    for listing in listings:
        if len(listing.relative_to(folder).parts) != 3:
            raise InputError(f"{listing}: not two folders below {folder}, {expected}")
        files = {
            path.stem: path
            for path in listing.parent.iterdir()
            if path.suffix.lower() in AUDIO_SUFFIXES
        }
        for number, line in text_lines(listing, "lines of an id, a space and a text"):
            where = f"{listing}:{number}"
            id_, _, text = line.strip().partition(" ")
            if not text.strip():
                raise InputError(f"{where}: {line[:60]!r}, expected an id, a space and a text")
            file = files.pop(id_, None)
            if file is None:
                missing = listing.parent / f"{id_}.flac"
                raise InputError(
                    f"{where}: audio file {missing} is missing, or its id is there twice"
                )
            trials.append(
                Trial(id_, text.strip(), "en", where, listing.parent.parent.name, reference=file)
            )
        if files:
            raise InputError(
                f"{listing}: no line for {min(files)}, expected a transcript of every recording"
                " next to it"
            )
    return trials
