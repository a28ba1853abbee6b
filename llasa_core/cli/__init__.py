"""The `llasa` command: arguments in, exit status out. Each module here holds its commands' options
and handlers.

Exit status: 0 done, 1 done and the answer is no (a difference, a failed run), 2 bad input with one
line on standard error, 130 interrupted. Handlers import what they need when they run: `--help`
answers at once, a command pays only for what it uses.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from llasa_core.cli import (
    app,
    data,
    evaluation,
    experiments,
    search,
    serve,
    share,
    synthesis,
    train,
)
from llasa_core.device import check_folder, choose_device
from llasa_core.errors import guarded
from llasa_core.files import one_writer

COMMANDS = (  # in the order of --help
    train.add_check,
    data.add_prepare,
    data.add_encode,
    data.add_import_memmap,
    data.add_export_memmap,
    data.add_data,
    train.add_train,
    train.add_adapt_codec,
    synthesis.add_synthesize,
    synthesis.add_learn_guards,
    serve.add_serve,
    search.add_search,
    synthesis.add_transcribe,
    evaluation.add_evaluate,
    evaluation.add_protocol,
    evaluation.add_compare,
    evaluation.add_rating_page,
    evaluation.add_rating_scores,
    share.add_push,
    experiments.add_run,
    app.add_app,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. `argv` without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser().parse_args(arguments)
        options.arguments = arguments
    except SystemExit as ending:  # argparse has printed help or the error
        return int(ending.code or 0)

    def handle() -> int | None:
        out = check_options(options)
        alone = out is not None and getattr(options, "shards", 1) == 1
        with one_writer(out) if alone else contextlib.nullcontext():
            return options.handler(options)

    return guarded(handle)


def check_options(options: argparse.Namespace) -> Path | None:
    """The folder OUT, if there is one; InputError where it cannot be one or the device is absent,
    before anything is loaded.
    """
    if getattr(options, "device", None) is not None:
        choose_device(options.device, here=getattr(options, "slurm", None) is None)
    out = getattr(options, "out", None)
    if (
        out is not None
        and not getattr(options, "stream", False)
        and not synthesis.speech_file(options)
    ):
        return check_folder(out)
    return None


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="llasa", description="Llama-based speech synthesis, from corpus to scores."
    )
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser
