"""A command that ends, however it ends, leaves no process behind and no file half written."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import soundfile


@pytest.fixture
def corpus(tmp_path):
    """A manifest of 4,000 short recordings: more than a command can finish before it is stopped."""
    wave = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    lines = (
        json.dumps({"id": f"u{number}", "audio": "a.wav", "text": "hello", "speaker": "s"}) + "\n"
        for number in range(4_000)
    )
    (tmp_path / "all.jsonl").write_text("".join(lines))
    return tmp_path / "all.jsonl"


def start(kind, corpus, out):
    options = {
        "encode": ["encode", corpus, out, "--codec", "fake", "--rows-per-part", "20"],
        "prepare": ["prepare", corpus, out, "--jobs", "2"],
    }
    command = [sys.executable, "-m", "llasa_core.cli", *map(str, options[kind])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def at_work(out):
    """Whether a worker has finished something: a part, or a line of the journal below its first."""
    journals = [path.read_text().count("\n") for path in out.glob("*.jsonl")]
    return any(out.glob("*.parquet")) or max(journals, default=0) > 2


def workers_at_work(process, out):
    """The children of a command, once it has published its first file of theirs."""
    parent = psutil.Process(process.pid)
    for _ in range(600):
        children = parent.children(recursive=True)
        if len(children) >= 2 and at_work(out):
            return children
        time.sleep(0.05)
    raise AssertionError("no worker was started")


def alive(children):
    return [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGTERM", "Ctrl-C", "SIGKILL"],
)
@pytest.mark.parametrize("kind", ["encode", "prepare"])
def test_a_stopped_command_takes_its_workers_along(kind, number, status, corpus, tmp_path):
    out = tmp_path / "out"
    process = start(kind, corpus, out)
    children = workers_at_work(process, out)
    stopped = time.monotonic()
    os.kill(process.pid, number)
    told = process.communicate(timeout=60)[1].decode()  # returns only when no one holds the pipe
    assert process.returncode == status
    while alive(children) and time.monotonic() - stopped < 30:
        time.sleep(0.05)
    assert alive(children) == []
    assert time.monotonic() - stopped < 30  # 2 s on a quiet machine
    assert "Traceback" not in told
    if number != signal.SIGKILL:
        assert list(out.rglob("*.part")) == []


LAUNCH = """
import os, sys
from llasa_core.processes import run_processes
work = "import os, subprocess, sys, time; from llasa_core.processes import LAUNCHER, end_with;"
work += "end_with(int(os.environ[LAUNCHER])); print('up', flush=True); time.sleep(300)"
middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
run_processes(["-c", middle], os.environ)
"""


def test_processes_behind_a_launcher_end_with_the_command_that_started_it():
    process = subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    behind = psutil.Process(process.pid).children(recursive=True)
    assert len(behind) == 2
    process.kill()
    psutil.wait_procs(behind, timeout=10)
    assert alive(behind) == []
    process.communicate(timeout=10)
