"""Every command against hostile files in the places of its inputs: status 2, at most three lines,
no traceback, nothing executed, nothing outside OUT written, within 20 s and 3 GB.

A new command joins by a line in hostile_inputs.COMMANDS.
"""

import fcntl
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import hostile_inputs
import nbformat
import numpy as np
import pytest
from helpers import tone_corpus
from hostile_inputs import CASES, COMMANDS

from llasa_core import cli
from llasa_core.audio import write_wav
from llasa_core.codecs import load_codec
from llasa_core.data.encode import encode_manifest
from llasa_core.data.memmap import export_memmap
from llasa_core.data.text_tokenizers import build_mini_tokenizer
from llasa_core.model import build_model
from llasa_core.synthesis.guards import Guards
from llasa_core.tokenizer import merge_tokenizer, vocabulary_of


def make_workshop(folder):
    """Good inputs of all commands."""
    manifest = tone_corpus(folder / "made", 2, samples=8000)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        (manifest.parent / row["audio"]).rename(folder / Path(row["audio"]).name)
        row["audio"] = Path(row["audio"]).name
    (folder / "0.wav").rename(folder / "a.wav")
    rows[0]["audio"] = "a.wav"

    def lines(name, found):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))

    lines("corpus.jsonl", rows)
    voice = [f"voice{number}.wav" for number in range(8)]  # 40 s, enough to adapt a codec to
    for name in voice:
        write_wav(folder / name, np.random.default_rng(len(name)).normal(0, 0.1, 80_000))
    lines("voice.jsonl", [{"id": name, "audio": name, "text": "hello"} for name in voice])
    lines("requests.jsonl", [{"id": "a", "text": "hello", "speaker": "x", "language": "en"}])
    lines("scores.jsonl", [{"id": row["id"], "errors": 1, "words": 2, "wer": 0.5} for row in rows])
    (folder / "words.txt").write_text("words")
    (folder / "meta.lst").write_text("u|words|a.wav|text\n")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        tar.add(folder / "a.wav", "a.wav")
        tar.add(folder / "words.txt", "a.txt")
    encode_manifest(folder / "corpus.jsonl", folder / "codes", load_codec("fake"))
    texts = [row["text"] for row in rows] + ["hello"]
    tokenizer = merge_tokenizer(build_mini_tokenizer(texts), load_codec("fake").codebook_size)
    tokenizer.save_pretrained(folder / "model")
    model = build_model("tiny", vocabulary_of(tokenizer).size, context=256, seed=0)
    model.save_pretrained(folder / "model")
    card = {"codec": "fake", "date": "26 Jul 2024", "speakers": ["x"], "context": 256}
    card |= {"mask_eot": False, "seconds_per_character": 0.08, "weights": {}}
    (folder / "model" / "llasa.json").write_text(json.dumps(card))
    Guards().write(folder / "guards.json")
    settings = {"model": "tiny", "tokenizer": "model", "codes": "codes", "output_dir": "out"}
    settings |= {"max_steps": 1, "context": 256, "tokens_per_step": 256, "peak_lr": 1e-3}
    (folder / "config.json").write_text(json.dumps(settings))
    export_memmap(folder / "codes", folder / "rows", tokenizer)
    sentence = {"id": "u0", "language": "en", "category": "Questions", "text": rows[0]["text"]}
    lines("sentences.jsonl", [sentence | {"expected": "a question"}])
    lines("asked.jsonl", rows[:1])
    key = {"page": "p", "items": {"i": {"sentence": "u0", "system": "s"}}, "sentences": [sentence]}
    (folder / "key.json").write_text(json.dumps(key))
    scores = {"schema": 1, "page": "p", "rater": "r", "scores": [{"item": "i", "score": 1}]}
    (folder / "ratings.json").write_text(json.dumps(scores))
    (folder / "pyproject.toml").touch()
    source = "seed = 0\nsize = 1\nrun_dir = 'artifacts/scratch'"
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "study.ipynb")
    (folder / "study.yaml").write_text("name: study\nnotebook: study.ipynb\n")


def meet_all(folder, written):
    """{case: its answer}, which are also appended to the file `written`; a case at which the
    process ended has the status "gone".
    """
    written.touch()
    script, done = hostile_inputs.__file__, 0
    while done < len(CASES):
        command = [sys.executable, script, str(folder), str(written), str(done)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        found = written.read_text().splitlines()
        if len(found) < len(CASES):
            with written.open("a") as file:
                file.write(json.dumps({"case": CASES[len(found)], "status": "gone"}) + "\n")
        done = len(found) + 1
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    return {tuple(row["case"]): row for row in rows}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    make_workshop(folder)
    return meet_all(folder, tmp_path_factory.mktemp("answers") / "a")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_files_that_are_replaced_are_good_ones(answers, command):
    answer = answers[command, "", ""]
    assert answer["status"] in (0, 1), answer  # 1: another layout, speech that failed its guards


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case[1]], ids=", ".join)
def test_hostile_file_is_refused_in_three_lines_and_nothing_is_done(answers, case):
    assert hostile_inputs.faults(answers[case]) == [], answers[case]


WRITERS = {name for name in COMMANDS if "out" in COMMANDS[name][0]}


@pytest.mark.parametrize("command", sorted(WRITERS - {"learn-guards"}))  # one file, by rename
def test_command_refuses_a_folder_in_which_another_process_writes(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    handle = os.open("out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # a lock of its own, as another process would have
    assert cli.main([*command.split(), *COMMANDS[command][0]]) == 2
    os.close(handle)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llasa: out: another process is writing there")


def subcommands(parser):
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, sub in action.choices.items():
                deeper = [f"{name} {one}" for one in subcommands(sub)]
                yield from deeper or [name]


# Begin with a checkpoint, as `synthesize` does; their own doors meet bad input in tests/app,
# tests/serving and tests/cli/test_push.py.
ELSEWHERE = {"app", "push", "serve"}


def test_every_command_meets_hostile_files():
    assert set(subcommands(cli.build_parser())) == set(COMMANDS) | ELSEWHERE
    contents = {name for _, files in COMMANDS.values() for kind in files.values() for name in kind}
    assert len(contents) >= 40
