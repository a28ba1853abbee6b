"""What the commands share: argument types, the subcommand parser, bars and counts.

Results go to standard output, progress and messages to standard error.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from llasa_core.errors import InputError

Commands = argparse._SubParsersAction  # what `add_subparsers` returns
Handler = Callable[[argparse.Namespace], int | None]  # returns the exit status (None: 0)


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    example: str,
    handler: Handler | None = None,
    more: str = "",
) -> argparse.ArgumentParser:
    """The parser of a new subcommand that `handler` runs; `more` ends its help."""
    example = example.replace("\n", "\n" + " " * len("example: "))
    added = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}{more}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(handler=handler)
    return added


def add_slurm_option(parser: argparse.ArgumentParser, summary: str) -> None:
    """--slurm [SETTINGS.yaml]: None without it, "" for the cluster's defaults."""
    parser.add_argument("--slurm", nargs="?", const="", metavar="SETTINGS.yaml", help=summary)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How codes are drawn, as whatever speaks with a language model offers it."""
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=whole, default=50, help="0 takes all codes (default 50)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="smallest set of that probability (default 1)"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=positive,
        default=1.0,
        help="above 1: codes that were there are less likely (default 1; public LoRA example 1.2)",
    )
    parser.add_argument(
        "--max-seconds", type=float, default=40.0, help="no utterance is longer (default 40)"
    )
    parser.add_argument(
        "--context",
        type=count,
        metavar="TOKENS",
        help="prompt and speech together (default: that of the training; 2048 for released models)",
    )


def whole(text: str) -> int:
    """An integer of at least 0, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number")
    return int(text)


def count(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
    return value


def require(path: str) -> None:
    """InputError for a path that does not exist."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder")


def print_counts(values: dict) -> None:
    """A dict as JSON on standard output."""
    print(json.dumps(values, indent=1, sort_keys=True))


def progress_bar(total: int | None, unit: str):
    """A bar on standard error; its `update` takes what was just finished."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, file=sys.stderr)
