"""What is to be scored: the utterances of a manifest, each with its audio file."""

from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.files import numbered_rows, read_rows
from llasa_core.intervals import CLUSTER
from llasa_core.judges.identity import CHOSEN_BY
from llasa_core.manifest import read_manifest


def read_utterances(path: str | Path) -> list[dict]:
    """What a manifest says of each utterance: id, audio (as written), text, speaker (whose voice it
    should have: its reference_speaker where it names one), language, file (that exists) and perhaps
    ended, text_id, and the keys CHOSEN_BY of a search. InputError for a missing wav and for a
    manifest of none.
    """
    utterances = []
    lines = [number for number, _ in numbered_rows(path)]
    for utterance, row, line in zip(read_manifest(path), read_rows(path), lines, strict=True):
        if not utterance.audio.is_file():
            raise InputError(
                f"{path}: audio file {utterance.audio} of utterance {utterance.id!r} is missing"
            )
        described = {
            "id": utterance.id,
            "audio": row["audio"],
            "text": utterance.text,
            "file": utterance.audio,
            "where": f"{path}:{line}",
        }
        speaker = row.get("reference_speaker") or utterance.speaker
        if not isinstance(speaker, str):
            raise InputError(
                f"{path}: reference_speaker of utterance {utterance.id!r} is {speaker!r}, expected"
                " a name"
            )
        described |= {"speaker": speaker, "language": utterance.language}
        if isinstance(row.get("ended"), bool):
            described["ended"] = row["ended"]
        if isinstance(row.get("attempts"), int):
            described["sampled_again"] = row["attempts"] > row.get("pieces", 1)
        described |= {key: row[key] for key in (*CHOSEN_BY, CLUSTER) if row.get(key)}
        utterances.append(described)
    if not utterances:
        raise InputError(f"{path}: no utterances, expected at least one")
    return utterances
