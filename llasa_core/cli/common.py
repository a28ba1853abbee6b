"""What each subcommand of `llasa` does with its parsed options; returns the exit status (None: 0).

Imports stand inside the handlers: a command pays only for what it uses. Results go to standard
output, progress and messages to standard error.
"""

import argparse
import json
import sys
from pathlib import Path

from llasa_core.errors import InputError


def add_slurm_option(parser: argparse.ArgumentParser, summary: str) -> None:
    """--slurm [SETTINGS.yaml]: None without it, "" for the cluster's defaults."""
    parser.add_argument("--slurm", nargs="?", const="", metavar="SETTINGS.yaml", help=summary)


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


def read_json(path: Path) -> dict:
    """A JSON object; InputError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def print_counts(values: dict) -> None:
    """A dict as JSON on standard output."""
    print(json.dumps(values, indent=1, sort_keys=True))


def progress_bar(total: int | None, unit: str):
    """A bar on standard error; its `update` takes what was just finished."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, file=sys.stderr)
