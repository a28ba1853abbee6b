"""Texts of any length: cut at sentences, spoken piece by piece in one voice, joined with the pauses
they should have.

The voice is carried along: a voice prompt or a known speaker tag goes to every piece; without
either the first piece becomes the prompt of the others. Pieces are requests of their own in
OUT/pieces, so a stopped run resumes; they are joined from disk, one in memory at a time. What
silence a piece has at its ends is measured and counted into the pause.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.audio import load_audio, sixteen_bit
from llasa_core.errors import InputError
from llasa_core.files import read_rows, write_rows
from llasa_core.manifest import Request, file_name, refuse_repeated
from llasa_core.prompts import Voice
from llasa_core.synthesis.batch import MANIFEST, PIECES, speech_row, synthesize_manifest
from llasa_core.synthesis.guards import FRAME_SECONDS, Guards, sounding_frames
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.streaming import SpeechFile, SpeechStream, Window
from llasa_core.synthesis.text import CHARACTERS, Piece, piece_request, pieces_of_request

if TYPE_CHECKING:
    from llasa_core.synthesis.guards import Spoken
    from llasa_core.synthesis.synthesizer import Synthesizer


LONGEST_EDGE = 0.25  # seconds of silence that a piece may keep at an end without being cut


def speak_long(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    out: str | Path,
    sampling: Sampling | None = None,
    guards: Guards | None = None,
    characters: int = CHARACTERS,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Speak texts of any length into OUT/wavs/ID.wav and OUT/manifest.jsonl; the pieces are kept in
    OUT/pieces.

    A line: as `speech_row`, with ended (all pieces) and pieces (count); with guards also attempts
    (of all pieces), failed ({piece: reasons}) and failed_texts ({piece: its words}). A stopped
    run resumes. `progress` is called with the number of pieces just finished. Returns the
    manifest's path; raises InputError as `synthesize_manifest`.
    """
    out, sampling = Path(out), sampling or Sampling()
    refuse_repeated(requests)
    cut = {request.id: pieces_of_request(request, characters) for request in requests}
    manifest, folders = out / MANIFEST, [out / name for name in PIECES]
    if manifest.exists() and not folders[1].is_dir():
        raise InputError(
            f"{manifest}: not written by the synthesis of long texts; choose another folder"
        )
    firsts = [
        piece_request(one, 0, cut[one.id])
        for one in requests
        if len(cut[one.id]) > 1 and _carries(synthesizer, one)
    ]
    settings = (sampling, progress, guards)
    spoken: dict[str, tuple[Path, dict]] = {}  # folder and row of each piece, by its id
    if firsts:
        path = synthesize_manifest(synthesizer, firsts, folders[0], *settings, keep_codes=True)
        spoken = {row["id"]: (folders[0], row) for row in read_rows(path)}
    voices = {
        piece.id: Voice(piece.text, np.array(spoken[piece.id][1]["code_list"], np.int32))
        for piece in firsts
    }
    rest = [
        piece
        for request in requests
        for piece in _in_one_voice(request, cut[request.id], voices)
        if piece.id not in spoken
    ]
    path = synthesize_manifest(synthesizer, rest, folders[1], *settings)
    spoken |= {row["id"]: (folders[1], row) for row in read_rows(path)}
    manifest.unlink(missing_ok=True)  # its presence means that all texts are joined
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    rows = []
    for request in requests:
        names = [piece_request(request, n, cut[request.id]).id for n in range(len(cut[request.id]))]
        pauses = [piece.pause for piece in cut[request.id]]
        rate = synthesizer.codec.sample_rate
        rows.append(_join(request, out, [spoken[name] for name in names], pauses, rate))
    return write_rows(manifest, rows)


@dataclass(frozen=True)
class SpokenText:
    """A text spoken in memory: wave float32 (T,) at the codec's rate, and what became of each of
    its pieces, in order.
    """

    wave: np.ndarray
    pieces: tuple[Spoken, ...]


def speak_text(
    synthesizer: Synthesizer,
    request: Request,
    sampling: Sampling | None = None,
    guards: Guards | None = None,
    characters: int = CHARACTERS,
) -> SpokenText:
    """One text of any length without files. Its samples in 16 bit (`audio.sixteen_bit`) are those
    that `synthesize_manifest` and `speak_long` write. Raises InputError for what cannot be spoken.
    """
    pieces = pieces_of_request(request, characters)
    if len(pieces) < 2:
        (spoken,) = synthesizer.speak([request], sampling, guards)
        return SpokenText(spoken.wave, (spoken,))
    first, voices, done = piece_request(request, 0, pieces), {}, {}
    if _carries(synthesizer, request):
        (done[first.id],) = synthesizer.speak([first], sampling, guards)
        voices[first.id] = Voice(first.text, done[first.id].generated.codes)
    parts = list(_in_one_voice(request, pieces, voices))
    rest = [part for part in parts if part.id not in done]
    done |= {one.request.id: one for one in synthesizer.speak(rest, sampling, guards)}
    spoken = tuple(done[part.id] for part in parts)
    # Pauses are measured in what a file of the piece would hold
    heard = (sixteen_bit(one.wave).astype(np.float32) / 32768 for one in spoken)
    pauses = [piece.pause for piece in pieces]
    return SpokenText(
        np.concatenate(list(joined(heard, pauses, synthesizer.codec.sample_rate))), spoken
    )


