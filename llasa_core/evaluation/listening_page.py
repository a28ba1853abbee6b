"""A static listening page: players, spectrograms, transcripts, scores and figures in one folder, no
server needed.

Audio and pictures are files next to `index.html`, referred to by relative paths; every text is
escaped.
"""

import html
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from llasa_core import plots
from llasa_core.audio import SAMPLE_RATE, load_audio
from llasa_core.errors import InputError
from llasa_core.files import publish

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1.25rem; color: #1b1b1b }}
h1 {{ font-size: 1.6rem; line-height: 1.2 }} h2 {{ font-size: 1.25rem; margin: 2.4rem 0 .6rem }}
h3 {{ font-size: 1.05rem; margin: 0 0 .6rem }} p {{ max-width: 48rem; margin: .4rem 0 }}
figure {{ margin: 0; min-width: 0 }} figcaption {{ font-weight: 600 }}
img {{ display: block; width: 100%; height: auto }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse }}
td, th {{ text-align: left; padding: .35rem 1.5rem .35rem 0; white-space: nowrap; font-variant-numeric: tabular-nums }}
tr + tr {{ border-top: 1px solid #d0d0d0 }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1.25rem }}
.utterance {{ border-top: 1px solid #d0d0d0; padding: 1rem 0 1.25rem }}
.systems {{ display: grid; grid-template-columns: repeat({columns}, minmax(0, 1fr)); gap: 1.25rem }}
.systems audio {{ width: 100%; margin: .25rem 0 .5rem }} .systems p {{ margin: .3rem 0 0 }}
.note {{ padding-left: 1.2rem; margin: 0 0 1rem }}
.heard {{ font-style: italic }} .note, .score {{ color: #555 }} .score {{ font-size: .875rem }}
@media (max-width: 48rem) {{ .systems {{ grid-template-columns: 1fr }} }}
</style></head><body><main>
<h1>{title}</h1>
{body}
</main><script>
document.addEventListener("play", (event) => document.querySelectorAll("audio").forEach(
  (player) => player === event.target || player.pause()), true);
</script></body></html>
"""

MEANINGS = {
    "hypothesis": "In quotes: what a speech recogniser wrote down.",
    "errors": "Words wrong: substituted, left out or put in, of the words of the text.",
    "similarity": "Similarity: cosine to other recordings of the speaker, 1 = the same voice.",
    "quality": "Quality: predicted mean opinion score, 1 (bad) to 5 (excellent).",
}


@dataclass(frozen=True)
class System:
    """One column of players: a name and its scored rows (`utterances.jsonl`) with the folder of
    their wavs.
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
) -> Path:
    """Write `out/index.html` with its audio and pictures in `out/media`, in place of an earlier
    page; return its path.

    `scores` is a table of ready-made strings, one mapping a row; `drawn` maps captions to figures.
    Utterances appear in the order of the first system, at most `limit` of them; one that another
    system lacks raises InputError. Nothing of an earlier page changes before the new one is
    complete.
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
    body = [_paragraphs(intro)]
    if scores:
        body += ["<h2>Scores</h2>", _table(scores)]
    if drawn:
        body += ["<h2>Figures</h2>", _pictures(drawn, fresh)]
    counted = (
        f"{len(shown)} of {len(systems[0].rows)}"
        if len(shown) < len(systems[0].rows)
        else f"{len(shown)}"
    )
    legend = [f"Sentences: {counted}, each from {len(systems)} sources."]
    legend += [
        text for key, text in MEANINGS.items() if any(key in row for s in systems for row in s.rows)
    ]
    legend += ["Spectrograms: 0 to 8 kHz; those of one sentence share their time axis."]
    body += [
        f'<h2>Listen</h2><ul class="note">{"".join(f"<li>{line}</li>" for line in legend)}</ul>'
    ]
    for number, row in enumerate(shown, 1):
        body.append(_utterance(number, [table[row["id"]] for table in tables], systems, fresh))
    page = PAGE.format(title=html.escape(title), columns=min(len(systems), 4), body="\n".join(body))
    publish(out / "index.html", page.encode())
    if media.exists():
        shutil.rmtree(media)
    fresh.replace(media)
    return out / "index.html"


def score_table(table: pd.DataFrame) -> list[dict[str, str]]:
    """Summaries of systems (a column `system` and the keys of evaluate.summarise) as text with
    intervals and counts.
    """
    shown = {
        "corpus_wer": ("corpus WER (%)", 100, 1),
        "speaker_similarity": ("speaker similarity", 1, 3),
    }
    shown |= {"quality": ("predicted quality (1 to 5)", 1, 2)}
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


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    lines = []
    for row in rows:
        first, *others = (html.escape(str(row.get(name, ""))) for name in names)
        lines.append(
            f'<tr><th scope="row">{first}</th>'
            + "".join(f"<td>{cell}</td>" for cell in others)
            + "</tr>"
        )
    return f'<div class="wide"><table><tr>{head}</tr>\n{"".join(lines)}</table></div>'


def _pictures(drawn: Mapping[str, Figure], media: Path) -> str:
    pictures = []
    for number, (caption, figure) in enumerate(drawn.items()):
        figure.savefig(media / f"figure-{number}.png")
        text, source = html.escape(caption), f"media/figure-{number}.png"
        pictures.append(
            f'<figure><figcaption>{text}</figcaption><img src="{source}" alt="{text}"></figure>'
        )
    return f'<div class="figures">{"".join(pictures)}</div>'


def _utterance(number: int, rows: Sequence[Mapping], systems: Sequence[System], media: Path) -> str:
    files = [system.folder / row["audio"] for system, row in zip(systems, rows, strict=True)]
    waves = [load_audio(file) for file in files]
    longest = max(len(wave) for wave in waves) / SAMPLE_RATE
    text, language = html.escape(rows[0]["text"]), html.escape(rows[0].get("language") or "en")
    cells = []
    for place, (row, system, file, wave) in enumerate(
        zip(rows, systems, files, waves, strict=True)
    ):
        stem = f"{number:03d}-{place}-" + re.sub(r"[^A-Za-z0-9._-]", "_", str(row["id"]))[:80]
        sound = f"{stem}{file.suffix.lower()}"
        shutil.copyfile(file, media / sound)
        drawing = plots.spectrogram(wave)
        drawing.axes[0].set_xlim(0, longest)
        drawing.axes[0].grid(False)
        drawing.savefig(media / f"{stem}.webp", dpi=110, pil_kwargs={"quality": 60})
        name = html.escape(system.name)
        cells.append(
            f'<figure><figcaption>{name}</figcaption><audio controls preload="metadata"'
            f' src="media/{sound}" aria-label="{name}: {text}"></audio><img src="media/{stem}.webp"'
            f' width="506" height="209" loading="lazy" alt="Spectrogram of {name},'
            f' {len(wave) / SAMPLE_RATE:.1f} s">{_findings(row)}</figure>'
        )
    heading = (
        f'<h3 id="utterance-{number}">{number}. <span lang="{language}"'
        f' dir="auto">{text}</span></h3>'
    )
    return (
        f'<section class="utterance" aria-labelledby="utterance-{number}">{heading}\n'
        f'<div class="systems">{"".join(cells)}</div></section>'
    )


def _findings(row: Mapping) -> str:
    found = [
        f"{row['errors']} of {row['words']} words wrong" if "errors" in row else "",
        f"similarity {row['similarity']:.2f}" if "similarity" in row else "",
        f"quality {row['quality']:.2f}" if "quality" in row else "",
        "cut off at the length limit" if row.get("ended") is False else "",
    ]
    heard = row.get("hypothesis")
    said = f"“{html.escape(heard)}”" if heard else "no word recognised"
    quoted = f'<p class="heard">{said}</p>' if heard is not None else ""
    return f'{quoted}<p class="score">{" · ".join(part for part in found if part)}</p>'
