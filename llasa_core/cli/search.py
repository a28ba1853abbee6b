"""The command `llasa search`."""

from argparse import Namespace
from functools import partial

from llasa_core.cli.common import (
    Commands,
    add_command,
    count,
    positive,
    progress_bar,
    require,
    whole,
)
from llasa_core.cli.synthesis import add_speech_options, destination, speech, tell_failures
from llasa_core.errors import InputError
from llasa_core.judges.interface import SpeakerEmbedder
from llasa_core.search.strategy import GUIDED, RULES, STRATEGIES, Rule, Strategy
from llasa_core.search.verifiers import VERIFIERS, JudgedVerifier, WantedVoices


def add_search(commands: Commands) -> None:
    """The options of `llasa search`."""
    add = add_command(
        commands,
        "search",
        "speak with inference-time search: many candidates, the best by the verifiers",
        "llasa search --model artifacts/pretrain/model --candidates 16"
        ' "Call Anna at nine." -o artifacts/searched\n'
        "llasa search --model artifacts/pretrain/model --strategy partial-prm"
        " --manifest test.jsonl --voices dev.jsonl -o artifacts/searched",
        search,
    )
    add_speech_options(add)
    add.add_argument("text", metavar="TEXT", nargs="?", help="what to say")
    add.add_argument("--strategy", default=STRATEGIES[0], choices=STRATEGIES)
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
        default=Strategy.guide,
        choices=tuple(VERIFIERS),
        help="prm: the verifier that prunes (default %(default)s)",
    )
    add.add_argument(
        "--rule",
        default=RULES[0],
        choices=RULES,
        help=(
            f"first: the first verifier decides ({', '.join(VERIFIERS)}), the others break ties;"
            " sum: all are added (default %(default)s)"
        ),
    )
    for name, verifier in VERIFIERS.items():
        use = "" if verifier.always else " where it guides"
        add.add_argument(
            _option(verifier),
            dest=f"{name}_verifier",
            metavar="MODEL",
            help=f"{verifier.help} (default: {verifier.default}{use})",
        )
    add.add_argument(
        "--voices",
        metavar="MANIFEST",
        help="recordings of the speakers whose voices are wanted (default: each voice prompt's)",
    )
    add.add_argument(
        "--chunk-characters",
        type=whole,
        default=0,
        help="search longer texts in pieces; paper: 100",
    )


def search(options: Namespace) -> int:
    """Print the manifest's path; search.json next to it holds cost, settings and verifiers."""
    from llasa_core.search.batch import pieces_of, search_manifest

    models = _verifier_models(options)
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
    synthesizer, requests, sampling, refused = speech(options)
    rate, verifiers = synthesizer.codec.sample_rate, {}
    for name, model in models.items():
        verifiers[name] = VERIFIERS[name].load(model, rate, partial(wanted_voices, options.voices))
        verifiers[name].check(requests)
    total = sum(len(pieces_of(request, options.chunk_characters)) for request in requests)
    with destination(options, requests) as folder, progress_bar(total, "text") as bar:
        search_manifest(
            synthesizer,
            requests,
            folder,
            strategy,
            verifiers,
            sampling,
            rule,
            options.chunk_characters,
            bar.update,
        )
    return tell_failures(refused, {})


def _option(verifier: type[JudgedVerifier]) -> str:
    return f"--verifier-{verifier.option}"


def _verifier_models(options: Namespace) -> dict[str, str]:
    """{verifier: the model that it listens with} of those that are used; InputError where one that
    is needed, or what it needs, is not given.
    """
    guide = options.guide if options.strategy in GUIDED else None
    models = {}
    for name, verifier in VERIFIERS.items():
        default = verifier.default if verifier.always or name == guide else "none"
        models[name] = getattr(options, f"{name}_verifier") or default
    models = {name: model for name, model in models.items() if model != "none"}
    if not models:
        names = " and ".join(_option(verifier) for verifier in VERIFIERS.values())
        raise InputError(f"{names} are all none, expected at least one verifier")
    by_guide = f"--strategy {options.strategy} is guided by the {guide}"
    for name in models:
        given = [options.voice is not None, options.voices is not None]
        # Lines of a manifest may have voice prompts of their own: `check` looks at each.
        compared = sum(given) == 1 or (options.manifest is not None and not any(given))
        if VERIFIERS[name].needs_voices and not compared:
            what = by_guide if name == guide else _option(VERIFIERS[name])
            raise InputError(
                f"{what}, compared with recordings: it needs --voice or --voices, one of the two"
            )
    if guide is not None and guide not in models:
        raise InputError(f"{by_guide}: it needs that verifier")
    return models


def wanted_voices(manifest: str | None, embedder: SpeakerEmbedder) -> WantedVoices:
    """The wanted voices of a manifest's recordings as a speaker model hears them; without one, each
    request's own voice prompt is.
    """
    from llasa_core.evaluation.scoring import embed_references

    if manifest is None:
        return WantedVoices({})
    references = embed_references(manifest, embedder)
    return WantedVoices(references.centroids(), references.recordings_by_speaker())
