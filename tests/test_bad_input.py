"""Bad input through the real command line: status 2, one line that names the culprit, no file left
behind.
"""

import importlib.util
import json
import struct
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile

from llasa_core import cli
from llasa_core.codecs import load_codec
from llasa_core.data.encode import encode_manifest
from llasa_core.data.text_tokenizers import build_mini_tokenizer
from llasa_core.model import build_model
from llasa_core.tokenizer import merge_tokenizer, vocabulary_of

CONFIG = {
    "model": "tiny",
    "tokenizer": "model",
    "codes": "codes",
    "output_dir": "out",
    "max_steps": 1,
}
CONFIG |= {"context": 256, "tokens_per_step": 256, "peak_lr": 1e-3}
ABSENT, FIND = ("neptune", "bitsandbytes"), importlib.util.find_spec
EXPERIMENT = "name: study\nnotebook: study.ipynb\n"


def wav(path, samples=8000, rate=16_000, fill=None):
    tone = np.sin(np.arange(samples) / 20) / 2 if fill is None else np.full(samples, fill)
    soundfile.write(
        path, tone.astype(np.float32), rate, subtype="FLOAT" if fill is not None else "PCM_16"
    )


def lines(path, *rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(path="config.json", **changes):
    Path(path).write_text(json.dumps(CONFIG | changes))


def experiment(
    text, parameters="seed = 0\npeak_lr = 1.0\nrun_dir = 'artifacts/scratch'", tags=("parameters",)
):
    Path("pyproject.toml").touch()
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), "study.ipynb")
    Path("study.yaml").write_text(EXPERIMENT + text)


def edit_meta(**changes):
    meta = json.loads(Path("codes/meta.json").read_text())
    Path("codes/meta.json").write_text(json.dumps(meta | changes))


def flip_last_byte(path):
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)


def cut(path, share=0.5):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])


def rate_of_zero(path):
    wav(path)
    content = bytearray(Path(path).read_bytes())
    content[24:28] = struct.pack("<I", 0)
    Path(path).write_bytes(content)


def other_codebook():
    merge_tokenizer(build_mini_tokenizer(["other words"]), 64).save_pretrained("other")


def memmap(shape, ids=16):
    Path("rows").mkdir()
    np.zeros(ids, np.int32).tofile("rows/train_input_ids.memmap")
    np.save("rows/train_input_ids_shape.npy", shape)


