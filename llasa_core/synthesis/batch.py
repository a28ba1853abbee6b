"""Speaks requests into a folder: OUT/wavs/ID.wav, OUT/manifest.jsonl, and a journal that lets a
stopped run resume.

The manifest is written once, at the end, by rename: where it is, everything is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llasa_core.audio import write_wav
from llasa_core.files import write_rows
from llasa_core.journal import Journal
from llasa_core.manifest import Request, file_name, refuse_repeated
from llasa_core.synthesis.guards import Guards, Spoken
from llasa_core.synthesis.sampling import Sampling

if TYPE_CHECKING:
    from llasa_core.synthesis.synthesizer import Synthesizer

MANIFEST = "manifest.jsonl"


def synthesize_manifest(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    out: str | Path,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    guards: Guards | None = None,
    keep_codes: bool = False,
) -> Path:
    """Speak requests into OUT/wavs/ID.wav (16 bit) and OUT/manifest.jsonl, one line a request, in
    their order.

    A line: id, audio (relative to OUT), text, speaker, perhaps reference_speaker, seed, language,
    codes (count), ended, seconds, reason; with a voice prompt also voice, the hash of it; with
    guards also attempts (count), guard (why each rejected attempt was rejected) and failed (what is
    wrong with the one kept; [] if it is good); with `keep_codes` code_list, the codes. Stopped and
    started again, it keeps what is finished (journal.Journal) and ends with the manifest of an
    uninterrupted run; a request that has changed is spoken again. `progress` is called with the
    number of utterances just finished. Returns the manifest's path. Raises InputError for a
    repeated id, bad requests, or an OUT made with another model, codec or sampling.
    """
    sampling, out = sampling or Sampling(), Path(out)
    refuse_repeated(requests)
    settings = {**synthesizer.settings(), **asdict(sampling)}
    if guards is not None:
        settings["guards"] = asdict(guards)
    journal = Journal(out, settings, MANIFEST)
    wanted = {request.id: request.identity() for request in requests}
    rows = journal.finished(wanted)
    # Checks what is left to speak, before anything is written.
    speech = synthesizer.speak([one for one in requests if one.id not in rows], sampling, guards)
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    with journal.writing(rows) as add:
        if progress and rows:
            progress(len(rows))
        for spoken in speech:
            name, audio = spoken.request.id, f"wavs/{file_name(spoken.request.id)}.wav"
            write_wav(out / audio, spoken.wave, synthesizer.codec.sample_rate)
            rows[name] = _row(spoken, audio, synthesizer.codec.sample_rate)
            if (voice := wanted[name]["voice"]) is not None:
                rows[name]["voice"] = voice
            if guards is not None:
                rows[name] |= {"attempts": spoken.attempts, "guard": spoken.rejected}
                rows[name]["failed"] = spoken.failed
            if keep_codes:
                rows[name]["code_list"] = spoken.generated.codes.tolist()
            add(rows[name], wanted[name])
            if progress:
                progress(1)
    return write_rows(out / MANIFEST, (rows[request.id] for request in requests))


def _row(spoken: Spoken, audio: str, sample_rate: int) -> dict:
    generated = spoken.generated
    row = speech_row(
        spoken.request, audio, len(generated.codes), generated.ended, len(spoken.wave) / sample_rate
    )
    return row | {"reason": generated.reason}


def speech_row(request: Request, audio: str, codes: int, ended: bool, seconds: float) -> dict:
    """What a line of every manifest of speech says: who said what, where it is, and how it
    ended.
    """
    row = {"id": request.id, "audio": audio, "text": request.text, "speaker": request.speaker or ""}
    if request.reference_speaker is not None:
        row["reference_speaker"] = request.reference_speaker
    row |= {"seed": request.seed, "language": request.language}
    return row | {"codes": codes, "ended": ended, "seconds": round(seconds, 4)}
