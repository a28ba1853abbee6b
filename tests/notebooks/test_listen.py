"""Sentences of the tracked listening page: new to every model made here, in voices that it knows;
the page stays small and says them all.
"""

import html
import re
from pathlib import Path

import pytest

from llasa_core.audio import load_audio
from llasa_core.data.corpora import sentences
from llasa_core.data.corpora.grammar import vocabulary, words_of
from llasa_core.data.corpora.voices import NAMED
from llasa_core.experiments.config import load_experiment, repository_root
from llasa_core.files import read_rows
from llasa_core.manifest import read_requests

ROOT = repository_root(Path(__file__).parent)
EXPERIMENT = load_experiment(ROOT / "experiments/listen.yaml")
REQUESTS = read_requests(ROOT / "experiments/listen.jsonl")
PAGE = ROOT / EXPERIMENT.runs[0].params["page_dir"]
MOST_BYTES, MOST_BYTES_OF_A_FILE = 1_500_000, 256_000


def test_twenty_sentences_are_said_by_every_named_voice():
    assert len({tuple(words_of(request.text)) for request in REQUESTS}) == 20
    assert {request.speaker for request in REQUESTS} == {voice.name for voice in NAMED}


def test_no_sentence_is_one_of_the_grammar_or_stands_in_a_training_text():
    known = set(vocabulary())
    assert [one.text for one in REQUESTS if known.issuperset(words_of(one.text))] == []
    lines = (" ".join(words_of(text)) for kind in sentences.KINDS for text in sentences.texts(kind))
    corpus = "".join(f" {line} \n" for line in lines)
    assert f" {' '.join(words_of(sentences.texts('examples')[0]))} " in corpus
    assert [one.text for one in REQUESTS if f" {' '.join(words_of(one.text))} " in corpus] == []


@pytest.fixture
def page():
    if not (PAGE / "index.html").is_file():
        pytest.skip("no page of the tracked model: llasa run experiments/listen.yaml")
    return PAGE


def test_tracked_page_is_small(page):
    sizes = [path.stat().st_size for path in page.rglob("*") if path.is_file()]
    assert sum(sizes) <= MOST_BYTES and max(sizes) <= MOST_BYTES_OF_A_FILE


def test_tracked_page_plays_every_sentence_as_long_as_it_was_spoken(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    sounds = re.findall(r'<audio [^>]*src="([^"]+)"', text)
    assert len(sounds) == len(REQUESTS)
    assert [one.text for one in REQUESTS if html.escape(one.text) not in text] == []
    (run,) = EXPERIMENT.runs
    rows = read_rows(ROOT / run.run_dir / "utterances.jsonl")
    seconds = {row["id"]: row["seconds"] for row in rows}
    for request, sound in zip(REQUESTS, sounds, strict=True):
        assert len(load_audio(page / sound, 16_000)) / 16_000 == pytest.approx(
            seconds[request.id], abs=0.05
        )
