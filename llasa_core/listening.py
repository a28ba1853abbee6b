"""A static listening page: players, spectrograms, transcripts, scores and figures in one folder, no server needed.

Audio and pictures are files beside `index.html`, referred to by relative paths; every text is escaped.
"""

import html
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from llasa_core import figures
from llasa_core.audio import load_audio
from llasa_core.errors import InputError

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem }}
table {{ border-collapse: collapse; width: 100% }} 
td, th {{ text-align: left; vertical-align: top; padding: .4rem .6rem }}
tr {{ border-top: 1px solid #d5d5d5 }} audio {{ width: 100%; min-width: 13rem }} img {{ max-width: 100% }}
.text {{ font-weight: 600 }} .heard {{ color: #444 }} .score {{ color: #666; font-size: .85rem }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1rem }} .figures figure {{ margin: 0; max-width: 36rem }}
</style></head><body>
<h1>{title}</h1>
{intro}
<h2>Scores</h2>
{scores}
<h2>Figures</h2>
<div class="figures">{figures}</div>
<h2>Listen</h2>
{players}
</body></html>
"""


@dataclass(frozen=True)
class System:
    """One column of players: a name and its scored rows (`utterances.jsonl`) with the folder of their wavs."""

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
) -> Path:
    """Write `out/index.html` with its audio and pictures and return its path.

    `scores` is a table of ready-made strings, one mapping a row; `drawn` maps captions to figures. Utterances appear in
    the order of the first system, at most `limit` of them; one that another system lacks raises InputError.
    """
    out = Path(out)
    media = out / "media"
    if media.is_dir():
        shutil.rmtree(media)
    media.mkdir(parents=True)
    pictures = []
    for number, (caption, figure) in enumerate(drawn.items()):
        name = f"figure-{number}.png"
        figure.savefig(media / name)
        text = html.escape(caption)
        pictures.append(f'<figure><img src="media/{name}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    page = PAGE.format(
        title=html.escape(title),
        intro="".join(f"<p>{html.escape(line)}</p>" for line in intro),
        scores=_table(scores),
        figures="".join(pictures),
        players=_players(systems, media, limit),
    )
    temporary = out / "index.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(out / "index.html")
    return out / "index.html"


def score_table(table: pd.DataFrame) -> list[dict[str, str]]:
    """Summaries of systems (a column `system` and the keys of evaluate.summarise) as text with intervals and counts."""
    shown = {"corpus_wer": ("corpus WER (%)", 100, 1), "speaker_similarity": ("speaker similarity", 1, 3)}
    shown |= {"quality": ("predicted quality (1 to 5)", 1, 2)}
    rows = []
    for _, row in table.iterrows():
        cells = {"system": row["system"]}
        for key, (label, factor, digits) in shown.items():
            if key in table and pd.notna(row[key]):
                value, low, high = (f"{factor * row[key + end]:.{digits}f}" for end in ("", "_low", "_high"))
                cells[label] = f"{value} [{low}, {high}] n={int(row[key + '_n'])}"
        rows.append(cells)
    return rows


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row.values()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _players(systems: Sequence[System], media: Path, limit: int) -> str:
    if not systems:
        raise InputError("listening page: no system to listen to")
    lines = ["<table><tr><th>text</th>" + "".join(f"<th>{html.escape(s.name)}</th>" for s in systems) + "</tr>"]
    tables = [{row["id"]: row for row in system.rows} for system in systems]
    for row in list(systems[0].rows)[:limit]:
        cells = [f'<td class="text">{html.escape(row["text"])}</td>']
        for place, (system, table) in enumerate(zip(systems, tables, strict=True)):
            if row["id"] not in table:
                raise InputError(f"listening page: {system.name} has no utterance {row['id']!r}")
            cells.append(f"<td>{_player(table[row['id']], system.folder, media, place)}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _player(row: Mapping, folder: Path, media: Path, place: int) -> str:
    stem = f"{place}-{row['id']}".replace("/", "_")
    wave = load_audio(folder / row["audio"])
    shutil.copyfile(folder / row["audio"], media / f"{stem}.wav")
    figures.spectrogram(wave).savefig(media / f"{stem}.png", dpi=80)
    found = [
        f"{row['errors']} of {row['words']} words wrong" if "errors" in row else "",
        f"similarity {row['similarity']:.2f}" if "similarity" in row else "",
        f"quality {row['quality']:.2f}" if "quality" in row else "",
    ]
    heard = f'<div class="heard">heard: {html.escape(row["hypothesis"])}</div>' if "hypothesis" in row else ""
    return (
        f'<audio controls preload="none" src="media/{html.escape(stem)}.wav"></audio>'
        f'<img src="media/{html.escape(stem)}.png" alt="spectrogram">{heard}'
        f'<div class="score">{html.escape(" · ".join(part for part in found if part))}</div>'
    )
