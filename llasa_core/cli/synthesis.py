"""`llasa synthesize` and `llasa learn-guards`: what is spoken how, by the options."""

import argparse
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llasa_core.cli.common import (
    Commands,
    add_command,
    add_sampling_options,
    progress_bar,
    require,
    whole,
)
from llasa_core.errors import InputError
from llasa_core.manifest import Request


def add_speech_options(parser: argparse.ArgumentParser) -> None:
    """What synthesize and search share."""
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument(
        "--codec", help="codec name or folder (default: the one the checkpoint names)"
    )
    parser.add_argument(
        "--manifest", help="JSON lines with id and text, or .txt, a text a line; in place of TEXT"
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="folder for wavs and manifest.jsonl; for a TEXT also the name of a .wav file",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what OUT holds of another run"
    )
    parser.add_argument("--speaker", help="speaker tag")
    parser.add_argument(
        "--tags", action="store_true", help="speakers of a manifest become tags for any model"
    )
    parser.add_argument(
        "--voice", metavar="WAV", help="voice prompt: a recording to continue; needs --voice-text"
    )
    parser.add_argument("--voice-text", metavar="TEXT", help="the words spoken in the voice prompt")
    parser.add_argument(
        "--language",
        default="",
        help="of TEXT, and of lines that name none (default: by the script; en for Latin letters)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="same seed, same speech (default 0)")
    add_sampling_options(parser)
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")


def add_transcribe(commands: Commands) -> None:
    """The options of `llasa transcribe`."""
    add = add_command(
        commands,
        "transcribe",
        "recognise speech with a model trained in that direction",
        "llasa transcribe --model artifacts/asr/model recording.wav",
        transcribe,
    )
    add.add_argument("--model", required=True, help="checkpoint folder or hub id")
    add.add_argument("--codec", help="codec name or folder (default: the one the checkpoint names)")
    add.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    add.add_argument("wavs", metavar="WAV", nargs="+", help="audio files of any rate")


def transcribe(options: Namespace) -> None:
    """Print one line a file: path, tab, text."""
    from llasa_core.audio import load_audio
    from llasa_core.synthesis.synthesizer import Synthesizer

    waves = [load_audio(wav) for wav in options.wavs]
    synthesizer = Synthesizer.from_folder(options.model, options.codec, options.device)
    codes = [synthesizer.codec.encode([wave])[0] for wave in waves]
    for wav, row in zip(options.wavs, codes, strict=True):
        if not len(row):
            raise InputError(
                f"{wav}: shorter than one code ({synthesizer.hop} samples), expected speech"
            )
    texts = synthesizer.transcribe_codes(codes)
    for wav, text in zip(options.wavs, texts, strict=True):
        print(f"{wav}\t{text}")


def speech(options: Namespace) -> tuple:
    """(Synthesizer, requests, Sampling, errors of the lines that are left out) of synthesize and
    search; cheap checks come before the model is loaded.
    """
    from llasa_core.manifest import read_requests
    from llasa_core.synthesis.sampling import Sampling
    from llasa_core.synthesis.synthesizer import Synthesizer

    if (options.text is None) == (options.manifest is None):
        raise InputError("expected either a TEXT or --manifest")
    if (options.voice is None) != (options.voice_text is None):
        raise InputError("--voice and --voice-text belong together")
    if options.manifest is not None and (options.voice or options.speaker):
        raise InputError(
            "--voice and --speaker belong to a TEXT; a manifest names voice and speaker in its"
            " lines"
        )
    out = Path(options.out)
    if speech_file(options) or getattr(options, "stream", False):
        if options.manifest is not None:
            raise InputError(f"{out}: a manifest is spoken into a folder, not into one file")
        if out.is_file() and not options.overwrite:
            raise InputError(f"{out}: is there already; choose another file, or --overwrite")
    for path in (options.voice, options.manifest):
        if path is not None:
            require(path)
    sampling = Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        max_seconds=options.max_seconds,
        repetition_penalty=options.repetition_penalty,
    )
    if options.text is not None:
        requests = [
            Request(
                "utterance", options.text, options.speaker, None, options.seed, options.language
            )
        ]
    engine = None
    if getattr(options, "engine", "torch") == "vllm":
        from llasa_core.synthesis.vllm import VllmEngine

        engine = VllmEngine(options.model, context=options.context)
    tags = options.tags or options.speaker is not None
    synthesizer = Synthesizer.from_folder(
        options.model,
        options.codec,
        options.device,
        engine=engine,
        tags=tags or None,
        context=options.context,
    )
    refused: list[InputError] = []
    if options.manifest is not None:
        requests = read_requests(
            options.manifest, synthesizer.voice, options.seed, options.language, refused
        )
    elif options.voice is not None:
        voice = synthesizer.voice(options.voice, options.voice_text)
        requests = [replace(requests[0], voice=voice)]
    if getattr(options, "normalise", False):
        from llasa_core.synthesis.spoken_form import spoken_form

        requests = [replace(request, text=spoken_form(request.text)) for request in requests]
    requests = synthesizer.speakable(requests, sampling, _characters(options), refused)
    if count := synthesizer.untagged(requests):
        why = "the checkpoint declares no speaker tags; ignored (--tags forces them)"
        if synthesizer.speakers is not None:
            why = "the model was trained without speaker tags; ignored"
        if options.speaker is not None:
            raise InputError(f"--speaker {options.speaker}: {options.model} has no speaker tags")
        print(f"llasa: {options.model}: {count} requests name a speaker: {why}", file=sys.stderr)
    return synthesizer, requests, sampling, refused


