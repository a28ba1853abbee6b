"""`llasa synthesize` and `llasa learn-guards`: what is spoken how, by the options."""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from llasa_core.commands import progress_bar, require, speech
from llasa_core.errors import InputError


def synthesize(options: Namespace) -> None:
    """Speak a text or a manifest: short texts side by side, long ones in sentences, or a stream."""
    from llasa_core.guards import Guards
    from llasa_core.long_text import pieces_of_request, speak_long
    from llasa_core.speech_manifest import synthesize_manifest

    if options.stream and (options.text is None or Path(options.out).is_dir()):
        raise InputError("--stream speaks a TEXT into a WAV file, or into - as raw samples; no manifest, no folder")
    if options.guards is not None:
        require(options.guards)
    named = Guards.from_file(options.guards) if options.guards is not None else None
    synthesizer, requests, sampling = speech(options)
    guards = replace(named or synthesizer.guards, attempts=options.attempts) if options.attempts else None
    if options.normalise:
        from llasa_core.spoken_form import spoken_form

        requests = [replace(request, text=spoken_form(request.text)) for request in requests]
    characters = options.chunk_characters or sys.maxsize
    if options.stream:
        stream_to_file(synthesizer, requests[0], options.out, sampling, guards, characters)
        return
    pieces = [pieces_of_request(request, characters) for request in requests]
    with progress_bar(sum(map(len, pieces)), "piece") as bar:
        if max(map(len, pieces)) > 1:
            print(speak_long(synthesizer, requests, options.out, sampling, guards, characters, bar.update))
        else:
            print(synthesize_manifest(synthesizer, requests, options.out, sampling, bar.update, guards))


def stream_to_file(synthesizer, request, out, sampling, guards, characters) -> None:
    """Write a text as it is spoken; a path is printed, raw samples on standard output stand alone."""
    from llasa_core.long_text import stream_long
    from llasa_core.streaming import SpeechFile

    def told(spoken) -> None:
        for reason in spoken.failed:
            print(f"llasa: {spoken.request.id}: {reason}", file=sys.stderr)

    with SpeechFile(out, synthesizer.codec.sample_rate) as file:
        file.write_all(stream_long(synthesizer, request, sampling, None, guards, characters, told))
        print(f"{file.seconds:.2f} s at {file.sample_rate} Hz, 16 bit, mono", file=sys.stderr)
    if out != "-":
        print(out)


def learn_guards(options: Namespace) -> None:
    """Print the path of guards.json."""
    from llasa_core.codes_dataset import read_codes
    from llasa_core.guards import GUARDS
    from llasa_core.guards import learn_guards as learn

    require(options.checkpoint)
    rows = read_codes(options.codes)
    guards, learnt_from = learn(rows)
    path = Path(options.checkpoint) / GUARDS
    guards.write(path, {**learnt_from, "codec": rows.meta["codec"]})
    print(path)
