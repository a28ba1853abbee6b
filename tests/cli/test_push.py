"""`llasa push` against a stand-in of the hub, and a stranger who downloads and speaks."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hub_stand_in import environment_of, hub_stand_in

from llasa_core.checkpoint import weights_sha256
from llasa_core.cli import main
from llasa_core.codecs import load_codec
from llasa_core.errors import InputError
from llasa_core.experiments.push import contents, push

ROOT = Path(__file__).parents[2]
TRACKED = ROOT / "results" / "checkpoints" / "mini-llasa"
TRAVEL = {
    "README.md",
    "chat_template.jinja",
    "codec/config.json",
    "codec/model.safetensors",
    "config.json",
    "generation_config.json",
    "guards.json",
    "llasa.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SCORES = {
    "metrics": {
        "corpus_wer": 0.25,
        "corpus_wer_low": 0.2,
        "corpus_wer_high": 0.3,
        "corpus_wer_n": 40,
        "utterances": 40,
    },
    "judges": {"asr": "a-recogniser 1.0"},
}


def changed(folder, **values):
    """llasa.json of a checkpoint with other values."""
    settings = json.loads((folder / "llasa.json").read_text()) | values
    (folder / "llasa.json").write_text(json.dumps(settings))


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tracked model, with what must not travel beside it."""
    folder = tmp_path / "model"
    shutil.copytree(TRACKED, folder)
    for name in ("modeling.py", "optimizer.pt", "training_args.bin", "settings.json", "notes.txt"):
        (folder / name).write_text("x")
    (folder / "checkpoint-4").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-4")
    return folder


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", environment_of(server, "")["HF_TOKEN"])
        yield server


def test_only_known_files_travel_and_no_folder_of_this_machine_is_named(checkpoint, tmp_path):
    changed(checkpoint, training={**settings_of(checkpoint)["training"], "cache": str(tmp_path)})
    found = contents(checkpoint, "user/mini")
    assert set(found) == TRAVEL
    sent = [one if isinstance(one, bytes) else one.read_bytes() for one in found.values()]
    assert not [one for one in sent if str(tmp_path).encode() in one]
    assert json.loads(found["llasa.json"])["training"]["cache"] == tmp_path.name


def settings_of(folder):
    return json.loads((folder / "llasa.json").read_text())


def test_the_codec_on_the_hub_is_the_one_that_is_given(checkpoint, tmp_path):
    codec = load_codec("mini", "cpu")
    trained = codec.fingerprint
    codec.model.decoder.head.linear.weight.data.mul_(0.5)
    codec.save(tmp_path / "codec")
    changed(checkpoint, codec_fingerprint=trained)
    found = contents(checkpoint, "user/mini", codec=str(tmp_path / "codec"))
    assert found["codec/model.safetensors"] == tmp_path / "codec" / "model.safetensors"
    assert json.loads(found["llasa.json"])["codec_fingerprint"] == codec.fingerprint != trained
    changed(checkpoint, codes_fingerprint="0123456789abcdef")
    with pytest.raises(InputError, match="the model was trained on codec mini of weights 0123"):
        contents(checkpoint, "user/mini", codec=str(tmp_path / "codec"))


