"""The running app as programs meet it: the API, the files that it serves, its limits, its quiet."""

import os
import socket
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra is not installed: pip install 'llasa-core[app]'")

import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from llasa_core.app.server import serving
from llasa_core.app.studio import Limits, Order, Studio
from llasa_core.audio import sixteen_bit, write_wav
from llasa_core.cli import main

ROOT = Path(__file__).parents[2]
TEXT = "Call the office at seven."


@pytest.fixture(scope="module")
def url(studio):
    with serving(studio, ROOT / "results") as url:
        yield url


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("got")))


def samples(path):
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_api_speaks_what_the_library_speaks(client, studio, model, speaker):
    path, report = client.predict(TEXT, speaker=speaker, seed=4, api_name="/speak")
    job = studio.job(lambda job: studio.perform(model, Order(TEXT, speaker, seed=4), job))
    assert list(job) == []
    np.testing.assert_array_equal(samples(path), sixteen_bit(job.result.wave))
    assert report["pieces"][0]["codes"] == job.result.codes.tolist()
    assert report["model"] == model and report["seed"] == 4 and report["candidates"] == []
    assert Path(path).name == f"{model}-seed-4.wav"


def test_api_searches_continues_a_recording_and_writes_it_down(client, recording):
    heard = client.predict(handle_file(recording), api_name="/recognise")
    assert isinstance(heard, str) and heard
    _, report = client.predict(
        TEXT, recording=handle_file(recording), recording_text="Call the office at seven.",
        strategy="best-of-n", candidates=2, api_name="/speak",
    )  # fmt: skip
    scores = [candidate["scores"] for candidate in report["candidates"]]
    assert [set(score) for score in scores] == [{"words", "voice"}] * 2


def test_api_lists_models_and_what_can_be_asked_for(client, studio):
    known = client.predict(api_name="/models")
    assert known["models"] == {name: list(tags) for name, tags in studio.speakers.items()}
    assert known["strategies"] == ["plain", "best-of-n", "prm", "partial-prm"]


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"text": ""}, "There is no text yet: type what should be said."),
        ({"text": "word " * 100}, "The text has 499 characters, at most 400 are spoken here."),
        ({"model": "other"}, "No model 'other' here"),
        ({"speaker": "nobody"}, "Unknown speaker 'nobody'"),
        ({"seed": -1}, "`seed` is -1"),
        ({"candidates": 0}, "`candidates` is 0"),
        ({"strategy": "prm"}, "Prm is guided by the voice"),
    ],
)
def test_bad_request_is_an_error_with_its_sentence(client, asked, sentence):
    with pytest.raises(AppError) as refused:
        client.predict(**{"text": TEXT, **asked}, api_name="/speak")
    assert sentence in str(refused.value)


def test_upload_that_is_no_audio_or_too_large_is_refused(client, url, tmp_path):
    other, large = tmp_path / "text.wav", tmp_path / "large.wav"
    other.write_text("no audio")
    write_wav(large, np.zeros(600_000, np.float32))  # 1.2 MB, the limit is 1
    with pytest.raises(AppError, match="The recording cannot be read as audio"):
        client.predict(handle_file(other), api_name="/recognise")
    with pytest.raises(ValueError, match="exceeds the maximum file size"):  # the client looks first
        client.predict(handle_file(large), api_name="/recognise")
    with open(large, "rb") as file:
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": file})
    assert answer.status_code == 413


def test_file_of_the_server_is_no_upload(client, url):
    body = {"data": [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}]}
    answer = httpx.post(f"{url}gradio_api/call/recognise", json=body)
    told = httpx.get(f"{url}gradio_api/call/recognise/{answer.json()['event_id']}", timeout=60).text
    assert told.startswith("event: error")


def test_full_queue_refuses_and_loses_nobody(studio, client, speaker):
    gate = threading.Event()
    before = studio.job(lambda job: gate.wait(60))
    time.sleep(0.2)
    jobs = []
    try:
        for _ in range(6):  # one at work, two may wait
            jobs.append(client.submit("Hello.", speaker=speaker, api_name="/speak"))
            time.sleep(0.4)
    finally:
        gate.set()
    assert list(before) == []
    refused = [job for job in jobs if job.exception(timeout=120) is not None]
    assert len(refused) == 3
    assert all("queue" in str(job.exception()).lower() for job in refused)


def test_only_results_that_people_look_at_are_served(url):
    def status(path):
        return httpx.get(url + path).status_code

    assert status("results/figures/wer.png") == 200
    assert (
        "sandbox" in httpx.get(url + "results/figures/wer.svg").headers["content-security-policy"]
    )
    checkpoint = next((ROOT / "results/checkpoints").glob("*/*.safetensors"))
    assert status(checkpoint.relative_to(ROOT).as_posix()) == 404
    assert status("results/%2e%2e/README.md") == status("results/..%2fpyproject.toml") == 404
    assert status("gradio_api/file=pyproject.toml") == 403
    assert status(f"gradio_api/file={ROOT / 'pyproject.toml'}") == 403
    assert status("live/unknown.wav") == 404


def test_page_asks_nothing_of_other_machines(url):
    answer = httpx.get(url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    import re

    asked = re.findall(
        r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](https?://[^"']+)""", answer.text
    )
    assert [place for place in asked if urlsplit(place).hostname != "127.0.0.1"] == []
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_it_listens_on_this_machine_alone(url):
    place = urlsplit(url)
    assert place.hostname == "127.0.0.1"
    others = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for other in others - {"127.0.0.1"}:
        with socket.socket() as connection:
            connection.settimeout(1)
            assert connection.connect_ex((other, place.port)) != 0


@pytest.mark.slow
def test_uploads_and_speech_are_deleted_after_their_time(tracked, speaker, recording, tmp_path):
    studio = Studio(tracked, limits=Limits(kept_seconds=4), verifier_models={"words": "fake"})
    with serving(studio, tmp_path) as url:
        client = Client(url, verbose=False, download_files=str(tmp_path))
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        client.predict("Hello.", speaker=speaker, api_name="/speak")
        assert list((folder / "speech").rglob("*.wav"))
        client.predict(handle_file(recording), api_name="/recognise")
        assert list(folder.rglob("me.wav"))
        end = time.monotonic() + 20
        while list(folder.rglob("*.wav")) and time.monotonic() < end:
            time.sleep(0.5)
            client.predict(api_name="/models")
        assert list(folder.rglob("*.wav")) == []
    assert not folder.exists()


def test_taken_port_is_one_line_and_status_2(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port, "--results", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"llasa: port {port} of 127.0.0.1")


def test_wrong_checkpoint_is_told_before_there_is_a_page(capsys, tmp_path):
    assert main(["app", "--model", str(tmp_path / "none"), "--results", str(tmp_path)]) == 2
    assert "none" in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "pip install 'llasa-core[app]'" in capsys.readouterr().err


def test_many_at_once_hear_what_each_would_hear_alone(client, speaker):
    seeds = [1, 2]
    alone = {
        s: client.predict("Hello.", speaker=speaker, seed=s, api_name="/speak")[1] for s in seeds
    }
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(
            lambda s: client.predict("Hello.", speaker=speaker, seed=s, api_name="/speak")[1], seeds
        ))  # fmt: skip
    assert [one["pieces"] for one in both] == [alone[s]["pieces"] for s in seeds]
