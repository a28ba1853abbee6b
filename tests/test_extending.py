"""A codec, a judge, a verifier and a corpus reader are each added by a class or function and one
line of a registry; the commands take them from there.
"""

import json

import numpy as np
import pytest
from helpers import tone_corpus
from tiny_models import speaking_llama

from llasa_core import cli, codecs, judges
from llasa_core.audio import write_wav
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.interface import Codec
from llasa_core.data.corpora import readers
from llasa_core.data.dataset import read_codes
from llasa_core.manifest import Utterance, read_manifest
from llasa_core.search import verifiers
from llasa_core.tokenizer import vocabulary_of


class LoudnessCodec(Codec):
    """Ten codes: the loudness of each 20 ms; decoded as a constant level."""

    name, sample_rate, codebook_size, frame_rate = "loudness", 16_000, 10, 50.0

    @classmethod
    def load(cls, name, device=None):
        return cls()

    def encode(self, waves):
        frames = [wave[: len(wave) // 320 * 320].reshape(-1, 320) for wave in waves]
        return [(np.abs(rows).mean(axis=1) * 9).astype(np.int32) for rows in frames]

    def decode(self, codes):
        return [np.repeat(np.asarray(row, np.float32) / 9, 320) for row in codes]


class Parrot:
    """A recogniser that hears the same of every wave."""

    def __init__(self, name):
        self.name, self.version = name, "1"

    def transcribe(self, waves, sample_rate, language="en"):
        return ["text one"] * len(waves)


class ShortVerifier(verifiers.JudgedVerifier):
    """Prefers short speech."""

    option, help, default = "length", "what measures, or none", "ruler"
    metric = ("verifier_length", "verifier_length", None)

    @classmethod
    def load(cls, model, sample_rate, voices):
        verifier = cls()
        verifier.judge, verifier.sample_rate = model, sample_rate
        return verifier

    def __call__(self, wave, request):
        return -len(wave) / self.sample_rate


def read_titles(path, tell):
    """Recordings whose file names are what is said in them."""
    for file in sorted(path.glob("*.wav")):
        yield Utterance(file.stem, file, file.stem.replace("_", " "), "me")


def test_a_codec_is_a_class_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(codecs.CODECS, "loudness", f"{__name__}:LoudnessCodec")
    manifest, out = tone_corpus(tmp_path, 3, samples=8000), tmp_path / "codes"
    assert cli.main(["encode", str(manifest), str(out), "--codec", "loudness"]) == 0
    assert json.loads((out / "meta.json").read_text())["codec"] == "loudness"
    assert [len(read_codes(out)[number]["codes"]) for number in range(3)] == [25, 25, 25]
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/config.json").write_text('{"codec": "loudness"}')
    loaded = codecs.load_codec(tmp_path / "trained")
    assert loaded.name == "loudness" and loaded.folder == str(tmp_path / "trained")
    assert codecs.fingerprint_of("loudness") is None


def test_a_judge_is_a_class_and_a_line(tmp_path, monkeypatch):
    registry = {"parrot": f"{__name__}:Parrot", **judges.TRANSCRIBERS}
    monkeypatch.setattr(judges, "TRANSCRIBERS", registry)
    manifest, out = tone_corpus(tmp_path, 2), tmp_path / "scores"
    ask = ["evaluate", str(manifest), str(out), "--asr", "parrot", "--quality", "none"]
    assert cli.main(ask) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["judges"] == {"transcriber": "parrot (1)"}
    assert summary["metrics"]["corpus_wer"] == 0.25  # 1 of 4 words: "text 0", "text 1"


def test_a_verifier_is_a_class_and_a_line(tmp_path, monkeypatch, mini_tokenizer, capsys):
    monkeypatch.setitem(verifiers.VERIFIERS, "short", ShortVerifier)
    model = tmp_path / "model"
    speaking_llama(vocabulary_of(mini_tokenizer), end_logit=6.0).save_pretrained(model)
    mini_tokenizer.save_pretrained(model)
    ask = ["search", "--model", str(model), "--codec", FakeCodec.name, "--max-seconds", "0.4"]
    ask += ["--candidates", "4", "--verifier-asr", "none", "--temperature", "1", "Red lamp."]
    out = tmp_path / "out"
    assert cli.main([*ask, "--verifier-length", "ruler", "-o", str(out)]) == 0
    (line,) = [json.loads(text) for text in (out / "manifest.jsonl").read_text().splitlines()]
    scores = line["scores"]["short"]
    assert line["verifiers"] == ["ruler"] and line["chosen"] == scores.index(max(scores))
    capsys.readouterr()
    guided = ["--strategy", "prm", "--guide", "short", "--beams", "2", "--expansions", "2"]
    assert cli.main([*ask, *guided, "-o", str(tmp_path / "guided")]) == 0
    assert cli.main([*ask, "-o", str(tmp_path / "none")]) == 2
    assert "--verifier-length are all none" in capsys.readouterr().err


def test_a_corpus_reader_is_a_function_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(readers.LAYOUTS, "titles", read_titles)
    (tmp_path / "corpus").mkdir()
    tone = 0.4 * np.sin(np.arange(24_000) * np.linspace(0.05, 0.2, 24_000))
    for title in ("call_the_office", "red_lamp_in_the_hall"):
        write_wav(tmp_path / "corpus" / f"{title}.wav", tone)
    out = tmp_path / "prepared"
    assert cli.main(["prepare", str(tmp_path / "corpus"), str(out), "--layout", "titles"]) == 0
    assert {item.text for item in read_manifest(out / "train.jsonl")} == {
        "call the office",
        "red lamp in the hall",
    }


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("encode", codecs.CODECS),
        ("evaluate", judges.TRANSCRIBERS | judges.SPEAKER_EMBEDDERS | judges.QUALITY_PREDICTORS),
        ("prepare", readers.LAYOUTS),
        ("search", verifiers.VERIFIERS),
    ],
)
def test_help_of_a_command_names_its_registry(command, registry, capsys):
    assert cli.main([command, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert [name for name in registry if name.strip("*/") and name not in shown] == []
