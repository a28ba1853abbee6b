"""The commands `llasa train` and `llasa check`."""

import sys
from argparse import Namespace

from llasa_core.cli.common import print_counts, read_json


def check(options: Namespace) -> int:
    """Print every difference from the released layout; status 1 if there is one."""
    from llasa_core.checkpoint import checkpoint_file
    from llasa_core.tokenizer import check_layout, load_tokenizer

    tokenizer = load_tokenizer(options.checkpoint)
    config_file = checkpoint_file(options.checkpoint, "config.json")
    config = None if config_file is None else read_json(config_file)
    differences = check_layout(tokenizer, config)
    for difference in differences:
        print(difference)
    if not differences:
        print(f"{options.checkpoint}: the released layout, {len(tokenizer)} ids")
    return 1 if differences else 0


def train(options: Namespace) -> int | None:
    """Print the final metrics."""
    from llasa_core.training.config import TrainConfig

    config = TrainConfig.from_json(options.config)
    for note in config.notes:
        print(note, file=sys.stderr)
    if options.slurm is not None:
        from llasa_core.cli import slurm

        return slurm.train(options, config)
    import contextlib

    from llasa_core.training.train import train as run_training

    with contextlib.redirect_stdout(
        sys.stderr
    ):  # the libraries' own lines; standard output is the metrics alone
        metrics = run_training(config, progress=True)
    print_counts(metrics)
