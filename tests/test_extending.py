"""What docs/extending.md says, done: a codec, a judge, a verifier, a corpus reader and a loss are
each added by a class or function and one line of a registry, a study by a notebook and a YAML file.
"""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch.nn.functional as F
from helpers import tone_corpus
from tiny_models import speaking_llama
from training_data import losses, settings

from llasa_core import cli, codecs, judges
from llasa_core.audio import write_wav
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.interface import Codec
from llasa_core.data.corpora import readers
from llasa_core.data.dataset import read_codes
from llasa_core.data.packing import NO_LABEL
from llasa_core.experiments.config import repository_root
from llasa_core.manifest import Utterance, read_manifest
from llasa_core.search import verifiers
from llasa_core.tokenizer import vocabulary_of
from llasa_core.training.loss import LOSSES
from llasa_core.training.train import train


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


def smoothed(model, batch):
    """Cross-entropy with a tenth of each label spread over the vocabulary."""
    following = batch["labels"][0, 1:]
    kept = (following != NO_LABEL).nonzero()[:, 0]  # (K,) positions that predict a labelled token
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        document_lengths=batch["cu_seqlens"].diff().tolist(),
        logits_to_keep=kept,
        use_cache=False,
    ).logits[0]  # (K, V)
    loss = F.cross_entropy(logits.float(), following[kept], reduction="sum", label_smoothing=0.1)
    return loss, len(kept)


STUDY_PARAMETERS = """
hours = 1.0  # of speech
run_dir = "artifacts/scratch/pace"  # small results
"""
STUDY_WORK = """
import matplotlib.pyplot as plt

from llasa_core import record

figure, axes = plt.subplots()
axes.plot([0, 1], [0, hours])
record(run_dir, metrics={"words": 9000 * hours}, figures={"pace": figure})
"""
STUDY_YAML = """
name: pace
notebook: notebooks/pace.ipynb
grid: {hours: [0.5, 2.0]}
smoke: {hours: 0.1}
"""


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
    assert codecs.weights_of("loudness") == {}


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


@pytest.mark.slow
def test_a_loss_is_a_function_and_a_line(workshop, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "smoothed", smoothed)
    curves = {}
    for name in ("cross_entropy", "smoothed"):
        train(settings(workshop, tmp_path / name, max_steps=12, loss=name))
        curves[name] = losses(tmp_path / name)
    plain, smooth = curves["cross_entropy"], curves["smoothed"]
    assert smooth[0] == pytest.approx(plain[0], abs=0.2)  # random weights: log(vocabulary)
    assert plain[-1] < plain[0] - 1 and smooth[-1] > plain[-1] + 0.1  # it cannot become certain
    settings_file = json.loads((tmp_path / "smoothed/settings.json").read_text())
    assert settings_file["settings"]["loss"] == "smoothed"


@pytest.mark.notebook
def test_a_study_is_a_notebook_and_a_file(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(text) for text in (STUDY_PARAMETERS, STUDY_WORK)]
    cells[0].metadata["tags"] = ["parameters"]
    for folder in ("notebooks", "experiments"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'llasa-core'\n")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/pace.ipynb")
    (tmp_path / "experiments/pace.yaml").write_text(STUDY_YAML)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "experiments/pace.yaml"]) == 0
    runs = sorted((tmp_path / "results/pace").iterdir())
    words = [json.loads((run / "result.json").read_text())["metrics"]["words"] for run in runs]
    assert sorted(words) == [4500, 18000]
    assert all((run / "pace.png").is_file() and (run / "run.ipynb").is_file() for run in runs)


def test_the_page_shows_the_code_of_these_tests():
    page = (repository_root(Path(__file__).parent) / "docs/extending.md").read_text()
    here = {line.strip() for line in Path(__file__).read_text().splitlines()}
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert len(blocks) >= 6
    assert [line for line in shown if line not in here] == []


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
