"""The command `llasa run`."""

import sys
from argparse import Namespace


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
