"""Verifiers for `search`: judges turned into scores of one candidate, higher is better; and the files of a search.

The paper's two (arXiv 2502.04128, section on inference-time scaling): the words, by a recogniser, and the voice, by a
speaker model. The trap: a result must be reported with other judges than the ones that chose.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.errors import InputError
from llasa_core.judges import SpeakerEmbedder, Transcriber
from llasa_core.metrics import word_errors
from llasa_core.speech_manifest import write_wav

if TYPE_CHECKING:
    from llasa_core.search import SearchResult, Verifier
    from llasa_core.speech_requests import Request


def words_verifier(transcriber: Transcriber, sample_rate: int = 16_000) -> Verifier:
    """Minus the word error rate of what `transcriber` hears: 0 is perfect."""

    def score(wave: np.ndarray, request: Request) -> float:
        errors, words = word_errors(request.text, transcriber.transcribe([wave], sample_rate)[0])
        return -errors / words

    return score


def voice_verifier(embedder: SpeakerEmbedder, voice: np.ndarray, sample_rate: int = 16_000) -> Verifier:
    """Cosine similarity, -1..1, to the recording `voice` float32 (T,) at `sample_rate`."""
    wanted = embedder.embed([voice], sample_rate)[0]

    def score(wave: np.ndarray, request: Request) -> float:
        return float(embedder.embed([wave], sample_rate)[0] @ wanted)

    return score


def write_search(result: SearchResult, out: str | Path, sample_rate: int = 16_000) -> Path:
    """OUT/wavs/ID.wav, OUT/search.json (cost, verifiers), and last OUT/manifest.jsonl; returns the manifest's path.

    A line holds id, audio, text, speaker, seed (of the chosen candidate), codes, ended, seconds, candidate and the
    scores of all candidates by verifier. Raises InputError where OUT already holds a manifest.
    """
    out = Path(out)
    manifest = out / "manifest.jsonl"
    if manifest.exists():
        raise InputError(f"{manifest}: exists already; choose another folder")
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    lines = []
    for chosen in result.chosen:
        request, generated = chosen.spoken.request, chosen.spoken.generated
        audio = f"wavs/{request.id}.wav"
        write_wav(out / audio, chosen.spoken.wave, sample_rate)
        line = {
            "id": request.id,
            "audio": audio,
            "text": request.text,
            "speaker": request.speaker or "",
            "seed": chosen.seeds[chosen.index],
            "codes": len(generated.codes),
            "ended": generated.ended,
            "seconds": len(chosen.spoken.wave) / sample_rate,
            "candidate": chosen.index,
            "scores": {name: chosen.scores[:, column].tolist() for column, name in enumerate(result.verifiers)},
        }
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    report = {"cost": asdict(result.cost), "verifiers": list(result.verifiers)}
    (out / "search.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    temporary = manifest.with_name("manifest.jsonl.part")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(manifest)
    return manifest
