"""Work on a Slurm cluster: submitit submits and requeues, squeue and {stem}.status.json give
the state of each job.

The job of each task is recorded in {stem}.slurm.json, written before the submission, so the same
command run again follows the jobs that are there and submits only what is missing. Neither sacct
nor submitit's result pickles are read: many clusters keep no accounting, and a job that was killed
leaves no result.
"""

import contextlib
import fcntl
import getpass
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError, needs_extra
from llasa_core.experiments.config import Experiment
from llasa_core.experiments.runner import RunState, follow, run_arguments
from llasa_core.experiments.slurm_job import NodeCommand, log_path
from llasa_core.experiments.slurm_settings import SlurmSettings
from llasa_core.files import read_object, write_json

POLL_SECONDS = 10.0  # between two calls of squeue

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}

FORMAT = "%j|%K|%i|%T|%M|%r"  # name, array index, id, state, time, reason


@dataclass(frozen=True)
class Task:
    """What one job does. The parents of the stems of tasks submitted together are one folder."""

    id: str
    command: NodeCommand

    def file(self, kind: str) -> Path:
        """{stem}.slurm.json or {stem}.status.json"""
        return Path(f"{self.command.stem}.{kind}.json")


@dataclass(frozen=True)
class Submission:
    """Tasks and the job of each: (job name, index in its array)."""

    name: str
    tasks: tuple[Task, ...]
    jobs: dict[str, tuple[str, int]]
    new: int  # tasks submitted just now; the others were in the queue

    @property
    def job_names(self) -> list[str]:
        return sorted({name for name, _ in self.jobs.values()})


def submit(name: str, tasks: Sequence[Task], settings: SlurmSettings) -> Submission:
    """Submit tasks not in the queue as one job array. InputError if Slurm refuses or is absent."""
    with needs_extra("--slurm", "slurm", "submitit"):
        import submitit
        from submitit.helpers import clean_env
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise InputError(
                f"--slurm: no `{program}` on this machine, expected a login node of a Slurm cluster"
            )
    folder = Path(tasks[0].command.stem).parent
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "slurm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two submitters would both find the queue empty
        jobs = {task.id: job for task in tasks if (job := read_job(task))}
        try:
            queue = squeue({job_name for job_name, _ in jobs.values()})
        except OSError as error:
            raise InputError(f"--slurm: {error}") from error
        missing = [task for task in tasks if jobs.get(task.id) not in queue]
        if missing:
            job_name = f"llasa-{name}-{secrets.token_hex(4)}"
            for index, task in enumerate(missing):
                task.file("status").unlink(missing_ok=True)
                for log in (
                    log_path(task.command.stem),
                    *folder.glob(f"{Path(task.command.stem).name}.node*.log"),
                ):
                    log.unlink(missing_ok=True)
                write_json(task.file("slurm"), {"job_name": job_name, "index": index})
                jobs[task.id] = (job_name, index)
            try:
                executor = submitit.SlurmExecutor(
                    folder / "submitit", max_num_timeout=settings.max_requeues
                )
                executor.update_parameters(**settings.parameters(job_name, tasks[0].command.folder))
                with clean_env() if "SLURM_JOB_ID" in os.environ else contextlib.nullcontext():
                    executor.submit_array([task.command for task in missing])
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                for task in missing:
                    task.file("slurm").unlink(missing_ok=True)
                raise InputError(f"--slurm: {' '.join(str(error).split())}") from error
    return Submission(name, tuple(tasks), jobs, len(missing))


def read_job(task: Task) -> tuple[str, int] | None:
    """The job that was last submitted for a task."""
    try:
        record = read_object(task.file("slurm"))
        return record["job_name"], record["index"]
    except (InputError, KeyError):
        return None