def _characters(options: Namespace) -> int:
    """The longest text that is spoken at once."""
    return options.chunk_characters or sys.maxsize


def speech_file(options: Namespace) -> bool:
    """Whether OUT is one WAV file to speak into."""
    named = hasattr(options, "overwrite") and options.out.lower().endswith(".wav")
    return named and not Path(options.out).is_dir()


@contextmanager
def destination(options: Namespace, requests: Sequence[Request]) -> Iterator[Path]:
    """The folder to speak into: OUT, where nothing of another run is overwritten unless that is
    asked for; for a WAV file one next to it, whose only recording becomes that file. Prints what
    there is in the end.
    """
    from llasa_core.synthesis.batch import MANIFEST, forget_run, refuse_another_run
    from llasa_core.synthesis.text import piece_request, pieces_of_request

    out = Path(options.out)
    if speech_file(options):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
            yield Path(folder)
            (wav,) = Path(folder, "wavs").glob("*.wav")
            os.replace(wav, out)
        print(out)
        return
    if options.overwrite:
        forget_run(out)
    else:
        every = list(requests)
        for request in requests:
            pieces = pieces_of_request(request, _characters(options))
            every += [piece_request(request, number, pieces) for number in range(len(pieces))]
        refuse_another_run(out, every)
    yield out
    print(out / MANIFEST)


def tell_failures(refused: Sequence[InputError], failed: Mapping[str, str]) -> int:
    """Name lines left out and utterances that failed on standard error; 1 if there are any."""
    for error in refused:
        print(f"llasa: left out: {error}", file=sys.stderr)
    for name, why in failed.items():
        print(f"llasa: {name}: {why}", file=sys.stderr)
    return 1 if refused or failed else 0


def add_synthesize(commands: Commands) -> None:
    """The options of `llasa synthesize`."""
    add = add_command(
        commands,
        "synthesize",
        "speak a text, or every line of a manifest, into wav files",
        'llasa synthesize --model artifacts/pretrain/model "Call Anna at nine." -o'
        " artifacts/spoken",
        synthesize,
    )
    add_speech_options(add)
    add.add_argument("text", metavar="TEXT", nargs="?", help="what to say")
    add.add_argument(
        "--attempts",
        type=whole,
        default=5,
        help="samples at most until one passes the guards; 0: no guards (default 5)",
    )
    add.add_argument(
        "--guards",
        metavar="JSON",
        help="bounds of a good utterance (default: those of the checkpoint)",
    )
    add.add_argument(
        "--chunk-characters",
        type=whole,
        default=200,
        help="longer texts are spoken in sentences; 0: never (default 200)",
    )
    add.add_argument(
        "--normalise",
        action="store_true",
        help="write numbers, dates, units and the like out (English)",
    )
    add.add_argument(
        "--engine",
        choices=("torch", "vllm"),
        default="torch",
        help="what generates (default torch)",
    )
    add.add_argument(
        "--stream",
        action="store_true",
        help="write TEXT to OUT, a WAV file or - for raw 16-bit samples, as it is spoken",
    )


