"""Hostile files, the commands that read them, and the process in which the commands meet them.

`python tests/hostile_inputs.py FOLDER ANSWERS SKIP` runs every case after the first SKIP in FOLDER,
one after another in this one process, as a start costs more than all else. Each case puts a hostile
file in the place of a good one, runs a command and appends a JSON line to ANSWERS.
"""

import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

SECONDS = 20  # for one command on one input
MORE_MEMORY = 3 * 2**30  # bytes beyond what the process has when it starts
CANARY = "executed"  # a file that code in an input would make


class Late(BaseException):
    """A command took more than SECONDS; no Exception, so that nothing answers it."""


class Code:
    """What touches CANARY when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def every(value):
    """The good JSON object of the file with `value` under each key."""
    return lambda good: json.dumps(dict.fromkeys(json.loads(good), value))


def nested(brackets="[]", closed=True):
    levels = brackets[0] * 5000 + (brackets[1] * 5000 if closed else "")
    return lambda good: '{"a": ' + levels + "}"


def unpickled(good):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Code()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def giant_shape(good):
    buffer = io.BytesIO()
    np.save(buffer, np.array([2**40, 2**20]))
    return buffer.getvalue()


def tar_of(name, content=b"x", kind=tarfile.REGTYPE, link=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(content), kind, link
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def safetensors_of(header, data=b""):
    return struct.pack("<Q", len(header)) + header.encode() + data


TEXT = {  # of any file that is read as text: content, or a function of the good content
    "nothing": "",
    "no UTF-8": b"\xff\xfe{\x00\xff",
    "NUL alone": b"\0" * 4096,
    "nesting of 5,000": nested(),
    "nesting of 5,000 objects": nested(('{"a":', "}")),
    "nesting without an end": nested(closed=False),
    "integer of 5,000 digits": '{"a": ' + "9" * 5000 + "}",
    "folder": None,
    "link to itself": ...,
}
JSON = TEXT | {
    "list": "[]",
    "text": '"a"',
    "cut off": lambda good: good[: len(good) // 2],
    "every value true": every(True),
    "every value negative": every(-1),
    "every value 10^9": every(10**9),
    "every value of 400 digits": every(10**400),
    "every value NaN": every(float("nan")),
    "every value NUL": every("a\0b"),
    "every value an object": every({"a": {}}),
    "every value half a character": every("\ud800"),
}
ROWS = TEXT | {
    "list": "[]\n",
    "row of numbers": lambda good: every(-1)(good.split("\n")[0]) + "\n",
    "row of NUL": lambda good: every("a\0b")(good.split("\n")[0]) + "\n",
    "row of lists": lambda good: every([[]])(good.split("\n")[0]) + "\n",
    "row of truths": lambda good: every(True)(good.split("\n")[0]) + "\n",
    "row of long names": lambda good: every("a" * 10_000)(good.split("\n")[0]) + "\n",
    "row of empty texts": lambda good: every("")(good.split("\n")[0]) + "\n",
}
YAML = TEXT | {
    "date that is none": "name: 2001-99-99",
    "map of text": 'name: !!map "foo"',
    "code": f"name: !!python/object/apply:os.system ['touch {CANARY}']",
    "set": lambda good: good + "base: {seed: !!set {a}}\n",
    "bytes": lambda good: good + "base: {seed: !!binary aGk=}\n",
    "itself": "name: &a [*a]",
    "billions": "a: &a [x, x]\n"
    + "".join(
        f"k{n}: &{n} [*{m}, *{m}, *{m}]\n"
        for m, n in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
    ),
    "notebook elsewhere": lambda good: good.replace("study.ipynb", "../../../etc/passwd"),
    "name with a path": lambda good: good.replace("name: study", "name: ../study"),
    "nine million runs": lambda good: good + f"grid: {{seed: {[0] * 3000}, size: {[0] * 3000}}}\n",
}
BINARY = {
    "nothing": b"",
    "no audio": b"RIFF" * 100,
    "cut off": lambda good: good[:30],
    "pickle": pickle.dumps(Code()),
    "folder": None,
    "link to itself": ...,
}
AUDIO = BINARY | {
    "rate of zero": lambda good: good[:24] + b"\0\0\0\0" + good[28:],
    "channels without end": lambda good: good[:22] + b"\xff\xff" + good[24:],
}
SHAPE = BINARY | {"pickled shape": unpickled, "giant shape": giant_shape}
WEIGHTS = BINARY | {
    "giant header": struct.pack("<Q", 2**62) + b"{}",
    "header alone": safetensors_of('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "giant tensor": safetensors_of(
        '{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    ),
    "header nested": safetensors_of("[" * 5000 + "]" * 5000),
}
TAR = BINARY | {
    "member outside": tar_of("../../outside.wav"),
    "absolute member": tar_of("/tmp/outside.wav"),
    "link to a secret": tar_of("a.wav", b"", tarfile.SYMTYPE, "/etc/passwd"),
    "member of 5,000 brackets": tar_of("a.json", b"[" * 5000),
}

RATED = ["--key", "key.json", "-o", "out"]
COMMANDS = {  # (arguments, {file that a stranger may have written: its hostile contents})
    "check": (
        ["model"],
        {"model/config.json": JSON, "model/llasa.json": JSON, "model/tokenizer.json": TEXT},
    ),
    "prepare": (["corpus.jsonl", "out"], {"corpus.jsonl": ROWS}),
    "encode": (["shard.tar", "out", "--codec", "fake", "--workers", "0"], {"shard.tar": TAR}),
    "adapt-codec": (
        ["mini", "voice.jsonl", "out", "--steps", "1"],
        {"voice.jsonl": ROWS, "voice0.wav": AUDIO},
    ),
    "import-memmap": (
        ["rows", "out", "--tokenizer", "model"],
        {"rows/train_input_ids_shape.npy": SHAPE},
    ),
    "export-memmap": (["codes", "out", "--tokenizer", "model"], {"codes/meta.json": JSON}),
    "data report": (
        ["codes", "-o", "out"],
        {"codes/meta.json": JSON, "codes/part-00000.parquet": BINARY},
    ),
    "data filter": (
        ["codes", "out", "--max-wer", "0.5", "--scores", "scores.jsonl"],
        {"scores.jsonl": ROWS},
    ),
    "train": (["config.json"], {"config.json": JSON}),
    "synthesize": (
        [
            "--model",
            "model",
            "--codec",
            "fake",
            "-o",
            "out",
            "--manifest",
            "requests.jsonl",
            "--max-seconds",
            "0.1",
            "--guards",
            "guards.json",
        ],
        {"requests.jsonl": ROWS, "guards.json": JSON, "model/model.safetensors": WEIGHTS},
    ),
    "learn-guards": (["codes", "out"], {"codes/meta.json": JSON}),
    "search": (
        [
            "--model",
            "model",
            "--codec",
            "fake",
            "-o",
            "out",
            "hello",
            "--max-seconds",
            "0.1",
            "--verifier-asr",
            "fake",
            "--candidates",
            "1",
        ],
        {"model/llasa.json": JSON, "model/config.json": JSON},
    ),
    "transcribe": (["--model", "model", "--codec", "fake", "a.wav"], {"a.wav": AUDIO}),
    "evaluate": (
        ["corpus.jsonl", "out", "--quality", "none", "--asr", "fake"],
        {"corpus.jsonl": ROWS, "a.wav": AUDIO},
    ),
    "protocol": (["seed-tts-en", "meta.lst", "out"], {"meta.lst": TEXT}),
    "compare": (["scores.jsonl", "scores.jsonl"], {"scores.jsonl": ROWS}),
    "rating-page": (
        ["asked.jsonl", "-o", "out", "--sentences", "sentences.jsonl"],
        {"asked.jsonl": ROWS, "sentences.jsonl": ROWS, "a.wav": AUDIO},
    ),
    "rating-scores": (["ratings.json", *RATED], {"ratings.json": JSON, "key.json": JSON}),
    "run": (["study.yaml", "--dry-run"], {"study.yaml": YAML, "study.ipynb": JSON}),
}

CASES = [
    (command, file, name)
    for command, (_, targets) in COMMANDS.items()
    for file, contents in targets.items()
    for name in contents
] + [(command, "", "") for command in COMMANDS]  # as they are: what is refused above is the file


def put(path, content):
    """The hostile content in the place of the good file."""
    good = path.read_bytes()
    path.unlink()
    if content is None:
        path.mkdir()
    elif content is ...:
        path.symlink_to(path.name)
    else:
        if callable(content):
            try:
                content = content(good.decode())
            except (UnicodeDecodeError, TypeError):
                content = content(good)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return good


def restore(path, good):
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(good)


def state(folder):
    """Names, sizes and times of all files outside `out`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] != "out":
            facts = path.lstat()
            found[str(path.relative_to(folder))] = [facts.st_size, facts.st_mtime_ns]
    return found