def squeue(job_names: set[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """(job name, index) -> id, state, seconds, reason of the user's jobs; OSError: no answer."""
    if not job_names:
        return {}
    command = [
        "squeue",
        "--noheader",
        "--array",
        f"--user={getpass.getuser()}",
        f"--name={','.join(job_names)}",
    ]
    try:
        answer = subprocess.run(
            [*command, f"--format={FORMAT}"], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise OSError("squeue does not answer") from error
    if answer.returncode:
        raise OSError(f"squeue: {' '.join(answer.stderr.split())}")
    jobs = {}
    for line in answer.stdout.splitlines():
        name, index, job_id, state, clock, reason = line.strip().split("|", 5)
        job = {"id": job_id, "state": state, "seconds": clock_seconds(clock), "reason": reason}
        jobs[name, int(index) if index.isdigit() else 0] = job
    return jobs


def clock_seconds(text: str) -> float:
    """Slurm's [days-][hours:]minutes:seconds; 0 for what is none (INVALID)."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+)*", text):
        return 0.0
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return float(int(days or 0) * 86_400 + seconds)


def follow_jobs(
    submission: Submission,
    states: Sequence[RunState],
    show: Callable[[], None] = lambda: None,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Bring the states of the tasks up to date until all have ended; `show` is called about once a
    second.

    Being interrupted does nothing to the jobs.
    """
    logs, unseen = {}, dict.fromkeys((task.id for task in submission.tasks), 0)
    asked, queue = float("-inf"), {}
    open_tasks = list(zip(submission.tasks, states, strict=True))
    with contextlib.ExitStack() as files:
        while open_tasks:
            fresh = False
            if time.monotonic() - asked >= poll_seconds:
                with contextlib.suppress(OSError):
                    # A busy controller says nothing about the jobs.
                    queue = squeue({submission.jobs[task.id][0] for task, _ in open_tasks})
                    fresh = True
                asked = time.monotonic()
            for task, state in list(open_tasks):
                job = queue.get(submission.jobs[task.id])
                if job and job["state"] in WAITING:
                    state.state, state.line = (
                        "waiting",
                        f"job {job['id']}: {job['state']} ({job['reason']})",
                    )
                    continue
                if state.state == "waiting" and job:
                    state.state, state.line = "running", ""
                state.seconds = job["seconds"] if job else state.seconds
                log = log_path(task.command.stem)
                if task.id not in logs and log.is_file():
                    logs[task.id] = files.enter_context(open(log, "rb"))
                if task.id in logs:
                    follow(state, logs[task.id])
                status = read_status(task)
                unseen[task.id] = 0 if job else unseen[task.id] + fresh
                if status and status["status"] and job:  # perhaps of the attempt before a requeue
                    continue
                if status is None and unseen[task.id] < 3:
                    # Files and queue may lag behind each other
                    continue
                open_tasks.remove((task, state))
                if status and status["status"] == 0:
                    state.state, state.line = "done", ""
                else:
                    state.state, state.line = "failed", failure(task, status, state.line)
            show()
            if open_tasks:
                time.sleep(min(1.0, poll_seconds))


def read_status(task: Task) -> dict[str, Any] | None:
    try:
        return read_object(task.file("status"))
    except InputError:
        return None


def failure(task: Task, status: dict[str, Any] | None, last: str) -> str:
    """One line: what is known of a job that did not come to its end, and its log."""
    log = log_path(task.command.stem, status["node"] if status else 0)
    if status is None:
        return f"the job is gone (cancelled, killed or out of time): {last} (log: {log})"
    return f"status {status['status']}: {last} (log: {log})"


def run_experiment(
    experiment: Experiment,
    settings: SlurmSettings,
    only: str = "",
    force: bool = False,
    submitted: Callable[[Submission], None] = lambda submission: None,
    show: Callable[[list[RunState]], None] = lambda states: None,
    poll_seconds: float = POLL_SECONDS,
) -> list[RunState]:
    """`experiments.run_experiment` with a job for each run; runs whose jobs are in the queue are
    followed.

    `submitted` is called once, when the jobs are there. InputError as there, and for settings that
    do not fit.
    """
    if settings.nodes > 1:
        raise InputError(
            f"--slurm: `nodes` is {settings.nodes}, expected 1: a run is a notebook on one node"
        )
    again = force or experiment.smoke
    chosen = experiment.chosen(only)
    states = [
        RunState(run, "skipped" if experiment.is_done(run) and not again else "waiting")
        for run in chosen
    ]
    waiting = [state for state in states if state.state == "waiting"]
    if not waiting:
        return states
    tasks = []
    for run in (state.run for state in waiting):
        # A requeued run resumes.
        commands = [run_arguments(experiment, run, anew) for anew in (again, False)]
        command = NodeCommand(
            *map(tuple, commands), str(experiment.root), str(experiment.root / run.work)
        )
        tasks.append(Task(run.id, replace(command, requeue=settings.requeue)))
    submission = submit(experiment.name, tasks, settings)
    submitted(submission)
    follow_jobs(submission, waiting, lambda: show(states), poll_seconds)
    return states
