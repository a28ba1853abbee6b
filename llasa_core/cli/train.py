"""The commands `llasa train`, `llasa check` and `llasa adapt-codec`."""

import sys
from argparse import Namespace
from pathlib import Path

from llasa_core.cli.common import (
    Commands,
    add_command,
    add_slurm_option,
    count,
    print_counts,
    progress_bar,
    whole,
)
from llasa_core.codecs import codec_names


def add_check(commands: Commands) -> None:
    """The options of `llasa check`."""
    add = add_command(
        commands,
        "check",
        "compare a tokenizer or checkpoint with the released layout",
        "llasa check HKUSTAudio/Llasa-1B",
        check,
    )
    add.add_argument("checkpoint", metavar="CHECKPOINT_OR_TOKENIZER", help="folder or hub id")


def check(options: Namespace) -> int:
    """Print every difference from the released layout, and weights that are not those of training.

    Status 1 if there is one.
    """
    from llasa_core.checkpoint import (
        changed_weights,
        check_config,
        checkpoint_file,
        codec_place,
        read_settings,
    )
    from llasa_core.codecs import other_codes, weights_of
    from llasa_core.tokenizer import check_layout, load_tokenizer

    tokenizer = load_tokenizer(options.checkpoint)
    config_file = checkpoint_file(options.checkpoint, "config.json")
    config = None if config_file is None else check_config(config_file.parent)
    differences = check_layout(tokenizer, config) + changed_weights(options.checkpoint)
    settings = read_settings(Path(options.checkpoint) / "llasa.json")
    codec = codec_place(options.checkpoint, settings)
    if settings.get("codec_fingerprint") or settings.get("codes_fingerprint"):
        found = weights_of(codec)
        if not found:
            print(f"{codec}: codec not at hand, its weights were not compared", file=sys.stderr)
        elif differ := other_codes(found, settings):
            differences.append(
                f"{codec}: codec of weights {differ[0]}, the model knows {differ[1]}"
            )
    for difference in differences:
        print(difference)
    if not differences:
        print(f"{options.checkpoint}: the released layout, {len(tokenizer)} ids")
    return 1 if differences else 0


def add_train(commands: Commands) -> None:
    """The options of `llasa train`."""
    add = add_command(
        commands,
        "train",
        "train a model as a JSON file says, on all GPUs of this machine",
        "llasa train config.json",
        train,
    )
    add.add_argument(
        "config", metavar="CONFIG", help="JSON settings; the public config.json keys are accepted"
    )
    add_slurm_option(
        add, "train in a Slurm job, on all its nodes; requeued, it resumes from its checkpoints"
    )


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
    import logging

    from llasa_core.experiments.samples import SpokenSamples
    from llasa_core.training.launch import launch, local_processes

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        # Libraries print to standard error; standard output holds the metrics only.
        metrics = launch(config, local_processes(config), listener=SpokenSamples)
    print_counts(metrics)


def add_adapt_codec(commands: Commands) -> None:
    """The options of `llasa adapt-codec`."""
    add = add_command(
        commands,
        "adapt-codec",
        "fine-tune a codec's decoder on recordings of a voice, its codes unchanged",
        "llasa adapt-codec mini artifacts/human/train.jsonl artifacts/human-codec",
        adapt_codec,
    )
    add.add_argument("codec", metavar="CODEC", help=f"the base: {codec_names()}; of the mini kind")
    add.add_argument("manifest", metavar="MANIFEST", help="recordings to adapt to, JSON lines")
    add.add_argument("out", metavar="OUT", help="folder of the adapted codec, given as --codec OUT")
    add.add_argument("--steps", type=count, default=800, help="(default %(default)s)")
    add.add_argument("--seed", type=whole, default=0, help="of batches (default %(default)s)")
    add.add_argument("--threads", type=count, default=1, help="(default %(default)s)")


def adapt_codec(options: Namespace) -> None:
    """Print what adaptation.json says: the held-out loss before and after, and what it is of."""
    from llasa_core.codecs.adapt import Adaptation, adapt_codec

    settings = Adaptation(
        options.codec,
        options.manifest,
        options.out,
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
    )
    with progress_bar(settings.steps, "step") as bar:
        record = adapt_codec(settings, lambda row: bar.update(row["step"] - bar.n))
    print_counts(record)