def synthesize(options: Namespace) -> int:
    """Speak a text or a manifest: short texts side by side, long ones in sentences, or a stream."""
    from llasa_core.files import read_rows
    from llasa_core.synthesis.batch import failures, synthesize_manifest
    from llasa_core.synthesis.guards import Guards
    from llasa_core.synthesis.long_text import speak_long
    from llasa_core.synthesis.text import pieces_of_request

    if options.stream and (options.text is None or Path(options.out).is_dir()):
        raise InputError(
            "--stream speaks a TEXT into a WAV file, or into - as raw samples; no manifest, no"
            " folder"
        )
    if options.guards is not None:
        require(options.guards)
    named = Guards.from_file(options.guards) if options.guards is not None else None
    synthesizer, requests, sampling, refused = speech(options)
    guards = (
        replace(named or synthesizer.guards, attempts=options.attempts)
        if options.attempts
        else None
    )
    characters = _characters(options)
    if options.stream:
        return stream_to_file(synthesizer, requests[0], options.out, sampling, guards, characters)
    pieces = [pieces_of_request(request, characters) for request in requests]
    with (
        destination(options, requests) as folder,
        progress_bar(sum(map(len, pieces)), "piece") as bar,
    ):
        if max(map(len, pieces)) > 1:
            path = speak_long(
                synthesizer, requests, folder, sampling, guards, characters, bar.update
            )
        else:
            path = synthesize_manifest(synthesizer, requests, folder, sampling, bar.update, guards)
        failed = failures(read_rows(path))
    return tell_failures(refused, failed)


def stream_to_file(synthesizer, request, out, sampling, guards, characters) -> int:
    """Write a text as it is spoken; a path is printed, raw samples on standard output stand
    alone. Returns the exit status.
    """
    from llasa_core.synthesis.batch import failures
    from llasa_core.synthesis.long_text import stream_long
    from llasa_core.synthesis.streaming import SpeechFile

    failed: dict[str, str] = {}

    def told(spoken) -> None:
        request = spoken.request
        failed.update(failures([{"id": request.id, "text": request.text, "failed": spoken.failed}]))

    with SpeechFile(out, synthesizer.codec.sample_rate) as file:
        file.write_all(stream_long(synthesizer, request, sampling, None, guards, characters, told))
        print(f"{file.seconds:.2f} s at {file.sample_rate} Hz, 16 bit, mono", file=sys.stderr)
    if out != "-":
        print(out)
    return tell_failures([], failed)


def add_learn_guards(commands: Commands) -> None:
    """The options of `llasa learn-guards`."""
    add = add_command(
        commands,
        "learn-guards",
        "learn from a codes dataset how long, how repetitive and how monotonous speech may be",
        "llasa learn-guards artifacts/codes/train artifacts/pretrain/model",
        learn_guards,
    )
    add.add_argument("codes", metavar="CODES", help="folder of a codes dataset")
    add.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="model folder that receives guards.json"
    )


def learn_guards(options: Namespace) -> None:
    """Print the path of guards.json."""
    from llasa_core.data.dataset import read_codes
    from llasa_core.synthesis.guards import GUARDS
    from llasa_core.synthesis.guards import learn_guards as learn

    require(options.checkpoint)
    rows = read_codes(options.codes)
    guards, learnt_from = learn(rows)
    path = Path(options.checkpoint) / GUARDS
    guards.write(path, {**learnt_from, "codec": rows.meta["codec"]})
    print(path)
