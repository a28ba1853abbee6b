"""What `llasa evaluate`, `protocol` and `compare` do with their parsed options; called by
`commands`.

What `llasa rating-page` and `rating-scores` do with their parsed options; called by `commands`.
"""

import sys
from argparse import Namespace
from pathlib import Path

from llasa_core.cli.common import Commands, add_command, count, print_counts, require, whole
from llasa_core.errors import InputError, names_in
from llasa_core.evaluation.protocols import PROTOCOLS, help_text
from llasa_core.judges import EMOTION_EMBEDDERS, QUALITY_PREDICTORS, SPEAKER_EMBEDDERS, TRANSCRIBERS


def add_evaluate(commands: Commands) -> None:
    """The options of `llasa evaluate`."""
    add = add_command(
        commands,
        "evaluate",
        "score a manifest of wavs: words, voice, quality, with intervals",
        "llasa evaluate artifacts/spoken/manifest.jsonl artifacts/scores"
        " --references artifacts/builtin/test.jsonl\n"
        "llasa evaluate artifacts/spoken/manifest.jsonl artifacts/scores"
        " --protocol artifacts/seed-en",
        evaluate,
    )
    add.add_argument(
        "manifest", metavar="MANIFEST", help="JSON lines with id, audio, text and speaker"
    )
    add.add_argument("out", metavar="OUT", help="folder for utterances.jsonl and summary.json")
    add.add_argument(
        "--asr",
        default="whisper-tiny.en",
        help=f"{names_in(TRANSCRIBERS)}, or none (default %(default)s)",
    )
    add.add_argument(
        "--speaker",
        default="wespeaker",
        help=f"{names_in(SPEAKER_EMBEDDERS)}, or none; needs --references (default %(default)s)",
    )
    add.add_argument(
        "--quality",
        default="distillmos",
        help=f"{names_in(QUALITY_PREDICTORS)}, or none (default %(default)s)",
    )
    add.add_argument(
        "--references", help="manifest of originals, for the similarity to each speaker"
    )
    add.add_argument(
        "--protocol",
        metavar="PREPARED",
        help="folder of llasa protocol: adds its public metric to ours",
    )
    add.add_argument(
        "--emotion", default="none", help=f"protocol: {names_in(EMOTION_EMBEDDERS)} (default none)"
    )
    add.add_argument(
        "--reference-audio", help="manifest of the waves a codec resynthesised, for PESQ and STOI"
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the bootstrap (default 0)")


def evaluate(options: Namespace) -> None:
    """Print the summary."""
    from llasa_core.evaluation.scoring import evaluate_manifest
    from llasa_core.judges import load_judges

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
        load_judges(options.asr, speaker, options.quality),
        references=options.references if speaker != "none" else None,
        reference_audio=options.reference_audio,
        seed=options.seed,
        progress=True,
    )
    print_counts(summary)


def evaluate_protocol(options: Namespace) -> None:
    """Print the summary: the protocol's public metrics and ours."""
    from llasa_core.evaluation.protocols import scoring
    from llasa_core.judges import Judges, load_judges

    if options.references or options.reference_audio:
        raise InputError(
            "--protocol brings its own references: drop --references and --reference-audio"
        )
    setting, _ = scoring.read_prepared(Path(options.protocol))
    wanted = options.asr, options.speaker, options.quality, options.emotion
    _, summary = scoring.evaluate_protocol(
        options.manifest,
        options.protocol,
        options.out,
        Judges() if setting["protocol"] == "asr" else load_judges(*wanted),
        seed=options.seed,
        progress=True,
    )
    print_counts(summary)


