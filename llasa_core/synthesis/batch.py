"""Speaks requests into a folder: OUT/wavs/ID.wav, OUT/manifest.jsonl, and a journal that lets a
stopped run resume.

The manifest is written once, at the end, by rename: where it is, everything is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llasa_core.audio import write_wav
from llasa_core.errors import InputError
from llasa_core.files import write_rows
from llasa_core.journal import FINISHED, SETTINGS, Journal, finished_lines
from llasa_core.manifest import Request, file_name, refuse_repeated
from llasa_core.synthesis.guards import Guards, Spoken
from llasa_core.synthesis.sampling import Sampling

if TYPE_CHECKING:
    from llasa_core.synthesis.synthesizer import Synthesizer

MANIFEST = "manifest.jsonl"

PIECES = ("pieces/first", "pieces/rest")  # folders of long texts, each with a journal


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


def refuse_another_run(out: str | Path, requests: Iterable[Request]) -> None:
    """InputError where OUT holds what these requests, pieces of long texts included, would
    overwrite or leave out: speech of other requests, or recordings that are no speech of ours.
    """
    out, wanted = Path(out), {request.id: request for request in requests}
    journals = [out, *(out / name for name in PIECES)]
    for folder in journals:
        for line in finished_lines(folder):
            request, made_for = wanted.get(line["id"]), line["identity"]
            if request is not None and request.voice is None and folder != out:
                made_for = made_for | {"voice": None}  # the first piece became the voice
            if request is None or request.identity() != made_for:
                raise InputError(
                    f"{out}: holds {line['id']!r} of another run; choose another folder, or"
                    " --overwrite"
                )
    if any((folder / SETTINGS).is_file() for folder in journals):
        return
    for name in wanted:
        if (wav := out / "wavs" / f"{file_name(name)}.wav").exists():
            raise InputError(f"{wav}: is there already; choose another folder, or --overwrite")


def forget_run(out: str | Path) -> None:
    """Take away what says which run the speech in OUT is of, so that all of it is made again."""
    for folder in (Path(out), *(Path(out) / name for name in PIECES)):
        for name in (MANIFEST, FINISHED, SETTINGS):
            (folder / name).unlink(missing_ok=True)


def failures(rows: Iterable[Mapping]) -> dict[str, str]:
    """{utterance, or piece of a long text, that failed its guards: why, and the words}."""
    found = {}
    for row in rows:
        failed = row.get("failed") or {}
        if not isinstance(failed, Mapping):
            failed = {row["id"]: failed}
        texts = row.get("failed_texts", {row["id"]: row["text"]})
        for name, reasons in failed.items():
            found[name] = f"{', '.join(reasons)}; may not have said {texts[name]!r}"
    return found
