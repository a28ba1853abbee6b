"""Experiment files: one YAML -> the table of its runs -> notebooks executed in processes of their own -> results.

`results/<experiment>/<run>/result.json` is what "done" means: the runner writes it last, by rename, so a study that was
killed at any moment continues where it stood. Papermill only warns of unknown parameters and wrong types, and lets
SystemExit(0) pass: everything is checked here before the first run starts, and a run without `record` has failed.
"""

import hashlib
import itertools
import json
import math
import numbers
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.manifest import publish
from llasa_core.parameters import checked_value, notebook_parameters, read_yaml

INJECTED = ("run_dir", "artifacts_dir")  # parameters that the runner sets
KEYS = {"name", "description", "notebook", "base", "grid", "runs", "smoke"}


@dataclass(frozen=True)
class Run:
    """One execution of a notebook. Paths are relative to the repository root."""

    id: str  # varied values + 8 hex digits of sha256 over all parameters and the notebook's path
    params: dict[str, Any]  # every parameter, defaults included
    run_dir: str  # small results
    artifacts_dir: str  # large results, git-ignored
    work: str  # stem of the log, the lock and the notebook in progress
    injected: tuple[str, ...]  # those of INJECTED that the notebook declares


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    name: str
    notebook: str  # relative to root
    root: Path
    smoke: bool
    runs: tuple[Run, ...]

    def is_done(self, run: Run) -> bool:
        """Whether the run's result.json exists."""
        return (self.root / run.run_dir / "result.json").is_file()

    def chosen(self, only: str = "") -> list[Run]:
        """The runs whose id contains `only`; InputError if there is none."""
        runs = [run for run in self.runs if only in run.id]
        if not runs:
            raise InputError(f"{self.name}: no run id contains {only!r}, there are {len(self.runs)} runs")
        return runs


@dataclass
class RunState:
    """Where a run stands: `state` is waiting, running, done, skipped, failed."""

    run: Run
    state: str = "waiting"
    seconds: float = 0.0
    cell: str = ""  # "3/16"
    line: str = ""  # last line of output, or the error


def repository_root(start: str | Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: the working folder) that holds pyproject.toml.

    Without `start`, a working folder outside any repository falls back to the one this package lies in.
    """
    folder = Path(start or Path.cwd()).resolve()
    candidates = [folder, *folder.parents] + ([] if start else [Path(__file__).resolve().parents[1]])
    for candidate in candidates:
        if (candidate / "pyproject.toml").is_file():
            return candidate
    raise InputError(f"{folder}: no repository here, expected a pyproject.toml in this folder or above it")


def load_experiment(path: str | Path, smoke: bool = False) -> Experiment:
    """Read and check an experiment file (DESIGN.md section 7) and list its runs.

    Besides base, grid and smoke a file may hold `runs: {name: {parameter: value}}`, which multiplies with the grid.
    Values of `smoke` replace those of base, runs and grid; runs that become equal are one, written below
    artifacts/smoke. Raises InputError naming the file, the key and what was expected.
    """
    path = Path(path)
    settings = read_yaml(path)
    unknown = set(settings) - KEYS
    if unknown:
        raise InputError(f"{path}: unknown key `{min(map(str, unknown))}`, expected {', '.join(sorted(KEYS))}")
    for key in ("name", "notebook"):
        if not isinstance(settings.get(key), str):
            raise InputError(f"{path}: `{key}` is {settings.get(key)!r}, expected text")
    if settings["name"] != path.stem:
        raise InputError(f"{path}: `name` is {settings['name']!r}, expected the file's name {path.stem!r}")
    root = repository_root(path.resolve().parent)
    notebook = settings["notebook"]
    defaults = notebook_parameters(root / notebook)
    if "run_dir" not in defaults:
        raise InputError(f"{notebook}: parameter `run_dir` is missing, expected run_dir = 'artifacts/scratch/...'")

    def section(key: str, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise InputError(f"{path}: `{key}` is {values!r}, expected a mapping of parameters")
        return values

    def checked(key: str, name: Any, value: Any) -> Any:
        if name in INJECTED:
            raise InputError(f"{path}: {key}: `{name}` is set by the runner")
        if name not in defaults:
            raise InputError(f"{path}: {key}: unknown parameter `{name}`, {notebook} has {', '.join(sorted(defaults))}")
        return checked_value(f"{path}: {key}: `{name}`", value, defaults[name])

    base = {name: checked("base", name, value) for name, value in section("base", settings.get("base", {})).items()}
    small = {name: checked("smoke", name, value) for name, value in section("smoke", settings.get("smoke", {})).items()}
    grid = section("grid", settings.get("grid", {}))
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: `{name}` is {values!r}, expected a list of values")
    grid = {name: [checked("grid", name, value) for value in values] for name, values in grid.items()}
    named = {
        str(label): {name: checked(f"runs: {label}", name, value) for name, value in section(label, values).items()}
        for label, values in section("runs", settings.get("runs", {})).items()
    } or {"": {}}

    runs: dict[str, Run] = {}
    for (label, fixed), values in itertools.product(named.items(), itertools.product(*grid.values())):
        varied = dict(zip(grid, values, strict=True))
        overrides = small if smoke else {}
        params = {name: value for name, value in defaults.items() if name not in INJECTED}
        params |= base | fixed | varied | overrides
        spoken = [label] if label else []
        spoken += [short_value(name, params[name]) for name in varied if name not in overrides]
        run_id = "-".join([slug("-".join(spoken))[:48].strip("-") or "run", parameter_hash(notebook, params)])
        run_dir = f"artifacts/smoke/{path.stem}/{run_id}" if smoke else f"results/{path.stem}/{run_id}"
        runs[parameter_hash(notebook, params)] = Run(
            id=run_id,
            params=params,
            run_dir=run_dir,
            artifacts_dir=f"{run_dir}/artifacts" if smoke else f"artifacts/{path.stem}/{run_id}",
            work=f"artifacts/runs/{'smoke-' if smoke else ''}{path.stem}/{run_id}",
            injected=tuple(name for name in INJECTED if name in defaults),
        )
    return Experiment(path.stem, notebook, root, smoke, tuple(runs.values()))


def parameter_hash(notebook: str, params: dict[str, Any]) -> str:
    """8 hex digits of sha256 over the canonical JSON of the notebook's path and all parameters."""
    text = json.dumps({"notebook": notebook, "params": params}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def short_value(name: str, value: Any) -> str:
    """A varied value in a run id: text alone, a path by its last part, anything else after its name."""
    return slug(value.rstrip("/").rsplit("/", 1)[-1]) if isinstance(value, str) else f"{name}{slug(str(value))}"


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_.")


def run_experiment(
    experiment: Experiment,
    only: str = "",
    force: bool = False,
    jobs: int = 1,
    show: Callable[[list[RunState]], None] = lambda states: None,
) -> list[RunState]:
    """Execute the runs whose id contains `only` and that are not done, `jobs` at a time; returns where each stands.

    `force` (and a smoke experiment) runs a finished run again, from nothing. `show` is called a few times a second.
    Each run gets a process of its own with its share of the CPU threads, and ends with the caller.
    """
    chosen = experiment.chosen(only)
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}, expected at least 1")
    again = force or experiment.smoke
    states = [RunState(run, "skipped" if experiment.is_done(run) and not again else "waiting") for run in chosen]
    waiting = [state for state in states if state.state == "waiting"]
    running: list[tuple[RunState, subprocess.Popen, Any, float]] = []
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
                    finish(experiment, state, process, log)
            show(states)
            if running:
                time.sleep(0.3)
    finally:
        for _, process, log, _ in running:
            process.stdin.close()  # tells the run to end with all its children
            process.wait()
            log.close()
    return states


