"""Searches a manifest into a folder: OUT/wavs/ID.wav, OUT/manifest.jsonl, OUT/search.json, and a
journal to go on from.

As in `speech_manifest`, the journal is appended to after the audio is in place and the manifest is
written last. Long texts are searched in chunks, each a request of its own, which are joined when
all of them are finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from llasa_core.audio import load_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.files import publish
from llasa_core.manifest import Request
from llasa_core.search.cost import Cost
from llasa_core.search.search import search
from llasa_core.search.strategy import Chosen, Rule, Strategy, Verifier
from llasa_core.search.verifiers import judges_of
from llasa_core.synthesis.batch import _complete_lines, _identity, _line, _same_settings
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import text_chunks

PAUSE_SECONDS = 0.15  # of silence between two chunks


def search_manifest(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    out: str | Path,
    strategy: Strategy,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling | None = None,
    rule: Rule | None = None,
    chunk_characters: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Search every request into OUT, one line of OUT/manifest.jsonl a request, in their order;
    returns its path.

    A line: id, audio, text, speaker, seed, language, codes (count), ended, seconds, candidates
    (count), chosen (which), scores {verifier: of every candidate}, tokens (of every candidate),
    cost, and verifiers, the judges that chose: the speech must not be scored with them. A text
    longer than `chunk_characters` (0: never) is searched in pieces of about that length (paper:
    100) with a pause between them; scores and tokens are then lists, one entry a piece.
    OUT/search.json sums up cost, settings and verifiers. Stopped and started again, it keeps what
    is finished. `progress` is called with the number of pieces just finished. Raises InputError for
    a repeated id, bad requests, or an OUT made with other settings.
    """
    sampling, rule, out = sampling or Sampling(), rule or Rule(), Path(out)
    if repeated := [
        name for name, count in Counter(request.id for request in requests).items() if count > 1
    ]:
        raise InputError(f"requests: the id {repeated[0]!r} is there more than once")
    if (out / "manifest.jsonl").exists() and not (out / "settings.json").exists():
        raise InputError(
            f"{out / 'manifest.jsonl'}: not written by this search; choose another folder"
        )
    settings = {
        **synthesizer.settings(),
        **asdict(sampling),
        "strategy": asdict(strategy),
        "rule": asdict(rule),
    }
    settings |= {"verifiers": judges_of(verifiers), "chunk_characters": chunk_characters}
    settings = json.loads(json.dumps(settings))
    _same_settings(out / "settings.json", settings)
    pieces = {request.id: pieces_of(request, chunk_characters) for request in requests}
    every = [piece for group in pieces.values() for piece in group]
    if repeated := [
        name for name, count in Counter(piece.id for piece in every).items() if count > 1
    ]:
        raise InputError(
            f"requests: the id {repeated[0]!r} is that of a request and of a piece of another"
        )
    journal = out / "finished.jsonl"
    wanted = {
        piece.id: _identity(piece) | {"language": piece.language} for piece in every
    }  # the verifiers ask for it
    folder = {
        piece.id: "pieces" if len(group) > 1 else "wavs"
        for group in pieces.values()
        for piece in group
    }
    finished = {}
    for line in _complete_lines(journal):
        same = wanted.get(line.get("id")) == {"language": "en"} | line.get("identity", {})
        if same and (out / line["audio"]).is_file():
            finished[line["id"]] = line
    found = search(
        synthesizer,
        [piece for piece in every if piece.id not in finished],
        strategy,
        verifiers,
        sampling,
        rule,
    )
    for name in {"wavs", *folder.values()}:
        (out / name).mkdir(parents=True, exist_ok=True)
    publish(out / "settings.json", (json.dumps(settings, sort_keys=True, indent=1) + "\n").encode())
    # Written anew without the torn last line of a killed run.
    publish(journal, "".join(_line(line) for line in finished.values()).encode())
    if progress and finished:
        progress(len(finished))
    with journal.open("a", encoding="utf-8") as append:
        for chosen in found:
            piece = chosen.request
            line = {
                "id": piece.id,
                "audio": f"{folder[piece.id]}/{piece.id}.wav",
                "identity": wanted[piece.id],
            }
            line |= _described(chosen)
            write_wav(out / line["audio"], chosen.spoken.wave, synthesizer.codec.sample_rate)
            append.write(_line(line))
            append.flush()
            finished[piece.id] = line
            if progress:
                progress(1)
    names, rate = judges_of(verifiers), synthesizer.codec.sample_rate
    parts = {
        request.id: [finished[piece.id] for piece in pieces[request.id]] for request in requests
    }
    lines = [_joined(out, request, parts[request.id], names, rate) for request in requests]
    cost = Cost.total([Cost(**line["cost"]) for line in lines]).rounded()
    report = {"cost": cost, "requests": len(lines), **settings}
    publish(out / "search.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    publish(out / "manifest.jsonl", "".join(_line(line) for line in lines).encode())
    return out / "manifest.jsonl"


def _described(chosen: Chosen) -> dict:
    generated = chosen.spoken.generated
    return {
        "chosen": chosen.index,
        "codes": len(generated.codes),
        "ended": generated.ended,
        "scores": {name: chosen.scores[:, at].tolist() for at, name in enumerate(chosen.verifiers)},
        "tokens": list(chosen.tokens),
        "cost": chosen.cost.rounded(),
    }


def _joined(
    out: Path, request: Request, parts: list[dict], verifiers: Mapping[str, str], rate: int
) -> dict:
    """The manifest's line of one request, whose audio is put together from its pieces."""
    waves = [load_audio(out / part["audio"], rate) for part in parts]
    pause = np.zeros(round(PAUSE_SECONDS * rate), np.float32)
    wave = np.concatenate([piece for one in waves for piece in (pause, one)][1:])
    audio = f"wavs/{request.id}.wav"
    if len(parts) > 1:
        write_wav(out / audio, wave, rate)
    line = {
        "id": request.id,
        "audio": audio,
        "text": request.text,
        "speaker": request.speaker or "",
    }
    line |= {
        "seed": request.seed,
        "language": request.language,
        "codes": sum(part["codes"] for part in parts),
    }
    line |= {"ended": all(part["ended"] for part in parts), "seconds": round(len(wave) / rate, 4)}
    line["candidates"] = sum(len(part["tokens"]) for part in parts)
    for key in ("chosen", "scores", "tokens"):
        line[key] = parts[0][key] if len(parts) == 1 else [part[key] for part in parts]
    line["cost"] = Cost.total([Cost(**part["cost"]) for part in parts]).rounded()
    line["verifiers"] = sorted(set(verifiers.values()))
    return line


def pieces_of(request: Request, characters: int) -> list[Request]:
    """The request itself, or its chunks ID.0, ID.1, .. where its text is longer than `characters`
    (0: never).

    A text that begins with the words of its voice prompt is never cut: a later chunk would not
    begin with them.
    """
    texts = (
        text_chunks(request.text, characters)
        if characters and not request.continues
        else [request.text]
    )
    if len(texts) == 1:
        return [request]
    return [
        replace(request, id=f"{request.id}.{number}", text=text)
        for number, text in enumerate(texts)
    ]
