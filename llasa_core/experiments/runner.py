"""Runs of an experiment in processes of their own; each leaves result.json."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llasa_core.errors import InputError
from llasa_core.experiments.config import Experiment, Run
from llasa_core.experiments.notebook import DISK_FULL


@dataclass
class RunState:
    """The state of a run: `state` is waiting, running, done, skipped, failed."""

    run: Run
    state: str = "waiting"
    seconds: float = 0.0
    cell: str = ""  # "3/16"
    line: str = ""  # last line of output, or the error


def run_experiment(
    experiment: Experiment,
    only: str = "",
    force: bool = False,
    jobs: int = 1,
    show: Callable[[list[RunState]], None] = lambda states: None,
) -> list[RunState]:
    """Execute the runs whose id contains `only` and that are not done, `jobs` at a time; returns
    their states.

    `force` (and a smoke experiment) runs a finished run again, from nothing. `show` is called a few
    times a second. Each run gets a separate process with its share of the CPU threads, and ends
    with the caller. InputError where a run finds the disk full: the others would too.
    """
    chosen = experiment.chosen(only)
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}, expected at least 1")
    again = force or experiment.smoke
    states = [
        RunState(run, "skipped" if experiment.is_done(run) and not again else "waiting")
        for run in chosen
    ]
    waiting = [state for state in states if state.state == "waiting"]
    running: list[tuple[RunState, subprocess.Popen, Any, float]] = []
    full = ""  # what a run said that found the disk full
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                state = waiting.pop(0)
                process, log = start_run(experiment, state.run, again, jobs)
                state.state = "running"
                running.append((state, process, log, time.monotonic()))
            for entry in list(running):
                state, process, log, started = entry
                state.seconds = time.monotonic() - started
                ended = process.poll() is not None
                follow(state, log)
                if ended:
                    running.remove(entry)
                    finish(state, process, log)
                    full = full or (state.line if process.returncode == DISK_FULL else "")
            show(states)
            if full:
                raise InputError(full)
            if running:
                time.sleep(0.3)
    finally:
        for _, process, log, _ in running:
            process.stdin.close()  # tells the run to end with all its children
            process.wait()
            log.close()
    return states


def start_run(
    experiment: Experiment, run: Run, again: bool, jobs: int
) -> tuple[subprocess.Popen, Any]:
    """Start `python -m llasa_core.experiments.notebook` for one run; its process and open log."""
    log_path = experiment.root / f"{run.work}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *run_arguments(experiment, run, again)],
            cwd=experiment.root,
            env=os.environ | thread_environment(jobs),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the runs in order
        )
    return process, open(log_path, "rb")


def run_arguments(experiment: Experiment, run: Run, again: bool) -> list[str]:
    """The interpreter's arguments that execute one run; `again`: from nothing."""
    order = {
        "experiment": experiment.name,
        "notebook": experiment.notebook,
        "run": run.id,
        "params": run.params,
        "injected": {name: getattr(run, name) for name in run.injected},
        "run_dir": run.run_dir,
        "artifacts_dir": run.artifacts_dir,
        "work": run.work,
        "again": again,
    }
    return ["-m", "llasa_core.experiments.notebook", json.dumps(order)]


def thread_environment(jobs: int = 1) -> dict[str, str]:
    """Variables that give a process its share of the CPU threads of this machine, or of this Slurm
    job on it, and the same arithmetic on every x86 processor.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    threads = max(1, (min(cores, int(allotted)) if allotted.isdigit() else cores) // jobs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    # Spinning threads starve each other on a shared machine.
    policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    found = {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if platform.machine() in ("x86_64", "AMD64"):
        # numpy's kernels by processor differ in the last bits, and a fit carries them into results.
        found["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", "Haswell")
    return found


def follow(state: RunState, log: Any) -> None:
    """Update the cell and the last line from what the log gained."""
    text = log.read().decode(errors="replace")
    for piece in re.split(r"[\r\n]+", text):
        mark = re.fullmatch(r"\[cell (\d+/\d+)\].*", piece)
        if mark:
            state.cell = mark[1]
        elif piece.strip():
            state.line = piece.strip()[:160]


def finish(state: RunState, process: subprocess.Popen, log: Any) -> None:
    """Set the final state of a run whose process ended; a failure is one line naming its log."""
    message = process.stdout.read().decode(errors="replace").strip()
    for stream in (process.stdin, process.stdout, log):
        stream.close()
    if process.returncode == 0:
        state.state, state.line = "done", ""
    else:
        reason = message or f"process ended with status {process.returncode}: {state.line}"
        state.state = "failed"
        state.line = f"{reason} (log: {state.run.work}.log)"