def pickled_shape():
    memmap(np.array([1, 16]))
    np.save("rows/train_input_ids_shape.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


RUN = ["run", "study.yaml", "--dry-run"]
TRAIN = ["train", "config.json"]
SPEAK = ["synthesize", "--model", "model", "--codec", "fake", "-o", "out"]
SCORE = ["evaluate", "spoken.jsonl", "out", "--quality", "none", "--asr", "fake"]
ENCODE = ["encode", "corpus.jsonl", "out", "--codec", "fake"]
PROMPT = [*SPEAK, "hello", "--voice", "voice.wav", "--voice-text", "hi"]

CASES = {
    "corpus that is not there": (None, ["prepare", "nowhere", "out"], "nowhere"),
    "folder that is no corpus": (
        lambda: Path("empty").mkdir(),
        ["prepare", "empty", "out"],
        "empty",
    ),
    "corpus line without a text": (
        lambda: lines("bad.jsonl", {"id": "a", "audio": "a.wav"}),
        ["prepare", "bad.jsonl", "out"],
        "bad.jsonl:1",
    ),
    "ljspeech list with one column": (
        lambda: (Path("lj").mkdir(), Path("lj/metadata.csv").write_text("a|one\nb\n")),
        ["prepare", "lj", "out"],
        "metadata.csv:2",
    ),
    "hours for a corpus that is not builtin": (
        None,
        ["prepare", "corpus.jsonl", "out", "--hours", "1"],
        "--hours",
    ),
    "manifest that is not there": (
        None,
        ["encode", "nowhere.jsonl", "out", "--codec", "fake"],
        "nowhere.jsonl",
    ),
    "manifest line that is not JSON": (
        lambda: Path("corpus.jsonl").write_text("{'id': 1}\n"),
        ENCODE,
        "corpus.jsonl:1",
    ),
    "manifest with an id twice": (
        lambda: lines("corpus.jsonl", *[{"id": "a", "audio": "a.wav", "text": "one"}] * 2),
        ENCODE,
        "corpus.jsonl:2",
    ),
    "codec of no such name": (None, [*ENCODE[:-1], "mp3"], "mp3"),
    "codec folder without weights": (
        lambda: (Path("codec").mkdir(), Path("codec/config.json").write_text("{}")),
        [*ENCODE[:-1], "codec"],
        "codec",
    ),
    "shard beyond the last": (None, [*ENCODE, "--shards", "2", "--shard", "2"], "--shard is 2"),
    "codes folder of another corpus": (
        lambda: lines("corpus.jsonl", {"id": "b", "audio": "a.wav", "text": "two"}),
        ["encode", "corpus.jsonl", "codes", "--codec", "fake"],
        "part-00000.parquet",
    ),
    "training settings that are not there": (None, TRAIN, "config.json"),
    "training settings that are not JSON": (
        lambda: Path("config.json").write_text("{"),
        TRAIN,
        "config.json",
    ),
    "unknown training setting": (lambda: config(peek_lr=1.0), TRAIN, "peek_lr"),
    "training setting of another type": (lambda: config(peak_lr="3e-4"), TRAIN, "peak_lr"),
    "no such model size": (lambda: config(model="gigantic"), TRAIN, "gigantic"),
    "codes that are not there": (lambda: config(codes="nowhere"), TRAIN, "nowhere"),
    "codes without meta.json": (
        lambda: (config(), Path("codes/meta.json").unlink()),
        TRAIN,
        "meta.json",
    ),
    "truncated parquet": (
        lambda: (config(), cut("codes/part-00000.parquet")),
        TRAIN,
        "part-00000.parquet",
    ),
    "changed parquet": (
        lambda: (config(), flip_last_byte("codes/part-00000.parquet")),
        TRAIN,
        "part-00000.parquet",
    ),
    "code out of range": (
        lambda: (config(), edit_meta(codebook_size=2)),
        TRAIN,
        "part-00000.parquet",
    ),
    "tokenizer of another codec": (
        lambda: (other_codebook(), config(tokenizer="other")),
        TRAIN,
        "codebook",
    ),
    "checkpoint that is not there": (
        None,
        ["synthesize", "--model", "./no", "-o", "out", "hello"],
        "no",
    ),
    "checkpoint cut off": (lambda: cut("model/model.safetensors"), [*SPEAK, "hello"], "model"),
    "checkpoint of another vocabulary": (
        lambda: (other_codebook(), Path("other/tokenizer.json").replace("model/tokenizer.json")),
        [*SPEAK, "hello"],
        "4096 codes",
    ),
    "empty text": (None, [*SPEAK, " "], "text is empty"),
    "no text": (None, SPEAK, "TEXT"),
    "temperature below zero": (None, [*SPEAK, "hello", "--temperature", "-1"], "temperature"),
    "voice prompt without its words": (None, [*SPEAK, "hello", "--voice", "a.wav"], "--voice-text"),
    "voice prompt that is not there": (None, PROMPT, "voice.wav"),
    "voice prompt that is no audio": (
        lambda: Path("voice.wav").write_text("hello"),
        PROMPT,
        "voice.wav",
    ),
    "voice prompt of NaN": (lambda: wav("voice.wav", fill=np.nan), PROMPT, "voice.wav"),
    "voice prompt at a rate of 0 Hz": (lambda: rate_of_zero("voice.wav"), PROMPT, "voice.wav"),
    "request with an unknown key": (
        lambda: lines("requests.jsonl", {"id": "a", "text": "one", "speeker": "x"}),
        [*SPEAK, "--manifest", "requests.jsonl"],
        "requests.jsonl:1",
    ),
    "search without a verifier": (
        None,
        ["search", *SPEAK[1:], "hello", "--verifier-asr", "none"],
        "at least one verifier",
    ),
    "search by voice without a voice": (
        None,
        ["search", *SPEAK[1:], "hello", "--verifier-speaker", "fake"],
        "it needs --voice or --voices",
    ),
    "guided search without its guide": (
        None,
        ["search", *SPEAK[1:], "hello", "--strategy", "prm", "--verifier-asr", "fake"],
        "guided by the voice",
    ),
    "search guided by a voice that is switched off": (
        None,
        [
            "search",
            *SPEAK[1:],
            "hello",
            "--strategy",
            "prm",
            "--verifier-asr",
            "fake",
            "--verifier-speaker",
            "none",
        ],
        "guided by the voice: it needs that verifier",
    ),
    "scores by the verifier of the search": (
        lambda: lines(
            "found.jsonl", {"id": "a", "audio": "a.wav", "text": "one", "verifiers": ["fake"]}
        ),
        ["evaluate", "found.jsonl", "out", "--asr", "fake", "--quality", "none"],
        "fake chose 'a' as a verifier of the search",
    ),
    "benchmark that is not there": (None, ["protocol", "asr", "nowhere", "out"], "nowhere"),
    "benchmark line of three fields": (
        lambda: Path("meta.lst").write_text("u|words|a.wav\n"),
        ["protocol", "seed-tts-en", "meta.lst", "out"],
        "meta.lst:1",
    ),
    "benchmark line whose wav is not there": (
        lambda: Path("meta.lst").write_text("u|words|gone.wav|text\n"),
        ["protocol", "seed-tts-en", "meta.lst", "out"],
        "gone.wav",
    ),
    "scores of a protocol that was not prepared": (
        None,
        ["evaluate", "corpus.jsonl", "out", "--asr", "fake", "--protocol", "codes"],
        "protocol.json",
    ),
    "comparison of different utterances": (
        lambda: [lines(f"{n}.jsonl", {"id": n, "errors": 0, "words": 1}) for n in ("one", "two")],
        ["compare", "one.jsonl", "two.jsonl"],
        "'one' is scored in only one",
    ),
    "recording that is no audio": (
        lambda: Path("x.wav").write_bytes(b"RIFF"),
        ["transcribe", "--model", "model", "--codec", "fake", "x.wav"],
        "x.wav",
    ),
    "scores of a wav that is not there": (
        lambda: lines("spoken.jsonl", {"id": "a", "audio": "gone.wav", "text": "one"}),
        SCORE,
        "gone.wav",
    ),
    "scores of a wav of NaN": (
        lambda: (
            wav("nan.wav", fill=np.nan),
            lines("spoken.jsonl", {"id": "a", "audio": "nan.wav", "text": "one"}),
        ),
        SCORE,
        "nan.wav",
    ),
    "scores against a text without words": (
        lambda: lines("spoken.jsonl", {"id": "a", "audio": "a.wav", "text": "!?"}),
        SCORE,
        "!?",
    ),
    "judge of no such name": (
        None,
        ["evaluate", "corpus.jsonl", "out", "--quality", "ears"],
        "ears",
    ),
    "rows that are not there": (None, ["import-memmap", "nowhere", "out"], "nowhere"),
    "rows shorter than their shape": (
        lambda: memmap(np.array([2, 16])),
        ["import-memmap", "rows", "out", "--tokenizer", "model"],
        "train_input_ids.memmap",
    ),
    "shape that needs pickle": (
        pickled_shape,
        ["import-memmap", "rows", "out", "--tokenizer", "model"],
        "train_input_ids_shape.npy",
    ),
    "rows for another codebook": (
        other_codebook,
        ["export-memmap", "codes", "out", "--tokenizer", "other"],
        "4096",
    ),
    "pattern of no file": (
        None,
        ["encode", "shards-*.tar", "out", "--codec", "fake"],
        "shards-*.tar",
    ),
    "tar that is none": (
        lambda: Path("shard.tar").write_bytes(b"no tar" * 200),
        ["encode", "shard.tar", "out", "--codec", "fake"],
        "shard.tar",
    ),
    "parquet without audio": (
        lambda: Path("rows.parquet").write_bytes(Path("codes/part-00000.parquet").read_bytes()),
        ["encode", "rows.parquet", "out", "--codec", "fake"],
        "rows.parquet",
    ),
    "filter that filters nothing": (None, ["data", "filter", "codes", "out"], "no filter"),
    "filter by scores that are not there": (
        None,
        ["data", "filter", "codes", "out", "--max-wer", "0.1", "--scores", "nowhere.jsonl"],
        "nowhere.jsonl",
    ),
    "report on no dataset": (None, ["data", "report", "nowhere", "-o", "out"], "nowhere"),
    "tokenizer that is not there": (None, ["check", "./nowhere"], "nowhere"),
    "folder without a tokenizer": (None, ["check", "codes"], "codes"),
    "tokenizer cut off": (lambda: cut("model/tokenizer.json"), ["check", "model"], "model"),
    "device of no such name": (None, [*ENCODE, "--device", "foo"], "device 'foo'"),
    "device that is not there": (None, [*SPEAK, "hello", "--device", "cuda"], "device 'cuda'"),
    "file where codes should go": (lambda: Path("out").touch(), ENCODE, "out: is no folder"),
    "file where a checkpoint should go": (
        lambda: (config(), Path("out").touch()),
        TRAIN,
        "out: is no folder",
    ),
    "file where rows should go": (
        lambda: Path("out").touch(),
        ["export-memmap", "codes", "out", "--tokenizer", "model"],
        "out: is no folder",
    ),
    "file where scores should go": (
        lambda: Path("out").touch(),
        ["evaluate", "corpus.jsonl", "out", "--quality", "none", "--asr", "fake"],
        "out: is no folder",
    ),
    "file where a report should go": (
        lambda: Path("out").touch(),
        ["data", "report", "codes", "-o", "out/report"],
        "out: is no folder",
    ),
    "folder where a manifest should be": (
        lambda: Path("spoken").mkdir(),
        ["evaluate", "spoken", "out", "--quality", "none", "--asr", "fake"],
        "spoken",
    ),
    "log of no such kind": (
        lambda: config(report_to="nonsense"),
        TRAIN,
        "`report_to` is 'nonsense'",
    ),
    "log whose package is not there": (
        lambda: config(report_to="neptune"),
        TRAIN,
        "`report_to` is 'neptune'",
    ),
    "optimizer whose package is not there": (
        lambda: config(optim="adamw_bnb_8bit"),
        TRAIN,
        "needs the package bitsandbytes",
    ),
    "seed below zero": (lambda: config(seed=-1), TRAIN, "`seed` is -1"),
    "LoRA rank that is no number": (lambda: config(lora={"r": "x"}), TRAIN, "`lora` has r 'x'"),
    "LoRA of a layer that is not there": (
        lambda: config(lora={"target_modules": ["q_proj", "query"]}),
        TRAIN,
        "target_modules 'query'",
    ),
    "half a character": (
        lambda: Path("requests.jsonl").write_text('{"id": "a", "text": "one \\ud800"}\n'),
        [*SPEAK, "--manifest", "requests.jsonl"],
        "requests.jsonl:1",
    ),
    "half a character on the command line": (None, [*SPEAK, "one \udcff"], "half a character"),
    "half a character in an id": (
        lambda: lines("requests.jsonl", {"id": "a\udcff", "text": "one"}),
        [*SPEAK, "--manifest", "requests.jsonl"],
        "requests.jsonl:1",
    ),
    "checkpoint's settings that are no UTF-8": (
        lambda: Path("model/llasa.json").write_bytes(b'{"codec": "\xff"}'),
        [*SPEAK, "hello"],
        "llasa.json: byte 11",
    ),
    "recording shorter than one code": (
        lambda: wav("short.wav", samples=100),
        ["transcribe", "--model", "model", "--codec", "fake", "a.wav", "short.wav"],
        "short.wav",
    ),
    "experiment file that is not there": (None, ["run", "nowhere.yaml"], "nowhere.yaml"),
    "number that YAML reads as text": (
        lambda: experiment("base: {peak_lr: 3e-4}\n"),
        RUN,
        "3.0e-4",
    ),
    "unknown parameter": (lambda: experiment("base: {sead: 1}\n"), RUN, "sead"),
    "parameter of another type": (lambda: experiment("grid: {seed: [one]}\n"), RUN, "seed"),
    "notebook without a parameters cell": (lambda: experiment("", tags=()), RUN, "study.ipynb"),
    "no run of that name": (
        lambda: experiment("grid: {seed: [1]}\n"),
        [*RUN, "--only", "seed2"],
        "seed2",
    ),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A corpus of two clips, its codes by the fake codec, and an untrained model of the matching
    vocabulary.
    """
    folder = tmp_path_factory.mktemp("workshop")
    for name in "ab":
        wav(folder / f"{name}.wav")
    lines(
        folder / "corpus.jsonl",
        *[{"id": name, "audio": f"{name}.wav", "text": f"clip {name}"} for name in "ab"],
    )
    encode_manifest(folder / "corpus.jsonl", folder / "codes", load_codec("fake"))
    tokenizer = merge_tokenizer(
        build_mini_tokenizer(["clip a", "clip b", "hello"]), load_codec("fake").codebook_size
    )
    tokenizer.save_pretrained(folder / "model")
    build_model("tiny", vocabulary_of(tokenizer).size, context=256, seed=0).save_pretrained(
        folder / "model"
    )
    return folder


@pytest.fixture
def place(workshop, tmp_path, monkeypatch):
    """The working folder: a copy of the workshop that a case may damage."""
    for source in workshop.rglob("*"):
        target = tmp_path / source.relative_to(workshop)
        if source.is_dir():
            target.mkdir()
        else:
            target.write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "torch.cuda.is_available", lambda: False
    )  # what is not there must not depend on the machine
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in ABSENT else FIND(name, *rest),
    )
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_status_2_and_no_file(name, place, capsys):
    damage, argv, culprit = CASES[name]
    if damage:
        damage()
    before = files(place)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("llasa: ")]
    assert culprit in line
    assert captured.err.splitlines()[-1] == line
    assert "Traceback" not in captured.err and captured.out == ""
    assert files(place) == before


def test_corpus_with_nothing_fit_leaves_the_report_of_why(place, capsys):
    wav("a.wav", fill=np.nan)
    wav("b.wav", fill=0.0)
    assert cli.main(["prepare", "corpus.jsonl", "out"]) == 2
    report = json.loads(Path("out/report.json").read_text())
    assert report["kept"] == 0 and sum(report["dropped"].values()) == 2
    assert not list(Path("out").glob("*.wav")) and not Path("out/train.jsonl").exists()


@pytest.mark.slow
def test_the_workshop_itself_is_good_input(place, capsys):
    config()
    assert cli.main(TRAIN) == 0
    assert (
        cli.main([*SPEAK[:-1], "spoken", "hello", "--attempts", "0", "--max-seconds", "0.2"]) == 0
    )
    assert cli.main(["export-memmap", "codes", "rows", "--tokenizer", "model"]) == 0
    assert (
        cli.main(["import-memmap", "rows", "back", "--tokenizer", "model", "--codec", "fake"]) == 0
    )
    assert (
        cli.main(
            ["evaluate", "spoken/manifest.jsonl", "scores", "--asr", "fake", "--quality", "fake"]
        )
        == 0
    )
    assert Path("out/model.safetensors").exists() and Path("scores/summary.json").exists()
