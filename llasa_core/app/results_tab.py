"""What results/ holds: the report, the runs with their figures and numbers, the listening pages.

Files are served from `RESULTS_AT` by the server, only those of the kinds that people look at.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from llasa_core.errors import InputError
from llasa_core.experiments.results import read_result

RESULTS_AT = "results"  # address of the files, relative to the page
PICTURES = (".png", ".webp", ".svg")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SERVED = (*PICTURES, *SOUNDS, ".html", ".json", ".jsonl", ".ipynb", ".md")


def address(results: Path, path: Path) -> str:
    """Where the server shows a file below `results`."""
    return f"{RESULTS_AT}/{quote(path.relative_to(results).as_posix())}"


def report_text(results: Path) -> str:
    """results/README.md with links that lead to the files here; links that leave the folder are
    plain words.
    """
    path = results / "README.md"
    if not path.is_file():
        return "There is no report here: `llasa run experiments/paper_figures.yaml` writes it."

    def linked(match: re.Match) -> str:
        picture, words, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        if target.startswith("..") or not (results / target.partition("#")[0]).is_file():
            return words
        return f"{picture}[{words}]({RESULTS_AT}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", linked, path.read_text(encoding="utf-8"))


def experiments(results: Path) -> list[str]:
    """The studies that have a finished run."""
    return sorted({path.parts[-3] for path in results.glob("*/*/result.json")})


def runs(results: Path, experiment: str | None) -> list[str]:
    """The finished runs of a study."""
    if not experiment or experiment not in experiments(results):
        return []
    return sorted(path.parent.name for path in (results / experiment).glob("*/result.json"))


def listening_pages(results: Path) -> str:
    """Links to the pages of players, in HTML."""
    found = sorted(path for path in results.rglob("index.html") if path.is_file())
    if not found:
        return "<p>No listening page here yet: <code>make demo</code> makes one.</p>"
    links = "".join(
        f'<li><a href="{address(results, path)}" target="_blank" rel="noopener">'
        f"{html.escape(path.parent.relative_to(results).as_posix())}</a></li>"
        for path in found
    )
    return f"<ul>{links}</ul>"


def run_page(results: Path, experiment: str | None, run: str | None) -> str:
    """One run in HTML: figures, numbers, parameters, files."""
    if not experiment or run not in runs(results, experiment):
        return "<p>Choose an experiment and a run.</p>"
    try:
        result = read_result(results / experiment / run / "result.json")
    except InputError as error:
        return f'<p class="told wrong">{html.escape(str(error))}</p>'
    files = sorted(
        path for path in result.folder.rglob("*") if path.is_file() and path.suffix in SERVED
    )
    pictures = "".join(
        f'<figure><a href="{address(results, path)}" target="_blank" rel="noopener">'
        f'<img loading="lazy" alt="{_words(path)}" src="{address(results, path)}"></a>'
        f"<figcaption>{_words(path)}</figcaption></figure>"
        for path in files
        if path.suffix in PICTURES
    )
    links = "".join(
        f'<li><a href="{address(results, path)}" target="_blank" rel="noopener">'
        f"{html.escape(path.relative_to(result.folder).as_posix())}</a></li>"
        for path in files
        if path.suffix not in PICTURES
    )
    seconds = result.provenance.get("seconds")
    took = f" in {seconds:.0f} s" if isinstance(seconds, int | float) else ""
    return (
        f"<h3>{html.escape(f'{experiment}/{run}')}</h3>"
        f"<p>Made by {html.escape(result.notebook)}{took}.</p>{pictures}"
        f"{_table('Numbers', result.metrics)}{_table('Parameters', result.params)}"
        f"<h4>Files</h4><ul>{links}</ul>"
    )


def _words(path: Path) -> str:
    return html.escape(path.stem.replace("_", " "))


def _table(title: str, values: Mapping) -> str:
    def shown(value: object) -> str:
        return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))

    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{shown(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="wide"><table><caption>{title}</caption><tbody>{rows}</tbody></table></div>'


def results_tab(results: Path) -> None:
    """Build the tab; folders are looked at when it is used, so that new runs are seen."""
    found = experiments(results)
    if not found and not (results / "README.md").is_file():
        gr.Markdown(f"There are no results in `{results.name}`: `llasa run` makes them.")
        return
    with gr.Tabs():
        with gr.Tab("Runs"):
            with gr.Row():
                experiment = gr.Dropdown(found, value=None, label="Experiment", min_width=160)
                run = gr.Dropdown([], value=None, label="Run", min_width=160)
            page = gr.HTML(run_page(results, None, None), elem_id="run")
        with gr.Tab("Report"):
            gr.Markdown(report_text(results), elem_id="report")
        with gr.Tab("Listening pages"):
            gr.HTML(listening_pages(results), elem_id="listening")

    def choose(chosen: str | None) -> tuple[dict, str]:
        there = runs(results, chosen)
        first = there[0] if there else None
        return gr.update(choices=there, value=first), run_page(results, chosen, first)

    hidden = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    experiment.input(choose, experiment, [run, page], **hidden)
    run.input(lambda chosen, one: run_page(results, chosen, one), [experiment, run], page, **hidden)
