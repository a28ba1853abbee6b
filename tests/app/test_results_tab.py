"""Browsing results/ in the app."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra is not installed: pip install 'llasa-core[app]'")

from llasa_core.app.results_tab import (
    experiments,
    listening_pages,
    report_text,
    run_page,
    runs,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def test_every_finished_run_has_a_page_with_its_figures_and_numbers():
    shown = 0
    for experiment in experiments(RESULTS):
        for run in runs(RESULTS, experiment):
            page = run_page(RESULTS, experiment, run)
            assert "Numbers" in page and "Parameters" in page and "wrong" not in page[:40]
            pictures = list((RESULTS / experiment / run).rglob("*.png"))
            assert page.count("<img") >= len(pictures)
            shown += 1
    assert shown == len(list(RESULTS.glob("*/*/result.json"))) > 0


def test_links_of_the_report_lead_to_served_files_or_are_plain_words():
    text = report_text(RESULTS)
    assert "](results/figures/" in text
    assert "](../" not in text and "](figures/" not in text


def test_damaged_run_is_told_and_names_outside_are_not_looked_at(tmp_path):
    source = next(RESULTS.glob("*/*/result.json")).parent
    place = tmp_path / source.parent.name / source.name
    place.mkdir(parents=True)
    shutil.copyfile(source / "result.json", place / "result.json")
    (place / "result.json").write_text('{"schema": 1')
    assert 'class="told wrong"' in run_page(tmp_path, place.parent.name, place.name)
    for experiment, run in (("..", "x"), (None, None), (place.parent.name, "../x")):
        assert run_page(tmp_path, experiment, run) == "<p>Choose an experiment and a run.</p>"


def test_listening_pages_are_linked_and_their_names_escaped(tmp_path):
    assert "make demo" in listening_pages(tmp_path)
    (tmp_path / "a<b").mkdir()
    (tmp_path / "a<b" / "index.html").write_text("")
    assert "a&lt;b" in listening_pages(tmp_path) and "results/a%3Cb/index.html" in listening_pages(
        tmp_path
    )
