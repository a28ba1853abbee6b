"""Speaks requests into a folder: OUT/wavs/ID.wav, OUT/manifest.jsonl, and a journal that lets a
stopped run go on.

A manifest is written once, at the end, by rename: where it is, everything is finished. The journal
is appended to after the audio is in place, so a line that is whole speaks of audio that is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.audio import write_wav
from llasa_core.errors import InputError
from llasa_core.files import parse_object, publish
from llasa_core.manifest import Request, refuse_repeated
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.sampling import Sampling

if TYPE_CHECKING:
    from llasa_core.synthesis.synthesizer import Synthesizer


def synthesize_manifest(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    out,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    guards: Guards | None = None,
    keep_codes: bool = False,
) -> Path:
    """Speak requests into OUT/wavs/ID.wav (16 bit) and OUT/manifest.jsonl, one line a request, in
    their order.

    A line: id, audio (relative to OUT), text, speaker, seed, language, codes (count), ended,
    reason, seconds; with a voice prompt also voice, the hash of it; with guards also attempts
    (count), guard (why each rejected attempt was rejected) and failed (what is wrong with the one
    kept; [] if it is good); with `keep_codes` code_list, the codes. Stopped and started again, it
    keeps what is finished (OUT/finished.jsonl tells) and ends with the manifest of an uninterrupted
    run; a request whose text, speaker, seed or voice has changed is spoken again. `progress` is
    called with the number of utterances just finished. Returns the manifest's path. Raises
    InputError for a repeated id, bad requests, or an OUT made with another model, codec or
    sampling.
    """
    sampling, out = sampling or Sampling(), Path(out)
    refuse_repeated(requests)
    if (out / "manifest.jsonl").exists() and not (out / "synthesis.json").exists():
        raise InputError(
            f"{out / 'manifest.jsonl'}: not written by synthesis; choose another folder"
        )
    settings = {**synthesizer.settings(), **asdict(sampling)}
    if guards is not None:
        settings["guards"] = json.loads(json.dumps(asdict(guards)))
    _same_settings(out / "synthesis.json", settings)
    journal = out / "finished.jsonl"
    wanted = {request.id: _identity(request) for request in requests}
    languages = {request.id: request.language for request in requests}
    finished = {}
    for line in [*_complete_lines(out / "manifest.jsonl"), *_complete_lines(journal)]:
        same = wanted.get(line.get("id")) == {
            key: line.get(key) for key in ("text", "speaker", "seed", "voice")
        }
        if same and (out / line["audio"]).is_file():
            finished[line["id"]] = line | {
                "language": languages[line["id"]]
            }  # of the request, not of its sound
    # Checks what is left to speak, before anything is written.
    left = [request for request in requests if request.id not in finished]
    speech = synthesizer.speak(left, sampling, guards)
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    for torn in (out / "wavs").glob("*.part"):
        torn.unlink()
    publish(
        out / "synthesis.json", (json.dumps(settings, sort_keys=True, indent=1) + "\n").encode()
    )
    # Written anew without the torn last line of a killed run.
    publish(journal, "".join(_line(line) for line in finished.values()).encode())
    (out / "manifest.jsonl").unlink(
        missing_ok=True
    )  # its presence means that all requests are finished
    if progress and finished:
        progress(len(finished))
    with journal.open("a", encoding="utf-8") as append:
        for spoken in speech:
            request, generated = spoken.request, spoken.generated
            audio = f"wavs/{request.id}.wav"
            write_wav(out / audio, spoken.wave, synthesizer.codec.sample_rate)
            line = {
                "id": request.id,
                "audio": audio,
                **{k: v for k, v in wanted[request.id].items() if v is not None},
            }
            line |= {
                "language": request.language,
                "codes": len(generated.codes),
                "ended": generated.ended,
                "reason": generated.reason,
            }
            line["seconds"] = round(len(spoken.wave) / synthesizer.codec.sample_rate, 4)
            if guards is not None:
                line |= {
                    "attempts": spoken.attempts,
                    "guard": spoken.rejected,
                    "failed": spoken.failed,
                }
            if keep_codes:
                line["code_list"] = generated.codes.tolist()
            append.write(_line(line))
            append.flush()
            finished[request.id] = line
            if progress:
                progress(1)
    publish(
        out / "manifest.jsonl",
        "".join(_line(finished[request.id]) for request in requests).encode(),
    )
    journal.unlink()
    return out / "manifest.jsonl"


def _identity(request: Request) -> dict:
    """What makes two requests of one id the same; None for no voice."""
    voice = None
    if request.voice is not None:
        codes = np.ascontiguousarray(request.voice.codes, dtype="<i4").tobytes()
        voice = hashlib.sha256(request.voice.text.encode() + b"\0" + codes).hexdigest()[:12]
    return {
        "text": request.text,
        "speaker": request.speaker or "",
        "seed": request.seed,
        "voice": voice,
    }


def _same_settings(path: Path, settings: dict) -> None:
    if not path.is_file():
        return
    before = parse_object(path.read_text(encoding="utf-8"), str(path))
    for key in sorted(set(before) | set(settings)):
        if before.get(key) != settings.get(key):
            raise InputError(
                f"{path}: made with {key} {before.get(key)!r}, not {settings.get(key)!r}; choose"
                " another folder"
            )


def _complete_lines(path: Path) -> list[dict]:
    """The lines of a journal that end with a line break: all but the one that a killed run was
    writing.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [parse_object(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _line(item: dict) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"
