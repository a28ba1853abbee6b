"""run, train and encode with --slurm: submit, show the table until all jobs have ended, return the
exit status.

Being interrupted does nothing to the jobs; the same command follows them again.
"""

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llasa_core.cli.common import print_counts
from llasa_core.errors import InputError
from llasa_core.experiments import slurm
from llasa_core.experiments.config import Experiment
from llasa_core.experiments.progress import RunTable
from llasa_core.experiments.runner import RunState
from llasa_core.experiments.slurm import Task
from llasa_core.experiments.slurm_job import NodeCommand
from llasa_core.experiments.slurm_settings import SlurmSettings
from llasa_core.files import read_object, write_json
from llasa_core.training.config import TrainConfig
from llasa_core.training.resume import SETTINGS, refuse_finished


def train_task(config: TrainConfig, settings: SlurmSettings) -> Task:
    """The task that trains as `config` says and, requeued, resumes from the newest whole
    checkpoint.

    Its settings go to output_dir/slurm/train.json. InputError where a requeued job could not
    resume, or would resume from checkpoints of other settings.
    """
    config.rows(settings.nodes * settings.processes)
    refuse_finished(config)
    output = Path(config.output_dir)
    if settings.requeue and not config.save_steps:
        raise InputError(
            "config: `save_steps` is 0, expected a number of steps: a requeued job would start from"
            " nothing (or `requeue: false` in the Slurm settings)"
        )
    values = {
        name: value
        for name, value in asdict(replace(config, resume=True)).items()
        if value is not None
    }
    values.pop("notes")
    path = output.absolute() / "slurm" / "train.json"
    earlier = None
    with contextlib.suppress(InputError):
        earlier = read_object(path)
    if (
        not config.resume
        and earlier != json.loads(json.dumps(values))
        and list(output.glob("checkpoint-*"))
    ):
        raise InputError(
            f"{output}: a requeued job would resume from its checkpoints of other settings;"
            " expected another `output_dir`, or `resume: true`"
        )
    if not config.resume and earlier != json.loads(json.dumps(values)):
        # A job always resumes, and this run starts over.
        (output / SETTINGS).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    command = ("-m", "llasa_core.train", str(path))
    stem = str(path.parent / "train")
    return Task(
        "train",
        NodeCommand(command, command, os.getcwd(), stem, settings.processes, settings.requeue),
    )


def shard_tasks(
    arguments: Sequence[str], shards: int, folder: str | Path, settings: SlurmSettings
) -> list[Task]:
    """One task a shard of an `llasa` command: its arguments without --slurm, with --shard."""
    if settings.nodes * settings.processes > 1:
        raise InputError(
            "--slurm: expected one node and one process for a shard; raise --shards instead"
        )
    tasks = []
    for shard in range(shards):
        command = ("-m", "llasa_core.cli", *arguments, "--shard", str(shard))
        stem = str(Path(folder).absolute() / f"shard-{shard}")
        tasks.append(
            Task(
                f"shard-{shard}",
                NodeCommand(command, command, os.getcwd(), stem, 1, settings.requeue),
            )
        )
    return tasks


def run(options: Namespace, experiment: Experiment, table: RunTable) -> list[RunState]:
    """The states of the runs when all their jobs have ended."""
    if options.jobs > 1:
        raise InputError(
            "--jobs belongs to runs on this machine; with --slurm the settings have `parallel_jobs`"
        )
    return slurm.run_experiment(
        experiment, read_settings(options), options.only, options.force, announce_jobs, show=table
    )


def train(options: Namespace, config: TrainConfig) -> int:
    """Train in a Slurm job and print the final metrics; status 1 if it failed."""
    settings = read_settings(options)
    status = finish("train", [train_task(config, settings)], settings)
    if not status:
        print_counts(read_object(Path(config.output_dir) / "llasa.json")["metrics"])
    return status


def encode(options: Namespace) -> int:
    """Encode with a job for each shard and print the path of meta.json; status 1 if one failed."""
    arguments, settings = list(options.arguments), read_settings(options)
    # The option may be abbreviated, or contain a "=".
    place = next(i for i, text in enumerate(arguments) if text[:4] == "--sl")
    del arguments[place : place + (2 if options.slurm and "=" not in arguments[place] else 1)]
    out = Path(options.out)
    tasks = shard_tasks(arguments, options.shards, out.with_name(f"{out.name}.slurm"), settings)
    status = finish("encode", tasks, settings)
    if not status:
        print(out / "meta.json")
    return status


def finish(name: str, tasks: list[slurm.Task], settings: SlurmSettings) -> int:
    """Submit, show the table until all jobs have ended; status 1 if one failed."""
    submission = slurm.submit(name, tasks, settings)
    announce_jobs(submission)
    states, table = [RunState(task) for task in tasks], RunTable(submission)
    slurm.follow_jobs(submission, states, lambda: table(states))
    failed = [state for state in states if state.state == "failed"]
    for state in failed:
        print(f"llasa: {name}/{state.run.id}: {state.line}", file=sys.stderr)
    return 1 if failed else 0


def read_settings(options: Namespace) -> SlurmSettings:
    """The file after --slurm, or the cluster's defaults."""
    return SlurmSettings.from_yaml(options.slurm) if options.slurm else SlurmSettings()


def announce_jobs(submission: slurm.Submission) -> None:
    """Say what was submitted, and how to leave the jobs alone or end them."""
    names = ",".join(submission.job_names)
    found = len(submission.tasks) - submission.new
    print(
        f"{submission.new} submitted, {found} found in the queue, as {names}. Ctrl-C leaves the"
        f" jobs running, the same command follows them again, `scancel --name={names}` ends them.",
        file=sys.stderr,
    )