def test_scores_stand_in_the_card_with_their_interval_and_count(checkpoint, tmp_path):
    from huggingface_hub import ModelCard

    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "summary.json").write_text(json.dumps(SCORES))
    found = contents(checkpoint, "user/mini", scores=tmp_path / "scores", license="cc-by-4.0")
    card = ModelCard(found["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("corpus_wer", 0.25)
    assert (card.data.license, card.data.pipeline_tag) == ("cc-by-4.0", "text-to-speech")
    assert "| corpus_wer | 0.25 | 0.2 to 0.3 | 40 |" in card.text
    assert "asr: a-recogniser 1.0" in card.text


def test_an_edited_card_travels_as_it_is(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("# Mine\n")
    assert contents(checkpoint, "user/mini")["README.md"] == b"# Mine\n"
    (tmp_path / "summary.json").write_text(json.dumps(SCORES))
    with pytest.raises(InputError, match=r"README\.md: was edited"):
        contents(checkpoint, "user/mini", scores=tmp_path / "summary.json")


def no_settings(folder):
    (folder / "llasa.json").unlink()


def code_of_its_own(folder):
    values = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "a.B"}}
    (folder / "config.json").write_text(json.dumps(values))


def other_weights(folder):
    changed(folder, weights={"model.safetensors": "0" * 64})


@pytest.mark.parametrize(
    "spoil, repo, told",
    [
        (no_settings, "user/mini", "no llasa.json, expected a folder that `llasa train` wrote"),
        (code_of_its_own, "user/mini", "config.json: `auto_map` names code"),
        (other_weights, "user/mini", "model.safetensors: sha256 differs from training's"),
        (lambda folder: None, "a name", "a name: no name of a repository, expected USER/NAME"),
    ],
)
def test_what_cannot_be_shared_is_one_line(checkpoint, capsys, spoil, repo, told):
    spoil(checkpoint)
    assert main(["push", str(checkpoint), repo, "--dry-run"]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_second_push_removes_what_the_first_left(checkpoint, hub):
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "model-00001-of-00002.safetensors")
    changed(checkpoint, weights=weights_sha256(checkpoint))
    assert push(contents(checkpoint, "user/mini"), "user/mini", private=True).endswith("user/mini")
    hub.files["user/mini"]["samples.md"] = b"somebody's own"
    (checkpoint / "model-00001-of-00002.safetensors").unlink()
    changed(checkpoint, weights=weights_sha256(checkpoint))
    push(contents(checkpoint, "user/mini"), "user/mini")
    assert set(hub.files["user/mini"]) == TRAVEL | {"samples.md"}
    assert (hub.commits["user/mini"], hub.visibility["user/mini"]) == (2, "private")
    sent = hub.files["user/mini"]["model.safetensors"]
    assert sent == (checkpoint / "model.safetensors").read_bytes()


def test_a_hub_that_refuses_is_one_line_that_says_how_to_log_in(
    checkpoint, hub, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert main(["push", str(checkpoint), "user/mini"]) == 2
    assert "log in with `hf auth login`" in capsys.readouterr().err.splitlines()[-1]
    assert hub.files == {}


@pytest.mark.slow
def test_a_stranger_hears_speech_with_the_lines_of_the_card(checkpoint, tmp_path):
    """A model of a codec that nobody else has: what is downloaded is all there is."""
    codec = load_codec("mini", "cpu")
    codec.model.embed.weight.data.mul_(1.01)
    codec.save(tmp_path / "codec")
    changed(checkpoint, codec_folder=str(tmp_path / "codec"), **codec.weights)

    def run(home, *arguments):
        own = {**environment_of(hub, tmp_path / home), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *arguments], env={**os.environ, **own}, cwd=tmp_path, check=True
        )

    with hub_stand_in() as hub:
        run("ours", "-m", "llasa_core.cli", "push", str(checkpoint), "user/mini")
        assert set(hub.files["user/mini"]) == TRAVEL
        shutil.rmtree(checkpoint)
        shutil.rmtree(tmp_path / "codec")
        card = hub.files["user/mini"]["README.md"].decode()
        pasted = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
        assert len([line for line in pasted.splitlines() if line]) <= 26
        (tmp_path / "pasted.py").write_text(pasted)
        run("theirs", "pasted.py")
        asked = ["--speaker", "ava", "Call Anna at nine.", "-o", "spoken.wav"]
        run("theirs", "-m", "llasa_core.cli", "synthesize", "--model", "user/mini", *asked)
    for name in ("speech.wav", "spoken.wav"):
        wave, rate = soundfile.read(tmp_path / name)
        assert rate == 16_000 and 0.5 < len(wave) / rate < 10
        assert np.sqrt(np.mean(wave**2)) > 0.01
