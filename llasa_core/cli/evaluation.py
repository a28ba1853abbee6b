"""What `llasa evaluate`, `protocol` and `compare` do with their parsed options; called by
`commands`.

What `llasa rating-page` and `rating-scores` do with their parsed options; called by `commands`.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

from llasa_core.cli.common import print_counts, require
from llasa_core.errors import InputError


def evaluate(options: Namespace) -> None:
    """Print the summary."""
    from llasa_core import judges
    from llasa_core.evaluation.scoring import evaluate_manifest

    for path in (options.manifest, options.references, options.reference_audio, options.protocol):
        if path is not None:
            require(path)
    if options.protocol is not None:
        evaluate_protocol(options)
        return
    if options.emotion != "none":
        raise InputError("--emotion compares with the prompts of a protocol: it needs --protocol")
    speaker = options.speaker if options.references else "none"  # similarity needs the originals
    _, summary = evaluate_manifest(
        options.manifest,
        options.out,
        transcriber=None if options.asr == "none" else judges.load_transcriber(options.asr),
        embedder=None if speaker == "none" else judges.load_speaker_embedder(speaker),
        quality=(
            None if options.quality == "none" else judges.load_quality_predictor(options.quality)
        ),
        references=options.references if speaker != "none" else None,
        reference_audio=options.reference_audio,
        seed=options.seed,
        progress=True,
    )
    print_counts(summary)


def evaluate_protocol(options: Namespace) -> None:
    """Print the summary: the protocol's public metrics and ours."""
    from llasa_core import judges
    from llasa_core.evaluation.protocols import scoring

    if options.references or options.reference_audio:
        raise InputError(
            "--references and --reference-audio are the protocol's own, expected neither beside"
            " --protocol"
        )
    setting, _ = scoring.read_prepared(Path(options.protocol))
    hears = setting["protocol"] != "asr"
    _, summary = scoring.evaluate_protocol(
        options.manifest,
        options.protocol,
        options.out,
        transcriber=(
            judges.load_transcriber(options.asr) if hears and options.asr != "none" else None
        ),
        embedder=(
            judges.load_speaker_embedder(options.speaker)
            if hears and options.speaker != "none"
            else None
        ),
        quality=(
            judges.load_quality_predictor(options.quality)
            if hears and options.quality != "none"
            else None
        ),
        emotion=(
            judges.load_emotion_embedder(options.emotion) if options.emotion != "none" else None
        ),
        seed=options.seed,
        progress=True,
    )
    print_counts(summary)


def protocol(options: Namespace) -> None:
    """Print what protocol.json says."""
    from llasa_core.codecs import load_codec
    from llasa_core.evaluation.protocols.preparation import prepare_protocol

    require(options.folder)
    codec = None if options.codec is None else load_codec(options.codec, options.device)
    print_counts(
        prepare_protocol(
            options.name,
            options.folder,
            options.out,
            codec,
            options.seeds,
            options.limit,
            progress=True,
        )
    )


def compare(options: Namespace) -> None:
    """Print the differences, b minus a."""
    from llasa_core.files import publish, read_rows
    from llasa_core.intervals import compare_systems

    change = compare_systems(
        read_rows(options.a), read_rows(options.b), options.seed, (options.a, options.b)
    )
    if not change:
        raise InputError(f"{options.a}, {options.b}: no score that both systems have")
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        publish(Path(options.out), (json.dumps(change, indent=1, sort_keys=True) + "\n").encode())
    print_counts(change)


def rating_page(options: Namespace) -> None:
    """Print hash and counts of the page."""
    from llasa_core.evaluation.rating.page import named_manifests, rating_page
    from llasa_core.evaluation.rating.sentences import read_sentences

    sentences = read_sentences(*options.sentences)
    systems = named_manifests(options.manifests)
    print_counts(rating_page(options.out, sentences, systems, options.title, options.seed))


def rating_scores(options: Namespace) -> None:
    """Print means and agreement."""
    from llasa_core.evaluation.rating.scores import aggregate

    report = aggregate(options.scores, options.key, options.out, options.seed)
    print_counts(report)
    if report["raters"] < 2:
        print("llasa: one rater, so nothing is said of agreement", file=sys.stderr)
