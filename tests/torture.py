"""Commands killed at random moments, on full disks and two in one folder: equal bytes at the end.

    python tests/torture.py [--kills 10]                 writes results/reliability.json

Each attempt runs in a fork of this process, which has the libraries loaded, so that a kill falls
into work and not into imports. What is compared: every file that the whole run left, but logs,
clocks and the optimizer's state. Full disks need the right to mount.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from test_hostile import make_workshop

from llasa_core import cli
from llasa_core.files import write_json

SPEAK = ["--model", "model", "--codec", "fake", "--manifest", "requests.jsonl"]
SPEAK += ["--max-seconds", "2"]
COMMANDS = {  # arguments with OUT for the folder; what of it must be equal
    "encode": (
        "encode many.jsonl OUT --codec fake --workers 0 --rows-per-part 4".split(),
        ("*.parquet", "meta.json"),
    ),
    "synthesize": (["synthesize", *SPEAK, "-o", "OUT"], ("wavs/*.wav", "manifest.jsonl")),
    "search": (
        ["search", *SPEAK, "-o", "OUT", "--verifier-asr", "fake", "--candidates", "2"],
        ("wavs/*.wav",),
    ),
    "train": (["train", "OUT.json"], ("model.safetensors", "tokenizer.json", "config.json")),
    "prepare": (["prepare", "many.jsonl", "OUT", "--allow-dropped"], ("*.jsonl",)),
}


def prepare_folder():
    """Good inputs in the working folder, more of them than the tests need."""
    make_workshop(Path.cwd())
    rows = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    many = [{**rows[n % 2], "id": f"u{n}"} for n in range(40)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    asked = [{"id": f"r{n}", "text": "hello text " * (1 + n % 3), "seed": n} for n in range(12)]
    Path("requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


def start(command, out):
    """The id of a process that runs the command into OUT; its messages go to OUT.log."""
    arguments = [part.replace("OUT", str(out)) for part in COMMANDS[command][0]]
    if command == "train":
        settings = json.loads(Path("config.json").read_text()) | {"output_dir": str(out)}
        settings |= {"max_steps": 8, "save_steps": 2, "resume": True, "save_total_limit": 2}
        Path(f"{out}.json").write_text(json.dumps(settings))
    child = os.fork()
    if child:
        return child
    log = os.open(log_of(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 70
    with contextlib.suppress(BaseException):
        status = cli.main(arguments)
    sys.stdout.flush()
    os._exit(status)


def log_of(out):
    return Path(f"{Path(out).absolute().as_posix().replace('/', '_')}.log")


def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(command, out):
    sums = {}
    for pattern in COMMANDS[command][1]:
        for path in sorted(Path(out).glob(pattern)):
            if path.name not in ("finished.jsonl", "train_log.jsonl"):
                sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sums


def lines_of(out):
    text = log_of(out).read_text().replace("\r", "\n")
    return [line for line in text.splitlines() if line.startswith(("llasa: ", "Traceback"))]


def killed(command, whole, seconds, kills, chance):
    """Kills at random moments until `kills` fell into a run; how many, and how many folders ended
    with equal bytes.
    """
    done = folders = equal = 0
    while done < kills:
        out = Path(f"{command}-killed-{folders}")
        folders += 1
        for _ in range(3):
            child = start(command, out)
            time.sleep(chance.uniform(0.02, 1.0) * seconds)
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
        equal += finish(start(command, out)) in (0, 1) and digest(command, out) == whole
    return {"kills": done, "folders": folders, "equal": equal}


def full(command, whole, chance, times):
    """Disks that are full at random points, then grown; None without the right to mount."""
    told = equal = tried = 0
    for number in range(times):
        disk = Path.cwd() / f"{command}-disk-{number}"
        disk.mkdir()
        most = 20_000 if command == "train" else 120
        size = f"{chance.randint(8, most)}k"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            return None
        status = finish(start(command, disk))
        if status == 2:
            tried += 1
            lines = lines_of(disk) if Path(f"{disk}/out.log").exists() else []
            told += (len(lines) == 1 and "no space left" in lines[0]) or not lines
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        again = finish(start(command, disk))
        equal += again in (0, 1) and digest(command, disk) == whole
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    return {"disks": times, "full": tried, "one_line": told, "equal": equal}


def together(command, whole, times):
    """Two processes on one folder: the later one refuses in a line, the first is not disturbed."""
    refused = equal = 0
    for number in range(times):
        out = Path(f"{command}-two-{number}")
        first = start(command, out)
        while not out.is_dir():
            time.sleep(0.001)
        second = start(command, out)
        status, lines = finish(second), lines_of(out)
        refused += status == 2 and len(lines) == 1 and "another process" in lines[0]
        equal += finish(first) in (0, 1) and digest(command, out) == whole
    return {"pairs": times, "refused": refused, "equal": equal}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each command (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", default="results/reliability.json")
    options = parser.parse_args()
    target, chance, table = Path(options.out).absolute(), random.Random(options.seed), {}
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare_folder()
        for command in COMMANDS:
            began = time.monotonic()
            status = finish(start(command, Path(f"{command}-whole")))
            seconds, whole = time.monotonic() - began, digest(command, f"{command}-whole")
            if status not in (0, 1) or not whole:
                raise SystemExit(f"{command}: status {status}, {lines_of(f'{command}-whole')}")
            row = {"killed": killed(command, whole, seconds, options.kills, chance)}
            times = max(1, options.kills // 3)
            row["full_disk"] = full(command, whole, chance, times)
            row["two_at_once"] = together(command, whole, times)
            table[command] = row
            print(command, json.dumps(row), flush=True)
            write_json(target, {"commit": commit, "seed": options.seed, "commands": table})
        os.chdir("/")


if __name__ == "__main__":
    main()
