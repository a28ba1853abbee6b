"""The command `llasa run`."""

import sys
from argparse import Namespace

from llasa_core.cli.common import Commands, add_command, add_slurm_option, count


def add_run(commands: Commands) -> None:
    """The options of `llasa run`."""
    add = add_command(
        commands,
        "run",
        "execute the runs of an experiment file that have no result yet",
        "llasa run experiments/mini_llasa.yaml --dry-run",
        run,
    )
    add.add_argument("experiment", metavar="EXPERIMENT", help="experiments/NAME.yaml")
    add.add_argument("--dry-run", action="store_true", help="print the table of runs and stop")
    add.add_argument(
        "--smoke",
        action="store_true",
        help="use the small smoke values, write below artifacts/smoke",
    )
    add.add_argument("--only", default="", metavar="TEXT", help="only runs whose id contains TEXT")
    add.add_argument("--force", action="store_true", help="run finished runs again, from nothing")
    add.add_argument(
        "--jobs",
        type=count,
        default=1,
        help="runs at a time; they share the CPU threads (default 1)",
    )
    add_slurm_option(
        add, "a Slurm job for each run; the same command again follows the jobs that are there"
    )


def run(options: Namespace) -> int:
    """Show the table of runs; status 1 if one failed."""
    from llasa_core.experiments.config import load_experiment
    from llasa_core.experiments.progress import RunTable, plan
    from llasa_core.experiments.runner import run_experiment

    experiment = load_experiment(options.experiment, smoke=options.smoke)
    if options.dry_run:
        print(plan(experiment, options.only))
        return 0
    table = RunTable(experiment)
    if options.slurm is not None:
        from llasa_core.cli import slurm

        states = slurm.run(options, experiment, table)
    else:
        states = run_experiment(experiment, options.only, options.force, options.jobs, show=table)
    failed = [state for state in states if state.state == "failed"]
    for state in states:
        if state.state in ("done", "skipped"):
            print(f"{state.run.run_dir}/result.json")
    for state in failed:
        print(f"llasa: {experiment.name}/{state.run.id}: {state.line}", file=sys.stderr)
    return 1 if failed else 0
