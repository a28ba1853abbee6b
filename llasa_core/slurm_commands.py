"""run, train and encode with --slurm: submit, show the table until all jobs have ended, return the exit status.

Being interrupted does nothing to the jobs; the same command follows them again.
"""

import sys
from argparse import Namespace
from pathlib import Path

from llasa_core import slurm
from llasa_core.commands import print_counts, read_json
from llasa_core.errors import InputError
from llasa_core.experiments import Experiment, RunState
from llasa_core.run_table import RunTable
from llasa_core.slurm_settings import SlurmSettings
from llasa_core.train_config import TrainConfig


def run(options: Namespace, experiment: Experiment, table: RunTable) -> list[RunState]:
    """The states of the runs when all their jobs have ended."""
    if options.jobs > 1:
        raise InputError("--jobs belongs to runs on this machine; with --slurm the settings have `parallel_jobs`")
    return slurm.run_experiment(
        experiment, read_settings(options), options.only, options.force, announce_jobs, show=table
    )


def train(options: Namespace, config: TrainConfig) -> int:
    """Train in a Slurm job and print the final metrics; status 1 if it failed."""
    settings = read_settings(options)
    status = finish("train", [slurm.train_task(config, settings)], settings)
    if not status:
        print_counts(read_json(Path(config.output_dir) / "llasa.json")["metrics"])
    return status


def encode(options: Namespace) -> int:
    """Encode with a job for each shard and print the path of meta.json; status 1 if one failed."""
    arguments, settings = list(options.arguments), read_settings(options)
    place = next(i for i, text in enumerate(arguments) if text[:4] == "--sl")  # may be shortened, or hold a "="
    del arguments[place : place + (2 if options.slurm and "=" not in arguments[place] else 1)]
    out = Path(options.out)
    tasks = slurm.shard_tasks(arguments, options.shards, out.with_name(f"{out.name}.slurm"), settings)
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
        f"{submission.new} submitted, {found} found in the queue, as {names}. Ctrl-C leaves the jobs running, the same "
        f"command follows them again, `scancel --name={names}` ends them.",
        file=sys.stderr,
    )
