"""A static listening page: players, spectrograms, transcripts, scores and figures in one folder, no
server needed.

Audio and pictures are files next to `index.html`, referred to by relative paths; every text is
escaped.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llasa_core import plots
from llasa_core.audio import SAMPLE_RATE, load_audio, write_mp3, write_wav
from llasa_core.errors import InputError
from llasa_core.files import publish, render_page

PLAYED = {".wav", ".flac", ".ogg", ".opus", ".mp3"}  # decoded here, played by every browser

MEANINGS = {
    "hypothesis": "In quotes: what a speech recogniser wrote down.",
    "errors": "Words wrong: substituted, left out or put in, of the words of the text.",
    "similarity": "Similarity: cosine to other recordings of the speaker, 1 = the same voice.",
    "quality": "Quality: predicted mean opinion score, 1 (bad) to 5 (excellent).",
}


@dataclass(frozen=True)
class System:
    """A column of players: a name, its scored rows (`utterances.jsonl`) and the folder of wavs.

    A row's `note` is shown before its scores.
    """

    name: str
    rows: Sequence[Mapping]
    folder: Path


def listening_page(
    out: str | Path,
    title: str,
    intro: Sequence[str],
    scores: Sequence[Mapping[str, str]],
    drawn: Mapping[str, Figure],
    systems: Sequence[System],
    limit: int = 24,
    compressed: bool = False,
) -> Path:
    """Write `out/index.html` with its audio and pictures in `out/media`, in place of an earlier
    page; return its path.

    `scores` is a table of ready-made strings, one mapping a row; `drawn` maps captions to figures.
    Utterances appear in the order of the first system, at most `limit` of them; one that another
    system lacks raises InputError. `compressed`: the players' files are MP3, a sixth of a wav.
    Nothing of an earlier page changes before the new one is complete.
    """
    out = Path(out)
    media, fresh = out / "media", out / "media.part"
    if media.exists() and not (out / "index.html").exists():
        raise InputError(
            f"{media}: is there without a listening page, expected a folder for the page alone"
        )
    if not systems or not systems[0].rows:
        raise InputError("listening page: no system with utterances to listen to")
    tables = [{row["id"]: row for row in system.rows} for system in systems]
    shown = systems[0].rows[:limit]
    for system, table in zip(systems, tables, strict=True):
        if missing := [row["id"] for row in shown if row["id"] not in table]:
            raise InputError(f"listening page: {system.name} has no utterance {missing[0]!r}")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(parents=True)
    counted = (
        f"{len(shown)} of {len(systems[0].rows)}"
        if len(shown) < len(systems[0].rows)
        else f"{len(shown)}"
    )
    several = len(systems) > 1
    legend = [f"Sentences: {counted}" + several * f", each from {len(systems)} sources" + "."]
    legend += [
        text for key, text in MEANINGS.items() if any(key in row for s in systems for row in s.rows)
    ]
    shared = several * "; those of one sentence share their time axis"
    legend += [f"Spectrograms: 0 to 8 kHz{shared}."]
    page = render_page(
        Path(__file__).parent,
        "listening_page",
        title=title,
        columns=min(len(systems), 4),
        intro=intro,
        scores=scores,
        columns_of_scores=list(dict.fromkeys(name for row in scores for name in row)),
        pictures=_pictures(drawn, fresh),
        legend=legend,
        utterances=[
            _utterance(number, [table[row["id"]] for table in tables], systems, fresh, compressed)
            for number, row in enumerate(shown, 1)
        ],
    )
    publish(out / "index.html", page)
    if media.exists():
        shutil.rmtree(media)
    fresh.replace(media)
    return out / "index.html"


def score_table(table: pd.DataFrame) -> list[dict[str, str]]:
    """Summaries of systems (`system` and keys of evaluate.summarise) as text, with intervals."""
    shown = {
        "corpus_wer": ("corpus WER (%)", 100, 1),
        "speaker_similarity": ("speaker similarity", 1, 3),
    }
    shown |= {
        "quality": ("predicted quality (1 to 5)", 1, 2),
        "sampled_again_share": ("sampled again by the guards (%)", 100, 1),
    }
    rows = []
    for _, row in table.iterrows():
        cells = {"system": row["system"]}
        for key, (label, factor, digits) in shown.items():
            if key in table and pd.notna(row[key]):
                value, low, high = (
                    f"{factor * row[key + end]:.{digits}f}" for end in ("", "_low", "_high")
                )
                cells[label] = f"{value} [{low}, {high}] n={int(row[key + '_n'])}"
        rows.append(cells)
    return rows


def _pictures(drawn: Mapping[str, Figure], media: Path) -> dict[str, str]:
    """Captions and the files of their figures, relative to the page."""
    pictures = {}
    for number, (caption, figure) in enumerate(drawn.items()):
        figure.savefig(media / f"figure-{number}.png")
        pictures[caption] = f"media/figure-{number}.png"
    return pictures


def _utterance(
    number: int,
    rows: Sequence[Mapping],
    systems: Sequence[System],
    media: Path,
    compressed: bool,
) -> dict[str, Any]:
    """What the page says of one text; its players' files go to `media` under names of our own."""
    files = [system.folder / row["audio"] for system, row in zip(systems, rows, strict=True)]
    waves = [load_audio(file) for file in files]
    longest = max(len(wave) for wave in waves) / SAMPLE_RATE
    takes = []
    for place, (row, system, file, wave) in enumerate(
        zip(rows, systems, files, waves, strict=True)
    ):
        stem = f"{number:03d}-{place}-" + re.sub(r"[^A-Za-z0-9._-]", "_", str(row["id"]))[:80]
        sound = _sound(file, wave, media / stem, compressed)
        drawing = plots.spectrogram(wave)
        drawing.axes[0].set_xlim(0, longest)
        drawing.axes[0].grid(False)
        drawing.savefig(media / f"{stem}.webp", dpi=110, pil_kwargs={"quality": 60})
        takes.append(
            {
                "system": system.name,
                "sound": sound.name,
                "picture": f"{stem}.webp",
                "seconds": len(wave) / SAMPLE_RATE,
                "heard": row.get("hypothesis"),
                "findings": _findings(row),
            }
        )
    return {"text": rows[0]["text"], "language": rows[0].get("language") or "en", "takes": takes}


def _sound(file: Path, wave: np.ndarray, stem: Path, compressed: bool) -> Path:
    """The player's file: the recording's own, or its wave in a format that every browser plays."""
    suffix = file.suffix.lower()
    suffix = ".mp3" if compressed else suffix if suffix in PLAYED else ".wav"
    sound = stem.with_name(stem.name + suffix)
    if suffix == file.suffix.lower():
        shutil.copyfile(file, sound)
    else:
        (write_mp3 if compressed else write_wav)(sound, wave)
    return sound


def _findings(row: Mapping) -> list[str]:
    found = [
        row.get("note", ""),
        f"{row['errors']} of {row['words']} words wrong" if "errors" in row else "",
        f"similarity {row['similarity']:.2f}" if "similarity" in row else "",
        f"quality {row['quality']:.2f}" if "quality" in row else "",
        "cut off at the length limit" if row.get("ended") is False else "",
    ]
    return [part for part in found if part]
