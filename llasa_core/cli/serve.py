"""`llasa serve`: what is served where, by the options."""

import argparse
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from llasa_core.cli.common import (
    Commands,
    add_command,
    add_sampling_options,
    count,
    positive,
    require,
    whole,
)
from llasa_core.errors import needs_extra

KEY = "LLASA_API_KEY"  # environment: what clients send as bearer token


def add_serve(commands: Commands) -> None:
    """The options of `llasa serve`."""
    add = add_command(
        commands,
        "serve",
        "speak over HTTP, as OpenAI's speech endpoint does",
        "llasa serve --model out/lj --port 8000",
        serve,
        f"\nWith {KEY} in the environment clients must send it. docs/serving.md tells more.",
    )
    add.add_argument("--model", required=True, help="checkpoint folder or hub id")
    add.add_argument("--codec", help="codec name or folder (default: the one the checkpoint names)")
    add.add_argument("--name", help="of the model for clients (default: the last part of --model)")
    add.add_argument(
        "--voices",
        metavar="FOLDER",
        help="recordings to continue: NAME.wav with its words in NAME.txt",
    )
    add.add_argument(
        "--speakers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tags of a checkpoint that does not declare those it was trained with",
    )
    add.add_argument("--host", default="127.0.0.1", help="0.0.0.0: everybody (default 127.0.0.1)")
    add.add_argument("--port", type=whole, default=8000, help="0: a free one (default 8000)")
    _add_limits(add)
    _add_speaking(add)
    add.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")


def _add_limits(add: argparse.ArgumentParser) -> None:
    add.add_argument("--slots", type=count, default=16, help="texts spoken at once (default 16)")
    add.add_argument(
        "--queue", type=whole, default=64, help="more that may wait; others get 429 (default 64)"
    )
    add.add_argument(
        "--seconds", type=positive, default=120.0, help="the longest a request takes (default 120)"
    )
    add.add_argument(
        "--max-characters", type=count, default=4096, help="of one text (default 4096)"
    )
    add.add_argument(
        "--window",
        type=positive,
        default=10.0,
        metavar="MS",
        help="milliseconds that a text waits for others to begin with (default 10)",
    )


def _add_speaking(add: argparse.ArgumentParser) -> None:
    add_sampling_options(add)
    add.add_argument(
        "--attempts", type=whole, default=5, help="samples until one passes the guards (default 5)"
    )
    add.add_argument("--guards", metavar="JSON", help="bounds (default: those of the checkpoint)")
    add.add_argument(
        "--chunk-characters",
        type=count,
        default=200,
        help="longer texts are spoken in sentences (default 200)",
    )
    add.add_argument("--engine", choices=("torch", "vllm"), default="torch", help="default torch")


def serve(options: Namespace) -> None:
    """Load the model and answer until a signal."""
    with needs_extra("llasa serve", "serve", "a web server"):
        from llasa_core.serving.server import address, bound_socket, run
        from llasa_core.serving.web import Web
    from llasa_core.serving.service import Limits, SpeechService
    from llasa_core.serving.voices import voices_of

    limits = Limits(
        options.slots,
        options.queue,
        options.seconds,
        options.max_characters,
        options.window / 1000,
    )
    if options.guards is not None:
        require(options.guards)
    with bound_socket(options.host, options.port) as door:
        synthesizer, speaking = load(options)
        service = SpeechService(
            synthesizer, voices_of(synthesizer, options.voices, options.speakers), speaking, limits
        )
        name = options.name or Path(options.model).absolute().name
        voices = ", ".join(service.voices)
        print(f"llasa: {name} at {address(door)}/v1, voices {voices}", flush=True)
        run(Web(service, name, os.environ.get(KEY) or None), door)


def load(options: Namespace) -> tuple:
    """(Synthesizer, Speaking) of the options."""
    from llasa_core.serving.service import Speaking
    from llasa_core.synthesis.guards import Guards
    from llasa_core.synthesis.sampling import Sampling
    from llasa_core.synthesis.synthesizer import Synthesizer

    sampling = Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        max_seconds=options.max_seconds,
        repetition_penalty=options.repetition_penalty,
    )
    named = Guards.from_file(options.guards) if options.guards is not None else None
    engine = None
    if options.engine == "vllm":
        from llasa_core.synthesis.vllm import VllmEngine

        engine = VllmEngine(options.model, slots=options.slots, context=options.context)
    synthesizer = Synthesizer.from_folder(
        options.model,
        options.codec,
        options.device,
        engine=engine,
        tags=True if options.speakers else None,
        context=options.context,
    )
    guards = None
    if options.attempts:
        guards = replace(named or synthesizer.guards, attempts=options.attempts)
    return synthesizer, Speaking(sampling, guards, options.chunk_characters)