def files_changed(before, after):
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def meet(command, file, name, stderr):
    """Run one case: {"status", "error" (its lines), "seconds", "outside" (files changed)}."""
    from llasa_core import cli

    arguments, targets = COMMANDS[command]
    shutil.rmtree("out", ignore_errors=True)
    if command == "learn-guards":
        Path("out").mkdir()
    path = Path(file)
    good = put(path, targets[file][name]) if file else None
    before, start = state(Path.cwd()), time.monotonic()
    stderr.seek(0)
    stderr.truncate()
    signal.alarm(SECONDS)
    try:
        status = cli.main([*command.split(), *arguments])
    except Late:
        status = "late"
    except BaseException:
        traceback.print_exc()
        status = "traceback"
    finally:
        signal.alarm(0)
        sys.stderr.flush()
    answer = {"status": status, "seconds": round(time.monotonic() - start, 2)}
    answer["outside"] = files_changed(before, state(Path.cwd()))
    if file:
        restore(path, good)
    Path(CANARY).unlink(missing_ok=True)
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").replace("\r", "\n").split("\n")

    answer["error"] = [line for line in lines if line.strip() and not line.strip().endswith("]")]
    return {"case": [command, file, name], **answer}


def faults(answer):
    """What is wrong with the answer to a hostile file; nothing if it was refused as it must be."""
    told = answer.get("error", [])
    found = {
        "status": answer["status"] != 2,
        "files outside OUT, or code of the input that ran": answer.get("outside"),
        "one to three lines": not 1 <= len(told) <= 3,
        "last line": not (told and told[-1].startswith("llasa: ")),
        "traceback": any("Traceback" in line for line in told),
        "late": answer.get("seconds", 0.0) >= SECONDS,
    }
    return [name for name, wrong in found.items() if wrong]


def main(folder, answers, skip=0):
    """Meet the cases; the memory is bounded once the libraries are loaded."""
    answers = open(answers, "a")  # noqa: SIM115, open to the end
    os.chdir(folder)
    import transformers.models.llama.modeling_llama  # noqa: F401, before the bound

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))

    def late(*_):
        raise Late

    signal.signal(signal.SIGALRM, late)
    stderr = tempfile.TemporaryFile()  # noqa: SIM115, open to the end
    os.dup2(stderr.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for command, file, name in CASES[skip:]:
        answers.write(json.dumps(meet(command, file, name, stderr)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute(), int(sys.argv[3]))
