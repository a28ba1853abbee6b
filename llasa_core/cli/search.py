"""The command `llasa search`."""

from argparse import Namespace

from llasa_core.cli.common import (
    Commands,
    add_command,
    count,
    positive,
    progress_bar,
    require,
    whole,
)
from llasa_core.cli.synthesis import add_speech_options, speech
from llasa_core.errors import InputError


def add_search(commands: Commands) -> None:
    """The options of `llasa search`."""
    add = add_command(
        commands,
        "search",
        "speak with inference-time search: many candidates, the best by the verifiers",
        'llasa search --model artifacts/pretrain/model --candidates 16 "Call Anna at nine." -o'
        " artifacts/searched\n         llasa search --model artifacts/pretrain/model --strategy"
        " partial-prm \\\n             --manifest test.jsonl --voices dev.jsonl -o"
        " artifacts/searched",
        search,
    )
    add_speech_options(add)
    add.add_argument("text", metavar="TEXT", nargs="?", help="what to say")
    add.add_argument("--strategy", default="best-of-n", choices=("best-of-n", "prm", "partial-prm"))
    add.add_argument(
        "--candidates", type=count, default=8, help="whole utterances for each text (default 8)"
    )
    add.add_argument(
        "--beams",
        type=count,
        default=4,
        help="prm: prefixes kept at each step (default 4; paper 16)",
    )
    add.add_argument(
        "--expansions",
        type=count,
        default=4,
        help="prm: continuations of each (default 4; paper 16)",
    )
    add.add_argument(
        "--step-codes",
        type=count,
        default=25,
        help="prm: codes between two prunings (default 25, 0.5 s)",
    )
    add.add_argument(
        "--prefix-seconds",
        type=positive,
        default=2.0,
        help="partial-prm: guided that long (default 2)",
    )
    add.add_argument(
        "--context-codes", type=whole, default=0, help="codes decoded before the new ones; 0: all"
    )
    add.add_argument(
        "--guide",
        default="voice",
        choices=("voice", "words"),
        help="prm: what prunes (default voice)",
    )
    add.add_argument(
        "--rule",
        default="first",
        choices=("first", "sum"),
        help="first: the words decide, the voice breaks ties; sum: both are added (default first)",
    )
    add.add_argument(
        "--verifier-asr",
        default="moonshine-tiny.en",
        help=(
            "recogniser that scores the words, or none; not the one that evaluates (default"
            " %(default)s)"
        ),
    )
    add.add_argument(
        "--verifier-speaker",
        help="speaker model that scores the voice, or none (default: resemblyzer where it guides)",
    )
    add.add_argument(
        "--voices", metavar="MANIFEST", help="recordings of the speakers whose voices are wanted"
    )
    add.add_argument(
        "--chunk-characters",
        type=whole,
        default=0,
        help="search longer texts in pieces; paper: 100",
    )


def search(options: Namespace) -> None:
    """Print the manifest's path; cost, settings and verifiers of the search stand beside it in
    search.json.
    """
    from llasa_core import judges
    from llasa_core.audio import load_audio
    from llasa_core.evaluation.scoring import embed_references
    from llasa_core.search.batch import pieces_of, search_manifest
    from llasa_core.search.strategy import Rule, Strategy
    from llasa_core.search.verifiers import VoiceVerifier, WordsVerifier

    guided = options.strategy != "best-of-n"
    by_voice = guided and options.guide == "voice"
    asr, speaker = (
        options.verifier_asr,
        options.verifier_speaker or ("resemblyzer" if by_voice else "none"),
    )
    if asr == speaker == "none":
        raise InputError(
            "--verifier-asr and --verifier-speaker are both none, expected at least one verifier"
        )
    if speaker != "none" and (options.voice is None) == (options.voices is None):
        what = (
            f"--strategy {options.strategy} is guided by the voice"
            if by_voice
            else "--verifier-speaker"
        )
        raise InputError(
            f"{what}, compared with recordings: it needs --voice or --voices, one of the two"
        )
    if guided and (speaker if options.guide == "voice" else asr) == "none":
        raise InputError(
            f"--strategy {options.strategy} is guided by the {options.guide}: it needs that"
            " verifier"
        )
    strategy = Strategy(
        options.strategy,
        options.candidates,
        options.beams,
        options.expansions,
        options.step_codes,
        options.prefix_seconds,
        options.context_codes,
        options.guide,
    )
    rule = Rule(options.rule)
    if options.voices is not None:
        require(options.voices)
    synthesizer, requests, sampling = speech(options)
    rate, verifiers = synthesizer.codec.sample_rate, {}
    if asr != "none":
        verifiers["words"] = WordsVerifier(judges.load_transcriber(asr), rate)
        verifiers["words"].check(requests)
    if speaker != "none":
        embedder = judges.load_speaker_embedder(speaker)
        if options.voices is not None:
            verifiers["voice"] = VoiceVerifier(
                embedder, embed_references(options.voices, embedder).centroids(), rate
            )
        else:
            verifiers["voice"] = VoiceVerifier.of_recording(
                embedder, load_audio(options.voice, rate), rate
            )
    total = sum(len(pieces_of(request, options.chunk_characters)) for request in requests)
    with progress_bar(total, "text") as bar:
        print(
            search_manifest(
                synthesizer,
                requests,
                options.out,
                strategy,
                verifiers,
                sampling,
                rule,
                options.chunk_characters,
                bar.update,
            )
        )
