"""The command `llasa app`."""

import sys
from argparse import ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path

from llasa_core.cli.common import Commands, add_command, count, require
from llasa_core.cli.search import wanted_voices
from llasa_core.errors import InputError, needs_extra

LOCAL = ("127.0.0.1", "localhost", "::1")


def port_number(text: str) -> int:
    """A TCP port, 0 for a free one."""
    if not text.isdigit() or int(text) > 65_535:
        raise ArgumentTypeError(f"{text!r}, expected a port from 0 to 65535")
    return int(text)


def add_app(commands: Commands) -> None:
    """The options of `llasa app`."""
    add = add_command(
        commands,
        "app",
        "type and listen in a browser: speak, search, compare, look at results",
        "llasa app --model artifacts/pretrain/model --model results/checkpoints/mini-llasa",
        app,
    )
    add.add_argument(
        "--model",
        action="append",
        metavar="CHECKPOINT",
        help="checkpoint folder or hub id; several times to compare them (default: the tracked)",
    )
    add.add_argument(
        "--codec", help="codec name or folder (default: the one that each checkpoint names)"
    )
    add.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    add.add_argument("--port", type=port_number, default=7860, help="0: a free one (default 7860)")
    add.add_argument(
        "--host",
        default=LOCAL[0],
        help="address to listen at (default 127.0.0.1: this machine alone)",
    )
    add.add_argument("--open", action="store_true", help="open the page in the browser")
    add.add_argument(
        "--results", metavar="FOLDER", help="results to browse (default: the repository's)"
    )
    add.add_argument("--asr", metavar="MODEL", help="recogniser of recordings and of a search")
    add.add_argument(
        "--voices",
        metavar="MANIFEST",
        help="recordings of the speakers, with which a search compares (default: only a visitor's)",
    )
    add.add_argument("--characters", type=count, default=1000, help="longest text (default 1000)")
    add.add_argument("--megabytes", type=count, default=20, help="largest upload (default 20)")
    add.add_argument("--waiting", type=count, default=8, help="requests that may wait (default 8)")


def app(options: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    with needs_extra("llasa app", "app", "gradio"):
        import gradio  # noqa: F401
    from llasa_core.app.server import serve
    from llasa_core.app.studio import Limits, Studio, named, tracked_checkpoints
    from llasa_core.experiments.config import repository_root

    root = None
    if options.model is None or options.results is None:
        root = repository_root()
    models = options.model or list(tracked_checkpoints(root))
    if not models:
        raise InputError(f"{root}: tracks no checkpoint, expected --model")
    for path in (options.results, options.voices):
        if path is not None:
            require(path)
    limits = Limits(options.characters, megabytes=options.megabytes, waiting=options.waiting)
    verifiers = {"words": options.asr} if options.asr else {}
    wanted = partial(wanted_voices, options.voices) if options.voices else None
    studio = Studio(named(models), options.codec, options.device, limits, verifiers, wanted)
    studio.synthesizer(next(iter(studio.models)))  # a wrong folder is told before there is a page
    if options.host not in LOCAL:
        print(
            f"llasa: {options.host}: everyone who reaches this machine can use the app",
            file=sys.stderr,
        )
    results = Path(options.results) if options.results is not None else root / "results"
    serve(studio, results, options.host, options.port or None, options.open)
