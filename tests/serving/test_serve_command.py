"""`llasa serve` as a user starts it, with the tracked model."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from helpers import wait_for

from llasa_core.cli import main
from llasa_core.experiments.config import repository_root

ROOT = repository_root(Path(__file__).parent)
MODEL = ROOT / "results/checkpoints/mini-llasa"


@contextlib.contextmanager
def serving(out, *more):
    """(process, URL) of the command on a free port."""
    command = [
        sys.executable,
        "-m",
        "llasa_core.cli",
        "serve",
        "--model",
        str(MODEL),
        "--port",
        "0",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(out, "w") as stdout:
        process = subprocess.Popen([*command, *more], env=environment, stdout=stdout)
    try:
        found = wait_for(lambda: re.search(r"at (http\S+)/v1", Path(out).read_text()), 400)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def test_command_serves_what_synthesize_says_and_ends_gently(tmp_path):
    text, seed = "Call Anna at nine.", 3
    speaker = json.loads((MODEL / "llasa.json").read_text())["speakers"][0]
    with serving(tmp_path / "out", "--seconds", "600") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        (model,) = client.models.list().data

        def ask(format):
            return client.audio.speech.create(
                model=model.id,
                voice=speaker,
                input=text,
                response_format=format,
                extra_body={"seed": seed},
            ).content

        def open_requests():
            with urllib.request.urlopen(f"{url}/health") as answer:
                return json.load(answer)["open"]

        with ThreadPoolExecutor(2) as pool:
            heard = [pool.submit(ask, format) for format in ("wav", "pcm")]
            wait_for(lambda: open_requests() == 2 or all(one.done() for one in heard))
            process.send_signal(signal.SIGTERM)
            wav, pcm = (one.result() for one in heard)
        assert process.wait(60) == 0
        with pytest.raises(openai.APIConnectionError):
            ask("wav")
    out = tmp_path / "a.wav"
    start = ["synthesize", "--model", str(MODEL), "--speaker", speaker, "--seed", str(seed)]
    assert main([*start, text, "-o", str(out)]) == 0
    assert wav == out.read_bytes() and wav[44:] == pcm


def test_port_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(MODEL), "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1 port {port}: cannot listen there" in line


@pytest.mark.parametrize(
    "options, words",
    [
        (["--host", "no.such.host.invalid"], "cannot listen there"),
        (["--port", "99999"], "cannot listen there"),
        (["--guards", "nowhere.json"], "nowhere.json: no such file"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_wrong_option_is_one_line(capsys, options, words):
    assert main(["serve", "--model", str(MODEL), "--port", "0", *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llasa:")]
    assert words in line


def test_without_its_libraries_the_command_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "llasa_core.serving.server", raising=False)
    assert main(["serve", "--model", str(MODEL)]) == 2
    assert "pip install 'llasa-core[serve]'" in capsys.readouterr().err
