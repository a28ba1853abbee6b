"""The `llasa` command: arguments in, exit status out. What each subcommand does stands in
`commands`.

Exit status: 0 done, 1 done and the answer is no (a difference, a failed run), 2 bad input with one
line on standard error, 130 interrupted. Nothing heavy is imported before a subcommand runs, so
`--help` answers at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from llasa_core.cli.common import add_slurm_option, count, positive, whole
from llasa_core.cli.data import add_data_commands
from llasa_core.cli.synthesis import add_speech_options
from llasa_core.device import check_folder, choose_device
from llasa_core.errors import guarded
from llasa_core.evaluation.protocols import PROTOCOLS, help_text

HANDLERS = {  # subcommand -> the module of llasa_core.cli that carries it out
    "check": "train",
    "prepare": "data",
    "encode": "data",
    "import_memmap": "data",
    "export_memmap": "data",
    "data_report": "data",
    "data_filter": "data",
    "train": "train",
    "synthesize": "synthesis",
    "learn_guards": "synthesis",
    "transcribe": "synthesis",
    "search": "search",
    "evaluate": "evaluation",
    "protocol": "evaluation",
    "compare": "evaluation",
    "rating_page": "evaluation",
    "rating_scores": "evaluation",
    "run": "experiments",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. `argv` without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser().parse_args(arguments)
        options.arguments = arguments
    except SystemExit as ending:  # argparse has printed help or the error
        return int(ending.code or 0)

    def handle() -> int:
        check(options)
        module = importlib.import_module(f"llasa_core.cli.{HANDLERS[options.handler]}")
        return getattr(module, options.handler)(options)

    return guarded(handle)


def check(options: argparse.Namespace) -> None:
    """InputError where the device is not here or OUT cannot be a folder, before anything is
    loaded.
    """
    if getattr(options, "device", None) is not None:
        choose_device(options.device, here=getattr(options, "slurm", None) is None)
    folder = getattr(options, "out", None)
    if (
        folder is not None
        and options.handler != "compare"
        and not getattr(options, "stream", False)
    ):
        check_folder(folder)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each names its handler in `commands`."""
    parser = argparse.ArgumentParser(
        prog="llasa", description="Llama-based speech synthesis, from corpus to scores."
    )
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(handler=name.replace("-", "_"))
        return added

    add = command(
        "check",
        "compare a tokenizer or checkpoint with the released layout",
        "llasa check HKUSTAudio/Llasa-1B",
    )
    add.add_argument("checkpoint", metavar="CHECKPOINT_OR_TOKENIZER", help="folder or hub id")

    add = command(
        "prepare",
        "make manifests and 16 kHz audio from a corpus, with everything unfit dropped and counted",
        "llasa prepare LJSpeech-1.1 artifacts/ljspeech --layout ljspeech\n"
        "         llasa prepare builtin artifacts/builtin --hours 2",
    )
    add.add_argument(
        "source", metavar="SOURCE", help="corpus folder, manifest, hub dataset, or the word builtin"
    )
    add.add_argument(
        "out", metavar="OUT", help="folder for {train,dev,test}.jsonl, report.json and wavs"
    )
    add.add_argument(
        "--layout", default="auto", choices=("auto", "ljspeech", "libritts", "jsonl", "hf")
    )
    add.add_argument("--speaker", help="speaker name for a corpus that names none")
    add.add_argument("--language", help="language code, in place of the corpus's own")
    add.add_argument("--hours", type=positive, help="builtin: hours of speech (default 1)")
    add.add_argument(
        "--utterances", type=count, help="builtin: number of utterances, in place of --hours"
    )
    add.add_argument(
        "--seed", type=whole, default=0, help="builtin: seed of sentences and voices (default 0)"
    )
    add.add_argument("--jobs", type=count, default=1, help="processes (default 1)")

    add = command(
        "encode",
        "turn the audio of a manifest into a codes dataset",
        "llasa encode artifacts/ljspeech/train.jsonl artifacts/codes/train --codec xcodec2 --shards"
        " 8 --shard 0\n         llasa encode 's3://corpus/{000..511}.tar' artifacts/codes/corpus"
        " --codec xcodec2 --device cuda",
    )
    add.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="JSON lines with id, audio and text; or .tar or .parquet files with audio",
    )
    add.add_argument(
        "out", metavar="OUT", help="folder of the codes dataset; a stopped extraction goes on"
    )
    add.add_argument("--codec", required=True, help="xcodec2, mini, fake, or a folder")
    add.add_argument(
        "--shards", type=count, default=1, help="processes that share the work (default 1)"
    )
    add.add_argument("--shard", type=whole, default=0, help="number of this one, from 0")
    add_slurm_option(add, "a Slurm job for each shard")
    add.add_argument(
        "--workers", type=whole, default=2, help="processes that read and decode audio (default 2)"
    )
    add.add_argument(
        "--rows-per-part",
        type=count,
        default=1000,
        help="utterances of a manifest in a part (default 1000)",
    )
    add.add_argument(
        "--bf16",
        action="store_true",
        help="faster on a GPU; changes codes, and meta.json says how many",
    )
    add.add_argument(
        "--segment-asr",
        metavar="ASR",
        help="cut long recordings at silence, their text as ASR hears it",
    )
    add.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")

    add = command(
        "import-memmap",
        "read the public training format (rows of 2048 ids) into a codes dataset",
        "llasa import-memmap libriheavy artifacts/codes/libriheavy",
    )
    add.add_argument(
        "source", metavar="DIR", help="folder with {train,val}_input_ids.memmap and their shapes"
    )
    add.add_argument("out", metavar="OUT", help="folder of the codes dataset")
    add.add_argument(
        "--tokenizer", help="folder or hub id of the merged tokenizer (default: the released one)"
    )
    add.add_argument(
        "--codec",
        default="xcodec2",
        help="name of the codec that made the codes (default %(default)s)",
    )

    add = command(
        "export-memmap",
        "write a codes dataset in the public training format",
        "llasa export-memmap artifacts/codes/libriheavy rows",
    )
    add.add_argument("codes", metavar="CODES", help="folder of a codes dataset")
    add.add_argument("out", metavar="DIR", help="folder for the rows")
    add.add_argument(
        "--tokenizer", help="folder or hub id of the merged tokenizer (default: the released one)"
    )

    add = command(
        "data",
        "report on a codes dataset, or filter it",
        "llasa data report artifacts/codes/train -o artifacts/report\n         llasa data filter"
        " artifacts/codes/train artifacts/codes/clean --max-seconds 20 --language en",
    )
    add_data_commands(add)

    add = command(
        "train",
        "train a model as a JSON file says (several GPUs: torchrun -m llasa_core.training.train)",
        "llasa train config.json",
    )
    add.add_argument(
        "config", metavar="CONFIG", help="JSON settings; the public config.json keys are accepted"
    )
    add_slurm_option(
        add, "train in a Slurm job, on all its nodes; requeued, it goes on from its checkpoints"
    )

    add = command(
        "synthesize",
        "speak a text, or every line of a manifest, into wav files",
        'llasa synthesize --model artifacts/pretrain/model "Call Anna at nine." -o'
        " artifacts/spoken",
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
        "--normalise", action="store_true", help="write numbers and abbreviations out (English)"
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

    add = command(
        "learn-guards",
        "learn from a codes dataset how long, how repetitive and how monotonous speech may be",
        "llasa learn-guards artifacts/codes/train artifacts/pretrain/model",
    )
    add.add_argument("codes", metavar="CODES", help="folder of a codes dataset")
    add.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="model folder that receives guards.json"
    )

    add = command(
        "search",
        "speak with inference-time search: many candidates, the best by the verifiers",
        'llasa search --model artifacts/pretrain/model --candidates 16 "Call Anna at nine." -o'
        " artifacts/searched\n         llasa search --model artifacts/pretrain/model --strategy"
        " partial-prm \\\n             --manifest test.jsonl --voices dev.jsonl -o"
        " artifacts/searched",
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

    add = command(
        "transcribe",
        "recognise speech with a model trained in that direction",
        "llasa transcribe --model artifacts/asr/model recording.wav",
    )
    add.add_argument("--model", required=True, help="checkpoint folder or hub id")
    add.add_argument("--codec", help="codec name or folder (default: the one the checkpoint names)")
    add.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    add.add_argument("wavs", metavar="WAV", nargs="+", help="audio files of any rate")

    add = command(
        "evaluate",
        "score a manifest of wavs: words, voice, quality, with intervals",
        "llasa evaluate artifacts/spoken/manifest.jsonl artifacts/scores --references"
        " artifacts/builtin/test.jsonl\n         llasa evaluate artifacts/spoken/manifest.jsonl"
        " artifacts/scores --protocol artifacts/seed-en",
    )
    add.add_argument(
        "manifest", metavar="MANIFEST", help="JSON lines with id, audio, text and speaker"
    )
    add.add_argument("out", metavar="OUT", help="folder for utterances.jsonl and summary.json")
    add.add_argument(
        "--asr",
        default="whisper-tiny.en",
        help="Whisper name or folder, or none (default %(default)s)",
    )
    add.add_argument(
        "--speaker",
        default="wespeaker",
        help="wespeaker, resemblyzer, wavlm or none; needs --references",
    )
    add.add_argument(
        "--quality", default="distillmos", help="distillmos or none (default %(default)s)"
    )
    add.add_argument(
        "--references", help="manifest of originals, for the similarity to each speaker"
    )
    add.add_argument(
        "--protocol",
        metavar="PREPARED",
        help="folder of llasa protocol: its public metric beside ours",
    )
    add.add_argument(
        "--emotion",
        default="none",
        help="protocol: emotion2vec_plus_large or a folder (default none)",
    )
    add.add_argument(
        "--reference-audio", help="manifest of the waves a codec resynthesised, for PESQ and STOI"
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the bootstrap (default 0)")

    add = command(
        "protocol",
        "turn a public benchmark's folder into requests to synthesize and manifests to score by",
        "llasa protocol seed-tts-en seedtts_testset artifacts/seed-en --codec xcodec2\n        "
        " llasa synthesize --model M --manifest artifacts/seed-en/requests.jsonl -o"
        " artifacts/spoken\n         llasa evaluate artifacts/spoken/manifest.jsonl"
        f" artifacts/scores --protocol artifacts/seed-en\n\nprotocols:\n{help_text()}",
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
    add.add_argument("--device", default="cpu", help="of the codec: cpu or cuda (default cpu)")

    add = command(
        "compare",
        "compare two systems on the same utterances: paired differences, intervals, two tests",
        "llasa compare artifacts/plain/utterances.jsonl artifacts/searched/utterances.jsonl",
    )
    add.add_argument("a", metavar="A", help="utterances.jsonl of llasa evaluate")
    add.add_argument("b", metavar="B", help="the same of the other system, over the same ids")
    add.add_argument(
        "-o", "--out", metavar="FILE", help="JSON file that receives the comparison too"
    )
    add.add_argument("--seed", type=whole, default=0, help="seed of the resampling (default 0)")

    add = command(
        "rating-page",
        "write a blinded page on which raters score systems 1 to 3, by keyboard and without a"
        " network",
        "llasa rating-page mini=artifacts/a/manifest.jsonl tuned=artifacts/b/manifest.jsonl \\\n"
        "             --sentences experiments/text_understanding/en.jsonl -o artifacts/rating",
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

    add = command(
        "rating-scores",
        "average the score files of raters: means with intervals by system and category, agreement",
        "llasa rating-scores scores-*.json --key artifacts/rating/key.json -o"
        " artifacts/rating/scores",
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

    add = command(
        "run",
        "execute the runs of an experiment file that have no result yet",
        "llasa run experiments/pretrain.yaml --dry-run",
    )
    add.add_argument("experiment", metavar="EXPERIMENT", help="experiments/NAME.yaml")
    add.add_argument("--dry-run", action="store_true", help="print the table of runs and stop")
    add.add_argument(
        "--smoke",
        action="store_true",
        help="use the small smoke values, write below artifacts/smoke",
    )
    add.add_argument("--only", default="", metavar="TEXT", help="only runs whose id contains TEXT")
    add.add_argument("--force", action="store_true", help="run finished runs again, from nothing")
    add.add_argument(
        "--jobs",
        type=count,
        default=1,
        help="runs at a time; they share the CPU threads (default 1)",
    )
    add_slurm_option(
        add, "a Slurm job for each run; the same command again follows the jobs that are there"
    )

    return parser
