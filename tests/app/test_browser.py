"""Five journeys through the page in a real Chromium: speak, search, give a voice, compare, browse.

LLASA_PICTURES names a folder for screenshots at 1280 and 390 px.
"""

import os
import re
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra is not installed: pip install 'llasa-core[app]'")

from browser import Browser
from gradio_client import Client

from llasa_core.app.server import serving
from llasa_core.audio import load_audio, write_wav

RESULTS = Path(__file__).parents[2] / "results"
TEXT = "Please bring four apples and a bottle of milk."
NAMED = {
    "button",
    "textbox",
    "combobox",
    "slider",
    "spinbutton",
    "checkbox",
    "radio",
    "tab",
    "link",
}


@pytest.fixture(scope="module")
def url(studio):
    with serving(studio, RESULTS) as url:
        yield url


@pytest.fixture
def browser(tmp_path, recording):
    # The false microphone begins a recording anywhere in its file, so that all of it is speech
    heard = load_audio(recording, 16_000)
    microphone = tmp_path / "microphone.wav"
    write_wav(microphone, np.tile(heard, 4))
    with Browser(tmp_path / "profile", microphone) as browser:
        yield browser
        assert browser.errors == []
        places = {urlsplit(one).hostname for one in browser.addresses if one.startswith("http")}
        assert places == {"127.0.0.1"}  # nothing is asked of another machine


def told(browser, region, words, seconds=300):
    """Wait until a region of the page holds some words; all of its words."""
    found = f"document.querySelector('#{region}').innerText"
    browser.until(f"{found}.includes({words!r})", seconds)
    return browser.run(found)


def write(browser, label, text):
    browser.click_named(label, "textbox")
    browser.type(text)


def choose(browser, label, option):
    browser.click_named(label, "combobox")
    browser.wait_for_name(option, "option")
    browser.click_named(option, "option")


def pictures(browser, name):
    """Screenshots at both widths; nothing may stick out of the narrow one."""
    folder = os.environ.get("LLASA_PICTURES")
    for width in (1280, 390):
        browser.resize(width, 900)
        browser.run("new Promise(done => setTimeout(done, 400))")
        assert browser.run("document.documentElement.scrollWidth") <= width
        if folder:
            browser.picture(Path(folder, f"{name}-{width}.png"))
    browser.resize(1280, 900)


def test_typed_text_is_heard_while_it_is_made_and_then_kept(browser, url, model):
    browser.open(url)
    write(browser, "Text", f"{TEXT} " * 2)
    browser.click("#speak")
    browser.until("document.querySelector('live-speech')?.context?.state === 'running'")
    assert "so far" in told(browser, "status", "so far")  # it plays, and the work goes on
    browser.until("document.querySelector('live-speech')?.played() > 0.1")
    summary = told(browser, "status", "s of speech in")
    seconds = float(re.match(r"([\d.]+) s of speech", summary)[1])
    browser.until("document.querySelector('live-speech') === null")  # heard to its end
    browser.wait_for_name("Play")
    pictures(browser, "speak")
    address = browser.run("document.querySelector('#speech a[download]').href")
    got = browser.run(
        f"fetch({address!r}).then(a => a.arrayBuffer()).then(b => Array.from(new Uint8Array(b)))"
    )
    wave = load_audio(bytes(got))
    assert len(wave) / 16_000 == pytest.approx(seconds, abs=0.01)
    assert browser.run("document.querySelector('#speech a[download]').download").startswith(model)
    browser.click_named("Play")
    browser.wait_for_name("Pause")
    assert browser.named("Spectrogram", "image") and browser.named("Codes", "textbox")
    assert "The guards " in browser.text()


def test_stop_ends_the_work_and_empty_and_overlong_texts_are_told(browser, url, studio):
    browser.open(url)
    write(browser, "Text", "Please bring four apples. " * 15)
    browser.click("#speak")
    told(browser, "status", "so far")
    browser.click("#stop")
    told(browser, "status", "Stopped.")
    write(browser, "Text", "")
    browser.click("#speak")
    told(browser, "status", "There is no text yet: type what should be said.")
    write(browser, "Text", "word " * 100)
    browser.click("#speak")
    told(browser, "status", f"at most {studio.limits.characters} are spoken here")
    pictures(browser, "refused")