def start_run(experiment: Experiment, run: Run, again: bool, jobs: int) -> tuple[subprocess.Popen, Any]:
    """Start `python -m llasa_core.notebook_run` for one run; returns the process and its log, open for reading."""
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
    return ["-m", "llasa_core.notebook_run", json.dumps(order)]


def thread_environment(jobs: int = 1) -> dict[str, str]:
    """Variables that give a process its share of the CPU threads of this machine, or of this Slurm job on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    threads = max(1, (min(cores, int(allotted)) if allotted.isdigit() else cores) // jobs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other on a shared machine
    return {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def follow(state: RunState, log: Any) -> None:
    """Update the cell and the last line from what the log gained."""
    text = log.read().decode(errors="replace")
    for piece in re.split(r"[\r\n]+", text):
        mark = re.fullmatch(r"\[cell (\d+/\d+)\].*", piece)
        if mark:
            state.cell = mark[1]
        elif piece.strip():
            state.line = piece.strip()[:160]


def finish(experiment: Experiment, state: RunState, process: subprocess.Popen, log: Any) -> None:
    """Set the final state of a run whose process ended; a failure is one line with the run and its log."""
    message = process.stdout.read().decode(errors="replace").strip()
    for stream in (process.stdin, process.stdout, log):
        stream.close()
    if process.returncode == 0 and experiment.is_done(state.run):
        state.state, state.line = "done", ""
    else:
        reason = message or f"process ended with status {process.returncode}: {state.line}"
        state.state = "failed"
        state.line = f"{reason} (log: {state.run.work}.log)"


def record(run_dir: str | Path, metrics: dict[str, Any], artifacts: dict[str, str | Path] | None = None) -> Path:
    """Write `run_dir`/metrics.json, the last act of a notebook; returns its path.

    `metrics`: name -> finite number. `artifacts`: name -> file or folder inside the repository, kept with its sha256.
    Raises InputError for anything else, and then writes nothing.
    """
    run_dir = Path(run_dir)
    root = repository_root()
    values: dict[str, int | float] = {}
    for name, value in metrics.items():
        number = value.item() if hasattr(value, "item") and getattr(value, "size", 1) in (1, ()) else value
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise InputError(f"{run_dir}: metric {name!r} is {value!r}, expected a number")
        if not math.isfinite(number):
            raise InputError(f"{run_dir}: metric `{name}` is {value}, expected a finite number")
        values[name] = int(number) if isinstance(number, numbers.Integral) else float(number)
    kept = {}
    for name, path in (artifacts or {}).items():
        full = (root / path).resolve()
        if not full.exists():
            raise InputError(f"{run_dir}: artifact `{name}`: {path} does not exist")
        if not full.is_relative_to(root):
            raise InputError(f"{run_dir}: artifact `{name}`: {path} lies outside the repository")
        kept[name] = {"path": full.relative_to(root).as_posix(), "sha256": path_sha256(full)}
    run_dir.mkdir(parents=True, exist_ok=True)
    return write_json(run_dir / "metrics.json", {"metrics": values, "artifacts": kept})


def path_sha256(path: Path) -> str:
    """sha256 of a file; of a folder, over the sorted lines `name sha256` of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {path_sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> Path:
    """Sorted keys, no NaN, by temporary file and rename."""
    publish(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return path
