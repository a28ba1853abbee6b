"""Searches a manifest into a folder: OUT/wavs/ID.wav, OUT/manifest.jsonl, OUT/search.json, and a
journal to resume from.

The manifest is written last. Long texts are searched in pieces, each a separate request, which
are joined when all of them are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llasa_core.audio import load_audio, write_wav
from llasa_core.files import write_json, write_rows
from llasa_core.journal import Journal
from llasa_core.manifest import Request, file_name, refuse_repeated
from llasa_core.search.cost import Cost
from llasa_core.search.search import search
from llasa_core.search.strategy import Chosen, Rule, Strategy, Verifier
from llasa_core.search.verifiers import chosen_by, judges_of
from llasa_core.synthesis.batch import MANIFEST, speech_row
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import piece_request, pieces_of_request

PAUSE_SECONDS = 0.15  # of silence between two pieces


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

    A line: as `speech_row`, with candidates (count), chosen (which), scores {verifier: of every
    candidate}, tokens and, of best-of-n, candidate_codes (of every candidate), cost, and what
    `chosen_by` tells of the judges that chose: the speech must not be scored with them. A text
    longer than `chunk_characters` (0: never) is searched in pieces of at most that length (paper:
    100) with a pause between them; chosen, scores and tokens are then lists, one entry a piece.
    OUT/search.json sums up cost, settings and verifiers. Stopped and started again, it keeps what
    is finished. `progress` is called with the number of pieces just finished. Raises InputError for
    a repeated id, bad requests, or an OUT made with other settings.
    """
    sampling, rule, out = sampling or Sampling(), rule or Rule(), Path(out)
    refuse_repeated(requests)
    pieces = {request.id: pieces_of(request, chunk_characters) for request in requests}
    every = [piece for group in pieces.values() for piece in group]
    refuse_repeated(every, "requests and their pieces")
    judges = judges_of(verifiers)
    settings = {
        **synthesizer.settings(),
        **asdict(sampling),
        "strategy": asdict(strategy),
        "rule": asdict(rule),
        "verifiers": judges,
        "chunk_characters": chunk_characters,
    }
    journal = Journal(out, settings, MANIFEST)
    wanted = {piece.id: piece.identity() for piece in every}
    finished = journal.finished(wanted)
    # Checks what is left to search, before anything is written.
    left = [piece for piece in every if piece.id not in finished]
    found = search(synthesizer, left, strategy, verifiers, sampling, rule)
    for name in ("wavs", "pieces") if len(every) > len(requests) else ("wavs",):
        (out / name).mkdir(parents=True, exist_ok=True)
    with journal.writing(finished) as add:
        if progress and finished:
            progress(len(finished))
        for chosen in found:
            name = chosen.request.id
            audio = f"{'wavs' if name in pieces else 'pieces'}/{file_name(name)}.wav"
            write_wav(out / audio, chosen.spoken.wave, synthesizer.codec.sample_rate)
            finished[name] = {"id": name, "audio": audio, **_described(chosen)}
            add(finished[name], wanted[name])
            if progress:
                progress(1)
    rows = []
    for request in requests:
        parts = [finished[piece.id] for piece in pieces[request.id]]
        row = _joined(out, request, parts, synthesizer.codec.sample_rate)
        rows.append(row | chosen_by(verifiers, request))
    cost = Cost.total([Cost(**row["cost"]) for row in rows]).rounded()
    write_json(out / "search.json", {"cost": cost, "requests": len(rows), **journal.settings})
    return write_rows(out / MANIFEST, rows)


def _described(chosen: Chosen) -> dict:
    generated = chosen.spoken.generated
    return {
        "chosen": chosen.index,
        "codes": len(generated.codes),
        "ended": generated.ended,
        "scores": {name: chosen.scores[:, at].tolist() for at, name in enumerate(chosen.verifiers)},
        "tokens": list(chosen.tokens),
        "cost": chosen.cost.rounded(),
        **({"candidate_codes": [one.tolist() for one in chosen.codes]} if chosen.codes else {}),
    }


def _joined(out: Path, request: Request, parts: list[dict], rate: int) -> dict:
    """The manifest's line of one request, whose audio is put together from its pieces."""
    waves = [load_audio(out / part["audio"], rate) for part in parts]
    pause = np.zeros(round(PAUSE_SECONDS * rate), np.float32)
    wave = np.concatenate([piece for one in waves for piece in (pause, one)][1:])
    audio = f"wavs/{file_name(request.id)}.wav"
    if len(parts) > 1:
        write_wav(out / audio, wave, rate)
    codes, ended = sum(part["codes"] for part in parts), all(part["ended"] for part in parts)
    row = speech_row(request, audio, codes, ended, len(wave) / rate)
    row["candidates"] = sum(len(part["tokens"]) for part in parts)
    for key in ("chosen", "scores", "tokens"):
        row[key] = parts[0][key] if len(parts) == 1 else [part[key] for part in parts]
    if len(parts) == 1 and "candidate_codes" in parts[0]:
        row["candidate_codes"] = parts[0]["candidate_codes"]
    return row | {"cost": Cost.total([Cost(**part["cost"]) for part in parts]).rounded()}


def pieces_of(request: Request, characters: int) -> list[Request]:
    """The request itself, or the requests of its pieces (`pieces_of_request`) where its text is
    longer than `characters` (0: never).
    """
    pieces = pieces_of_request(request, characters) if characters else []
    if len(pieces) < 2:
        return [request]
    return [piece_request(request, number, pieces) for number in range(len(pieces))]