def test_full_queue_is_told_in_the_page(browser, url, studio, speaker):
    browser.open(url)
    client, gate, jobs = Client(url, verbose=False), threading.Event(), []
    before = studio.job(lambda job: gate.wait(600))
    try:
        for _ in range(studio.limits.waiting + 1):  # one at work, the others wait
            jobs.append(client.submit("Hello.", speaker=speaker, api_name="/speak"))
            time.sleep(1)
        browser.click("#speak")
        browser.until("document.body.innerText.includes('currently busy. Please try again')")
    finally:
        gate.set()
    assert list(before) == []
    assert [job.exception(timeout=600) for job in jobs] == [None] * len(jobs)


def test_search_shows_the_scores_of_every_candidate_and_plays_each(browser, url):
    browser.open(url)
    choose(browser, "Strategy", "best-of-n")
    browser.wait_for_name("number input for Candidates", "spinbutton")
    browser.click_named("number input for Candidates", "spinbutton")
    browser.type("3")
    browser.click("#speak")
    told(browser, "status", "the best of 3 candidates")
    rows = "document.querySelectorAll('#candidates tbody tr').length"
    assert browser.run(rows) == 3
    choose(browser, "Listen to another candidate", "candidate 2")
    browser.until("document.querySelector('#sample a[download]')?.download === 'candidate-2.wav'")
    pictures(browser, "search")


def test_voice_by_upload_and_by_microphone_is_recognised_and_continued(browser, url, recording):
    browser.open(url)
    browser.click_named("a recording to continue", "radio")
    browser.until("document.querySelector('#recording input[type=file]') !== null")
    browser.give_file("#recording input[type=file]", recording)
    told(browser, "heard", "Recognised")
    words = "document.querySelector('#words textarea').value"
    assert browser.run(words)
    write(browser, "Words spoken in the recording", "Call the office at seven.")
    browser.click("#speak")
    told(browser, "status", "s of speech in")
    pictures(browser, "upload")
    browser.click_named("Clear")
    browser.until(f"{words} === ''")
    browser.click_named("Record audio", "button")
    browser.wait_for_name("Record")
    browser.click_named("Record")
    browser.run("new Promise(done => setTimeout(done, 2500))")
    browser.click_named("Stop")
    told(browser, "heard", "Recognised")
    assert browser.run(words)
    write(browser, "Words spoken in the recording", "Call the office at seven.")
    browser.click("#speak")
    told(browser, "status", "s of speech in")


def test_blind_pair_is_named_after_the_verdict_alone(browser, url, tracked):
    browser.open(url)
    browser.click_named("Compare two", "tab")
    browser.wait_for_name("Blind", "checkbox")
    browser.click_named("Blind", "checkbox")
    browser.click("#compare")
    told(browser, "compare-status", "Listen to both")
    browser.wait_for_name("The second is better")
    hidden = browser.run("document.querySelector('[role=tabpanel]').innerText")
    assert "take: A" not in hidden and "take: B" not in hidden
    downloads = [
        browser.run(f"document.querySelector('#take-{one} a[download]').download")
        for one in ("first", "second")
    ]
    assert downloads == ["first.wav", "second.wav"]
    pictures(browser, "blind")
    browser.click_named("The second is better")
    said = told(browser, "compare-status", "The second is better: the first was")
    assert {re.search(r"first was (\w)", said)[1], re.search(r"second was (\w)", said)[1]} == {
        "A",
        "B",
    }
    told(browser, "verdicts", "Verdicts so far")
    pictures(browser, "verdict")


def test_results_are_browsed_with_their_figures(browser, url):
    browser.open(url)
    browser.click_named("Results", "tab")
    browser.wait_for_name("Experiment", "combobox")
    choose(browser, "Experiment", "evaluation")
    browser.until("document.querySelector('#run img')?.naturalWidth > 0")
    assert "Numbers" in browser.run("document.querySelector('#run').innerText")
    pictures(browser, "results")
    browser.click_named("Report", "tab")
    browser.until("document.querySelector('#report img')?.naturalWidth > 0")
    pictures(browser, "report")


def test_everything_has_a_name_and_the_keyboard_reaches_it(browser, url):
    browser.open(url)
    browser.click_named("a recording to continue", "radio")
    browser.until("document.querySelector('#recording input[type=file]') !== null")
    nameless = [one for one in browser.nodes() if one["role"] in NAMED and not one["name"]]
    assert nameless == []
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.named("", "status")
    browser.open(url)
    reached = set()
    for _ in range(40):
        browser.key("Tab", 9)
        reached.add(browser.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"speak", "stop", "TEXTAREA"} <= reached
    browser.run("document.querySelector('#speak').focus()")
    browser.key("Enter", 13, "\r")
    told(browser, "status", "s of speech in")
