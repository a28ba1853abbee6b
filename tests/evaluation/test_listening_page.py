"""The listening page: everything on it is there, plays, and says what the scores say; tiny waves,
real figures.
"""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llasa_core import plots
from llasa_core.audio import SAMPLE_RATE, load_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.evaluation.listening_page import System, listening_page, score_table

NASTY = "<script>alert('1')</script> & \"quotes\""


class Page(HTMLParser):
    """Elements, by name, with their attributes, and the text outside of style and script."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.inside = [], [], ""
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def system(folder, name, ids, **scores):
    """Scored rows with a wave each, which differs from id to id."""
    folder = Path(folder, "".join(c for c in name if c.isalnum()))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, id in enumerate(ids):
        write_wav(folder / f"{number}.wav", 0.3 * np.sin(np.arange(3200 + 320 * number) * 0.1))
        rows.append(
            {
                "id": id,
                "audio": f"{number}.wav",
                "text": f"sentence {number}",
                "language": "en",
                **scores,
            }
        )
    return System(name, rows, folder)


def write(out, systems, **settings):
    return listening_page(out, "Voices", ["An introduction."], [], {}, systems, **settings)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of two systems and two sentences with scores, a figure, and hostile text in every
    place of text.
    """
    folder = tmp_path_factory.mktemp("listening")
    scored = {
        "hypothesis": f"heard {NASTY}",
        "errors": 1,
        "words": 7,
        "similarity": 0.876,
        "quality": 3.21,
    }
    systems = [
        system(folder, f"originals {NASTY}", ["a/1", "a_1"]),
        system(folder, "codec", ["a_1", "a/1"], **scored),
    ]
    systems[0].rows[0].update(text=f"text {NASTY}", language='"><b>')
    systems[1].rows[1].update(hypothesis="", ended=False)
    table = pd.DataFrame({"split": ["test", "test"], "seconds": [1.0, 2.0]})
    scores = [{"system": "codec", f"score {NASTY}": f"cell {NASTY}"}]
    drawn = {f"caption {NASTY}": plots.length_histogram(table)}
    return listening_page(
        folder / "page", f"title {NASTY}", [f"intro {NASTY}"], scores, drawn, systems
    )


@pytest.mark.slow
def test_every_text_is_shown_and_none_becomes_markup(page):
    read = Page(page)
    for place in ("title", "intro", "score", "cell", "caption", "text", "heard", "originals"):
        assert f"{place} {NASTY}" in read.text, place
    assert len(read.all("script")) == 1 and not read.all("b")
    assert (
        "alert" not in page.read_text(encoding="utf-8").split("<script>")[1].split("</script>")[0]
    )


def test_there_is_a_named_player_for_each_system_and_utterance(page):
    players = Page(page).all("audio")
    assert [player["aria-label"] for player in players] == [
        f"originals {NASTY}: text {NASTY}",
        f"codec: text {NASTY}",
        f"originals {NASTY}: sentence 1",
        "codec: sentence 1",
    ]
    assert all("controls" in player for player in players)
    assert all(picture["alt"] for picture in Page(page).all("img"))


def test_players_play_the_wave_of_their_own_row(page):
    """The second system holds the same ids in the other order, and ids that make one file name stay
    two files.
    """
    lengths = [len(load_audio(page.parent / player["src"])) for player in Page(page).all("audio")]
    assert lengths == [3200, 3520, 3520, 3200]


def test_all_that_the_page_refers_to_lies_beside_it(page):
    read = Page(page)
    sources = [attributes["src"] for tag in ("audio", "img") for attributes in read.all(tag)]
    assert len(set(sources)) == len(sources) == 4 + 4 + 1
    assert all(
        source.startswith("media/") and (page.parent / source).stat().st_size > 0
        for source in sources
    )
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "media"}
    assert {f"media/{path.name}" for path in (page.parent / "media").iterdir()} == set(sources)
    assert not read.all("link") and "http:" not in page.read_text(encoding="utf-8")


def test_scores_of_an_utterance_stand_under_its_player(page):
    text = Page(page).text
    assert "1 of 7 words wrong · similarity 0.88 · quality 3.21" in text
    assert "no word recognised" in text and text.count("cut off at the length limit") == 1
    assert "Sentences: 2, each from 2 sources." in text


def test_system_without_one_of_the_utterances_is_refused_and_the_old_page_stays(tmp_path):
    both, one = system(tmp_path, "first", ["x", "y"]), system(tmp_path, "second", ["x"])
    written = write(tmp_path / "page", [one])
    before = {
        path: path.read_bytes() for path in sorted((tmp_path / "page").rglob("*")) if path.is_file()
    }
    with pytest.raises(InputError, match="second has no utterance 'y'"):
        write(tmp_path / "page", [both, one])
    assert {
        path: path.read_bytes() for path in sorted((tmp_path / "page").rglob("*")) if path.is_file()
    } == before
    assert "second" in Page(written).text