def add_protocol(commands: Commands) -> None:
    """The options of `llasa protocol`."""
    add = add_command(
        commands,
        "protocol",
        "turn a public benchmark's folder into requests to synthesize and manifests to score by",
        "llasa protocol seed-tts-en seedtts_testset artifacts/seed-en --codec xcodec2\n"
        "llasa synthesize --model M --manifest artifacts/seed-en/requests.jsonl --attempts 0"
        " -o artifacts/spoken\n"
        "llasa evaluate artifacts/spoken/manifest.jsonl artifacts/scores"
        " --protocol artifacts/seed-en",
        protocol,
        more=f"\n\nprotocols:\n{help_text()}",
    )
    add.add_argument("name", metavar="NAME", choices=tuple(PROTOCOLS), help=", ".join(PROTOCOLS))
    add.add_argument("folder", metavar="DIR", help="the benchmark as it is distributed")
    add.add_argument(
        "out",
        metavar="OUT",
        help="folder for requests.jsonl, references.jsonl, trials.jsonl, protocol.json",
    )
    add.add_argument(
        "--codec", help="codec for prompts (sim-r) and references after a round trip; default none"
    )
    add.add_argument(
        "--seeds", type=count, default=1, help="how often each text is asked for (default 1)"
    )
    add.add_argument(
        "--limit", type=whole, default=0, help="texts taken, spread evenly; 0 (default) takes all"
    )
    add.add_argument(
        "--device", help="of the codec: cpu or cuda (default: the GPU where there is one)"
    )


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


def add_compare(commands: Commands) -> None:
    """The options of `llasa compare`."""
    add = add_command(
        commands,
        "compare",
        "compare two systems on the same utterances: paired differences, intervals, two tests",
        "llasa compare artifacts/plain/utterances.jsonl artifacts/searched/utterances.jsonl",
        compare,
    )
    add.add_argument("a", metavar="A", help="utterances.jsonl of llasa evaluate")
    add.add_argument("b", metavar="B", help="the same of the other system, over the same ids")
    add.add_argument(
        "-o",
        "--out",
        dest="file",
        metavar="FILE",
        help="JSON file that receives the comparison too",
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the resampling (default 0)")


def compare(options: Namespace) -> None:
    """Print the differences, b minus a."""
    from llasa_core.files import read_rows, write_json
    from llasa_core.intervals import compare_systems

    change = compare_systems(
        read_rows(options.a), read_rows(options.b), options.seed, (options.a, options.b)
    )
    if not change:
        raise InputError(f"{options.a}, {options.b}: no score that both systems have")
    if options.file is not None:
        Path(options.file).parent.mkdir(parents=True, exist_ok=True)
        write_json(options.file, change)
    print_counts(change)


def add_rating_page(commands: Commands) -> None:
    """The options of `llasa rating-page`."""
    add = add_command(
        commands,
        "rating-page",
        "write a blinded page on which raters score systems 1 to 3, by keyboard and without a"
        " network",
        "llasa rating-page mini=artifacts/a/manifest.jsonl tuned=artifacts/b/manifest.jsonl \\\n"
        "             --sentences experiments/text_understanding/en.jsonl -o artifacts/rating",
        rating_page,
    )
    add.add_argument(
        "manifests",
        metavar="MANIFEST",
        nargs="+",
        help="NAME=MANIFEST of speech; default name: its folder",
    )
    add.add_argument(
        "--sentences",
        action="append",
        required=True,
        metavar="JSONL",
        help="what they speak; may repeat",
    )
    add.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="folder for page (for raters) and key.json (not)",
    )
    add.add_argument(
        "--title", default="Text understanding", help="heading of the page (default %(default)s)"
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the orders (default 0)")


def rating_page(options: Namespace) -> None:
    """Print hash and counts of the page."""
    from llasa_core.evaluation.rating.page import named_manifests, rating_page
    from llasa_core.evaluation.rating.sentences import read_sentences

    sentences = read_sentences(*options.sentences)
    systems = named_manifests(options.manifests)
    print_counts(rating_page(options.out, sentences, systems, options.title, options.seed))


def add_rating_scores(commands: Commands) -> None:
    """The options of `llasa rating-scores`."""
    add = add_command(
        commands,
        "rating-scores",
        "average the score files of raters: means with intervals by system and category, agreement",
        "llasa rating-scores scores-*.json --key artifacts/rating/key.json -o"
        " artifacts/rating/scores",
        rating_scores,
    )
    add.add_argument(
        "scores", metavar="SCORES", nargs="+", help="files that raters saved from the page"
    )
    add.add_argument("--key", required=True, metavar="JSON", help="key.json of llasa rating-page")
    add.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="folder for utterances.jsonl and summary.json",
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the bootstrap (default 0)")


def rating_scores(options: Namespace) -> None:
    """Print means and agreement."""
    from llasa_core.evaluation.rating.scores import aggregate

    report = aggregate(options.scores, options.key, options.out, options.seed)
    print_counts(report)
    if report["raters"] < 2:
        print("llasa: one rater, so nothing is said of agreement", file=sys.stderr)
