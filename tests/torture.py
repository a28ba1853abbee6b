"""Commands killed at random moments, on full disks and two in one folder: equal bytes at the end;
commands that meet hostile files.

    python tests/torture.py [--only search,run] [--kills 10]    writes results/reliability.json

Each attempt runs in a fork of this process, which has the libraries loaded, so that a kill falls
into work and not into imports. What is compared: every file that the whole run left, but logs,
clocks and the optimizer's state. Full disks need the right to mount. The tables of
docs/reliability.md are written anew.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from hostile_inputs import faults
from small_study import write_notebook
from test_hostile import make_workshop, meet_all
from tqdm import tqdm

from llasa_core import cli
from llasa_core.files import read_object, write_json

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
    "run": (["run", "OUT/study.yaml"], ("results/study/*/*", "artifacts/study/*/*")),
}
CELLS = (  # of the notebook of `llasa run`
    "seed = 0\nrun_dir = 'artifacts/scratch'\nartifacts_dir = 'artifacts/scratch'",
    "from pathlib import Path\n\nfrom llasa_core.experiments.results import record\n"
    "from llasa_core.files import publish",
    "weights = Path(artifacts_dir, 'model.bin')\npublish(weights, bytes([seed]) * 30_000)",
    "for step in range(40):\n    print(f'step {step}', 'loss ' * 20)",
    "rows = [{'id': f'u{n}', 'seconds': 1.0, 'wer': seed / 10} for n in range(200)]\n"
    "record(run_dir, {'loss': 1.5 + seed}, {'model': weights}, tables={'utterances': rows})",
)


def prepare_folder():
    """Good inputs in the working folder, more of them than the tests need."""
    make_workshop(Path.cwd())
    rows = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    many = [{**rows[n % 2], "id": f"u{n}"} for n in range(40)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    asked = [{"id": f"r{n}", "text": "hello text " * (1 + n % 3), "seed": n} for n in range(6)]
    Path("requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    write_notebook(Path("repository", "notebooks", "study.ipynb"), *CELLS)
    Path("repository", "pyproject.toml").touch()
    study = "name: study\nnotebook: notebooks/study.ipynb\ngrid: {seed: [0, 1]}\n"
    Path("repository", "study.yaml").write_text(study)


def start(command, out):
    """The id of a process that runs the command into OUT; its messages go to OUT.log."""
    arguments = [part.replace("OUT", str(out)) for part in COMMANDS[command][0]]
    if command == "train":
        settings = json.loads(Path("config.json").read_text()) | {"output_dir": str(out)}
        settings |= {"max_steps": 8, "save_steps": 2, "resume": True, "save_total_limit": 2}
        Path(f"{out}.json").write_text(json.dumps(settings))
    elif command == "run" and not Path(out, "study.yaml").is_file():
        shutil.copytree("repository", out, dirs_exist_ok=True)
    child = os.fork()
    if child:
        return child
    signal.alarm(600)  # a command that hangs is ended, and has failed
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
    """{file: sha256} of what must be equal; of result.json without clock and machine."""
    sums = {}
    for pattern in COMMANDS[command][1]:
        for path in sorted(Path(out).glob(pattern)):
            if path.name in ("finished.jsonl", "train_log.jsonl", "metrics.json"):
                continue
            content = path.read_bytes()
            if path.name == "result.json":
                content = json.dumps(json.loads(content) | {"provenance": None}).encode()
            sums[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return sums


def lines_of(out):
    """Its errors; what `prepare` says on the way is none."""
    text = log_of(out).read_text().replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.startswith(("llasa: ", "Traceback"))]
    return [line for line in lines if "read as layout" not in line]


def whole_run(command):
    """Seconds, status and files of a run that nothing disturbs."""
    began, out = time.monotonic(), f"{command}-whole"
    status = finish(start(command, out))
    seconds, files = time.monotonic() - began, digest(command, out)
    if status not in (0, 1) or not files:
        raise SystemExit(f"{command}: status {status}, {lines_of(out)}")
    return seconds, (status, files)


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
        equal += (finish(start(command, out)), digest(command, out)) == whole
    return {"kills": done, "folders": folders, "equal": equal}


def full(command, whole, chance, times):
    """Disks that are full at random points, then grown; None without the right to mount.

    On a full one: status 2 and one line, and what is there under its final name is whole.
    """
    tried = told = clean = equal = 0
    made = [path.stat().st_size for path in Path(f"{command}-whole").rglob("*") if path.is_file()]
    most = sum(-(-size // 4096) * 4 for size in made)
    for number in range(times):
        disk = Path.cwd() / f"{command}-disk-{number}"
        disk.mkdir()
        size = f"{chance.randint(12, most)}k"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            return None
        status = finish(start(command, disk))
        if status != whole[0]:
            tried, lines = tried + 1, lines_of(disk)
            told += status == 2 and len(lines) == 1 and "no space left" in lines[0].lower()
            clean += not is_torn(command, disk, whole[1])
            print(command, size, status, lines, sep="  ")
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        equal += (finish(start(command, disk)), digest(command, disk)) == whole
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    return {"disks": times, "full": tried, "one_line": told, "whole_files": clean, "equal": equal}


def is_torn(command, out, files):
    """Whether a file has its final name and not its final content, or a temporary one is left."""
    differing = digest(command, out).items() - files.items()
    return bool(differing or list(Path(out).rglob("*.part")))


def together(command, whole, times):
    """Two processes on one folder: the later one refuses in a line or waits for the first, which is
    not disturbed.
    """
    refused = waited = equal = 0
    for number in range(times):
        out = Path(f"{command}-two-{number}")
        first = start(command, out)
        while not out.is_dir():
            time.sleep(0.001)
        second = start(command, out)
        status, lines = finish(second), lines_of(out)
        refused += status == 2 and len(lines) == 1 and "another process" in lines[0]
        waited += status == whole[0]
        equal += (finish(first), digest(command, out)) == whole
    return {"pairs": times, "refused": refused, "waited": waited, "equal": equal}


def attack(command, kills, chance):
    """The row of one command."""
    seconds, whole = whole_run(command)
    times = max(1, kills // 3)
    return {
        "killed": killed(command, whole, seconds, kills, chance),
        "full_disk": full(command, whole, chance, times),
        "two_at_once": together(command, whole, times),
    }


def hostile(folder):
    """{command: {"inputs", "refused", "slowest_seconds"}} of the hostile files of test_hostile.py.

    Refused: status 2, at most three lines, nothing executed or written elsewhere.
    """
    folder.mkdir()
    make_workshop(folder)
    table = {}
    for (command, file, _), answer in meet_all(folder, Path("answers")).items():
        if file:
            row = table.setdefault(command, {"inputs": 0, "refused": 0, "slowest_seconds": 0.0})
            row["inputs"] += 1
            row["refused"] += not faults(answer)
            row["slowest_seconds"] = max(row["slowest_seconds"], answer.get("seconds", 0.0))
    return table


def markdown(report):
    """The two tables of docs/reliability.md."""
    lines = []
    if report["hostile"]:
        lines = ["| command | hostile files | refused | slowest, s |", "|---|--:|--:|--:|"]
    for command, row in sorted(report["hostile"].items()):
        seconds = f"{row['slowest_seconds']:.1f}"
        lines.append(f"| `{command}` | {row['inputs']} | {row['refused']} | {seconds} |")
    heads = ["command", "kills", "folders: equal bytes", "small disks: full", "one line"]
    heads += ["nothing half written", "equal bytes", "pairs: refused", "waited", "equal bytes"]
    lines += ["", f"| {' | '.join(heads)} |", "|---" + "|--:" * 9 + "|"]
    for command, row in sorted(report["commands"].items()):
        kill, disk, two = (row[key] or {} for key in ("killed", "full_disk", "two_at_once"))
        cells = [kill["kills"], f"{kill['folders']}: {kill['equal']}"]
        if disk:
            cells += [f"{disk['disks']}: {disk['full']}", disk["one_line"], disk["whole_files"]]
        cells += [disk["equal"]] if disk else ["not tried"] * 4
        cells += [f"{two['pairs']}: {two['refused']}", two["waited"], two["equal"]]
        lines.append(f"| `{command}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def write_page(page, report):
    """Put the tables between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    marks = r"(<!-- made by make torture -->\n).*(<!-- end -->)"
    text = re.sub(marks, lambda found: found[1] + markdown(report) + found[2], text, flags=re.S)
    page.write_text(text, encoding="utf-8")


def current_commit():
    """Of the library and the tests; marked where one of their files is not as committed."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "llasa_core", "tests")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each command (default 10)")
    parser.add_argument("--only", help="rows to renew, with commas: commands, or hostile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", default="results/reliability.json")
    options = parser.parse_args()
    target, page = Path(options.out).absolute(), Path("docs/reliability.md").absolute()
    report = read_object(target) if options.only else {"commands": {}, "hostile": {}, "commits": {}}
    commit = current_commit()
    # The lock of tqdm's own is shared by forks, so that one killed with it would stop all others.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare_folder()
        for name in options.only.split(",") if options.only else [*COMMANDS, "hostile"]:
            if name == "hostile":
                row = report["hostile"] = hostile(Path("hostile").absolute())
            else:
                chance = random.Random(f"{options.seed} {name}")
                row = report["commands"][name] = attack(name, options.kills, chance)
            report["commits"][name] = commit
            print(name, json.dumps(row), flush=True)
            write_json(target, report)
            write_page(page, report)


if __name__ == "__main__":
    main()
