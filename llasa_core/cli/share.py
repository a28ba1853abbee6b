"""The command `llasa push`: a checkpoint, its codec and its model card to the hub."""

import sys
from argparse import Namespace

from llasa_core.cli.common import Commands, add_command


def add_push(commands: Commands) -> None:
    """The options of `llasa push`."""
    add = add_command(
        commands,
        "push",
        "put a checkpoint with its codec, guards and model card on the Hugging Face hub",
        "llasa push out/lj USER/lj-llasa --scores scores",
        push,
    )
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that `llasa train` wrote")
    add.add_argument("repo", metavar="REPO", help="USER/NAME, made if it is not there")
    add.add_argument(
        "--codec", help="the mini codec to send along (default: the one it was trained with)"
    )
    add.add_argument(
        "--scores",
        metavar="SUMMARY",
        help="summary.json of `llasa evaluate`, or its folder: scores for the model card",
    )
    add.add_argument("--license", help="of the weights, as the hub names it (llama3.2, cc-by-4.0)")
    add.add_argument("--private", action="store_true", help="a new repository is private")
    add.add_argument(
        "--dry-run", action="store_true", help="list what would travel and send nothing"
    )


def push(options: Namespace) -> None:
    """List what travels on standard error, print the address."""
    from llasa_core.experiments.push import contents, push

    found = contents(
        options.checkpoint, options.repo, options.codec, options.scores, options.license
    )
    for name, one in sorted(found.items()):
        size = len(one) if isinstance(one, bytes) else one.stat().st_size
        print(f"{size:>14,}  {name}", file=sys.stderr)
    if not options.dry_run:
        print(push(found, options.repo, options.private))