def _in_one_voice(
    request: Request, pieces: Sequence[Piece], voices: Mapping[str, Voice]
) -> Iterator[Request]:
    """The requests of a text's pieces, all after the first in the voice that the first has in
    `voices`.
    """
    first = piece_request(request, 0, pieces)
    yield first
    carried = replace(request, voice=voices.get(first.id, request.voice))
    for number in range(1, len(pieces)):
        yield piece_request(carried, number, pieces)


def _join(
    request: Request,
    out: Path,
    parts: Sequence[tuple[Path, dict]],
    pauses: Sequence[float],
    rate: int,
) -> dict:
    """Write OUT/wavs/ID.wav of a text's pieces (folder and row of each) and return its line of the
    manifest.
    """
    name = file_name(request.id)
    audio, temporary = f"wavs/{name}.wav", out / "wavs" / f"{name}.part"
    waves = (load_audio(folder / row["audio"], rate) for folder, row in parts)
    with SpeechFile(temporary, rate) as file:
        file.write_all(joined(waves, pauses, rate))
        seconds = file.seconds
    os.replace(temporary, out / audio)
    rows = [row for _, row in parts]
    codes, ended = sum(row["codes"] for row in rows), all(row["ended"] for row in rows)
    line = speech_row(request, audio, codes, ended, seconds) | {"pieces": len(rows)}
    if "attempts" in rows[0]:
        line["attempts"] = sum(row["attempts"] for row in rows)
        line["failed"] = {row["id"]: row["failed"] for row in rows if row["failed"]}
        line["failed_texts"] = {row["id"]: row["text"] for row in rows if row["failed"]}
    return line


def stream_long(
    synthesizer: Synthesizer,
    request: Request,
    sampling: Sampling | None = None,
    window: Window | None = None,
    guards: Guards | None = None,
    characters: int = CHARACTERS,
    told: Callable[[Spoken], None] | None = None,
) -> Iterator[np.ndarray]:
    """Waves (n,) of a text of any length while it is sampled, with pauses; `told(spoken)` is
    called after each piece.
    """
    pieces, rate = pieces_of_request(request, characters), synthesizer.codec.sample_rate
    carried, silent = request, 0.0  # seconds of silence at the end of what has been given out
    for number, piece in enumerate(pieces):
        part = piece_request(carried, number, pieces)
        stream = SpeechStream(synthesizer, part, sampling, window, guards)
        opened = number == 0
        for wave in stream:
            if not opened and len(wave):
                opened = True
                wanted = pieces[number - 1].pause - silent - edges(wave, rate)[0]
                yield np.zeros(max(0, round(wanted * rate)), np.float32)
            if len(wave):
                silent = edges(wave, rate)[1]
            yield wave
        if told is not None:
            told(stream.spoken)
        if number == 0 and _carries(synthesizer, request) and len(stream.spoken.generated.codes):
            carried = replace(request, voice=Voice(piece.text, stream.spoken.generated.codes))


def joined(waves: Iterator[np.ndarray], pauses: Sequence[float], rate: int) -> Iterator[np.ndarray]:
    """Waves with `pauses[i]` seconds of silence between the sound of i and of i + 1, none before
    and after the whole.

    The silence that two waves have at their ends counts; more than the pause is cut, down to
    LONGEST_EDGE each.
    """
    # The wave that waits for its pause, and the silence at its end.
    before: tuple[np.ndarray, float] | None = None
    for wave, pause in zip(waves, [0.0, *pauses], strict=False):
        start, end = edges(wave, rate)
        if before is not None:
            kept, missing = [], pause
            for silence in (before[1], start):
                kept.append(min(silence, max(LONGEST_EDGE, pause / 2)))
                missing -= kept[-1]
            yield before[0][: len(before[0]) - round((before[1] - kept[0]) * rate)]
            yield np.zeros(max(0, round(missing * rate)), np.float32)
            wave = wave[round((start - kept[1]) * rate) :]
        before = (wave, end)
    if before is not None:
        yield before[0]


def edges(wave: np.ndarray, rate: int) -> tuple[float, float]:
    """Seconds of silence at both ends of a wave, in frames of 20 ms that lie QUIET dB below its
    loud ones; an inaudible wave counts as sound, so that nothing of it is cut."""
    sounding = sounding_frames(wave, rate)
    sound = np.flatnonzero(sounding)
    if not len(sound):
        return 0.0, 0.0
    return float(sound[0] * FRAME_SECONDS), float((len(sounding) - 1 - sound[-1]) * FRAME_SECONDS)


def _carries(synthesizer: Synthesizer, request: Request) -> bool:
    """Whether the first piece becomes the voice of the others: nothing else says whose voice it
    is.
    """
    return request.voice is None and synthesizer.tag(request) is None