@pytest.mark.slow
def test_a_second_page_replaces_the_media_of_the_first(tmp_path):
    first = {
        path.name
        for path in (
            write(tmp_path / "page", [system(tmp_path, "a", ["old"])]).parent / "media"
        ).iterdir()
    }
    again = write(tmp_path / "page", [system(tmp_path, "a", ["new", "newer", "last"])], limit=2)
    media = {path.name for path in (again.parent / "media").iterdir()}
    assert not first & media and len(media) == 4
    assert "Sentences: 2 of 3." in Page(again).text


def test_compressed_players_play_the_same_wave_from_much_smaller_files(tmp_path):
    spoken = system(tmp_path, "a", ["x"])
    wave = 0.3 * np.sin(np.arange(40_000) * 0.1) * np.linspace(0, 1, 40_000)
    write_wav(spoken.folder / "0.wav", wave)
    pages = [
        write(tmp_path / name, [spoken], compressed=compressed)
        for name, compressed in (("plain", False), ("small", True), ("again", True))
    ]
    plain, small, again = (page.parent / Page(page).all("audio")[0]["src"] for page in pages)
    assert (plain.suffix, small.suffix) == (".wav", ".mp3")
    assert small.stat().st_size < plain.stat().st_size / 4
    decoded = load_audio(small)
    assert abs(len(decoded) - len(wave)) < 0.02 * SAMPLE_RATE
    assert np.corrcoef(decoded[: len(wave)], wave[: len(decoded)])[0, 1] > 0.99
    assert small.read_bytes() == again.read_bytes()


def test_note_of_a_row_stands_before_its_scores(tmp_path):
    noted = system(tmp_path, "a", ["x"], note=f"voice ava {NASTY}", errors=1, words=7)
    assert f"voice ava {NASTY} · 1 of 7 words wrong" in Page(write(tmp_path / "page", [noted])).text


def test_folder_with_media_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "mine.wav").write_bytes(b"mine")
    with pytest.raises(InputError, match="media: is there without a listening page"):
        write(tmp_path, [system(tmp_path / "waves", "a", ["x"])])
    assert (tmp_path / "media" / "mine.wav").read_bytes() == b"mine"


@pytest.mark.parametrize("systems", [[], [System("empty", [], Path("."))]])
def test_page_without_anything_to_hear_is_refused(tmp_path, systems):
    with pytest.raises(InputError, match="no system with utterances"):
        write(tmp_path / "page", systems)
    assert not (tmp_path / "page").exists()


def test_score_table_shows_value_interval_and_count(tmp_path):
    table = pd.DataFrame(
        [
            {
                "system": "a",
                "corpus_wer": 0.1234,
                "corpus_wer_low": 0.1,
                "corpus_wer_high": 0.15,
                "corpus_wer_n": 48,
            }
            | {"quality": 3.456, "quality_low": 3.4, "quality_high": 3.5, "quality_n": 47},
            {
                "system": "b",
                "quality": 2.0,
                "quality_low": 1.9,
                "quality_high": 2.1,
                "quality_n": 48,
            },
        ]
    )
    rows = score_table(table)
    wer, quality = "corpus WER (%)", "predicted quality (1 to 5)"
    assert rows == [
        {"system": "a", wer: "12.3 [10.0, 15.0] n=48", quality: "3.46 [3.40, 3.50] n=47"},
        {"system": "b", quality: "2.00 [1.90, 2.10] n=48"},
    ]
    written = listening_page(tmp_path / "page", "t", [], rows, {}, [system(tmp_path, "a", ["x"])])
    markup = written.read_text(encoding="utf-8")
    assert (
        '<th scope="row">b</th><td></td><td>2.00 [1.90, 2.10] n=48</td>' in markup
    )  # a gap shifts no column


def test_a_file_name_never_reaches_the_page_as_markup(tmp_path):
    hostile = system(tmp_path, "hostile", ["a"])
    name = 'a.wav" onload="alert(1)'
    (hostile.folder / "0.wav").rename(hostile.folder / name)
    hostile.rows[0].update(audio=name)
    page = Page(write(tmp_path / "page", [hostile]))
    assert [player["src"] for player in page.all("audio")] == ["media/001-0-a.wav"]
    attributes = {key for _, values in page.elements for key in values}
    assert not {key for key in attributes if key.startswith("on")}


def test_page_allows_only_its_own_script(page):
    (policy,) = [meta["content"] for meta in Page(page).all("meta") if "http-equiv" in meta]
    text = page.read_text(encoding="utf-8").split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
