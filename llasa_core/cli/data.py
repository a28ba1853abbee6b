"""Commands on corpora and codes: prepare, encode, import-memmap, export-memmap, data."""

import itertools
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from llasa_core.cli.common import (
    Commands,
    add_command,
    add_slurm_option,
    count,
    positive,
    print_counts,
    progress_bar,
    require,
    whole,
)
from llasa_core.codecs import codec_names
from llasa_core.data.corpora.readers import LAYOUTS
from llasa_core.data.corpora.voices import BUILTIN, GRAMMAR_SPEAKERS
from llasa_core.errors import InputError

HELD_OUT = 20  # utterances of dev and of test, below which a score says little


def add_data(commands: Commands) -> None:
    """The options of `llasa data`."""
    add = add_command(
        commands,
        "data",
        "report on a codes dataset, or filter it",
        "llasa data report artifacts/codes/train -o artifacts/report\n"
        "llasa data filter artifacts/codes/train artifacts/codes/clean"
        " --max-seconds 20 --language en",
    )
    which = add.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    add = which.add_parser(
        "report", help="hours, lengths, code usage, rates, duplicates, with figures"
    )
    add.set_defaults(handler=data_report)
    add.add_argument("codes", metavar="CODES", help="folder or URL of a codes dataset")
    add.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="folder for report.json and index.html"
    )
    add = which.add_parser(
        "filter", help="leave out utterances by length, rate, language or scores, each counted"
    )
    add.set_defaults(handler=data_filter)
    add.add_argument("codes", metavar="CODES", help="folder or URL of a codes dataset")
    add.add_argument("out", metavar="OUT", help="folder of the filtered codes dataset")
    for name in (
        "min-seconds",
        "max-seconds",
        "min-characters-per-second",
        "max-characters-per-second",
    ):
        add.add_argument(f"--{name}", type=float, metavar="X")
    add.add_argument(
        "--language", action="append", dest="languages", help="keep it; may be given several times"
    )
    add.add_argument(
        "--min-mos", type=float, metavar="X", help="predicted quality, 1 to 5; needs --scores"
    )
    add.add_argument(
        "--max-wer", type=float, metavar="X", help="word errors over words, 0 to 1; needs --scores"
    )
    add.add_argument(
        "--scores",
        metavar="JSONL",
        help="utterances.jsonl of `llasa evaluate` over these recordings",
    )


def add_prepare(commands: Commands) -> None:
    """The options of `llasa prepare`."""
    add = add_command(
        commands,
        "prepare",
        "make manifests and 16 kHz audio from a corpus, with everything unfit dropped and counted",
        "llasa prepare LJSpeech-1.1 artifacts/ljspeech --layout ljspeech\n"
        "llasa prepare builtin artifacts/builtin --hours 2\n"
        "llasa prepare builtin-open artifacts/open --hours 50 --jobs 8",
        prepare,
    )
    add.add_argument(
        "source",
        metavar="SOURCE",
        help="corpus folder, manifest, hub dataset, or a built-in corpus: builtin (a grammar of 500"
        " words, eight voices), builtin-two-speakers and builtin-eight-speakers (the same in other"
        " voices), builtin-open (any English, 409 voices), builtin-short (one to three words beside"
        " these, 809 voices), builtin-kokoro (any English in Kokoro's voices),"
        " builtin-new-voice (any English in a voice that no other of them holds)",
    )
    add.add_argument(
        "out", metavar="OUT", help="folder for {train,dev,test}.jsonl, report.json and wavs"
    )
    add.add_argument("--layout", default="auto", choices=("auto", *LAYOUTS))
    add.add_argument("--speaker", help="speaker name for a corpus that names none")
    add.add_argument("--language", help="language code, in place of the corpus's own")
    add.add_argument("--hours", type=positive, help="builtin corpora: hours of speech (default 1)")
    add.add_argument(
        "--utterances", type=count, help="builtin: number of utterances, in place of --hours"
    )
    add.add_argument(
        "--seed", type=whole, default=0, help="builtin corpora: seed of texts, voices (default 0)"
    )
    add.add_argument("--jobs", type=count, default=1, help="processes (default 1)")
    add.add_argument(
        "--split",
        type=shares,
        metavar="TRAIN,DEV,TEST",
        help="shares of what names no split (default 0.96,0.02,0.02)",
    )
    add.add_argument(
        "--min-held-out",
        type=whole,
        metavar="N",
        help=f"utterances of dev and of test at least, up to a tenth each (default {HELD_OUT})",
    )
    add_limits(add)


def add_limits(parser: ArgumentParser) -> None:
    """--max-seconds and --allow-dropped."""
    parser.add_argument(
        "--max-seconds",
        type=positive,
        metavar="X",
        help="leave out longer recordings (default 30; 2,048 tokens have room for about 38)",
    )
    parser.add_argument(
        "--allow-dropped",
        action="store_true",
        help="exit 0 also where more than a tenth is left out",
    )


def limits_of(options: Namespace):
    """What an utterance must be, with --max-seconds."""
    from llasa_core.data.corpora.prepare import Limits

    return Limits() if options.max_seconds is None else Limits(max_seconds=options.max_seconds)


def shares(text: str) -> tuple[float, ...]:
    """Three numbers, for argparse."""
    try:
        train, dev, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r}, expected shares such as 0.9,0.05,0.05") from None
    return train, dev, test


REMEDIES = {
    "needs_ffmpeg": "unreadable: needs ffmpeg, which makes wav files of it",
    "missing_audio": "there is no such file",
    "ambiguous_audio": "the name fits several files",
    "too_long": "see --max-seconds; llasa encode --segment-asr cuts it",
    "offset": "a piece of a longer recording, to be cut out first",
    "bad_path": "the path is too long or no text",
    "bad_id": "the id is no text",
}


def tell_dropped(dropped: dict[str, int], first: dict[str, str], kept: int, allowed: bool) -> int:
    """Print what was dropped, a line a reason, and a warning above a tenth; the exit status."""
    for reason, number in dropped.items():
        remedy = f" ({REMEDIES[reason]})" if reason in REMEDIES else ""
        print(f"llasa: left out {number}: {reason}{remedy}, first {first[reason]}", file=sys.stderr)
    number = sum(dropped.values())
    if 10 * number <= number + kept:
        return 0
    end = "" if allowed else "; --allow-dropped takes it as it is"
    share = f"{number} of {number + kept} utterances were left out ({number / (number + kept):.0%})"
    print(f"llasa: {share}, more than a tenth{end}", file=sys.stderr)
    return 0 if allowed else 1


def tell(line: str) -> None:
    """A line on standard error."""
    print(f"llasa: {line}", file=sys.stderr)


def build_corpus(options: Namespace) -> dict[str, Any]:
    """The report of a corpus that is spoken on the spot."""
    from llasa_core.data.corpora import open_corpus, synthetic

    if options.hours and options.utterances:
        raise InputError("--hours and --utterances exclude each other")
    for name in ("split", "min_held_out", "max_seconds"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not for the {options.source} corpus")
    how = {"seed": options.seed, "jobs": options.jobs, "progress": True}
    if options.source in GRAMMAR_SPEAKERS:
        hours = options.hours or (None if options.utterances else 1.0)
        voices = GRAMMAR_SPEAKERS[options.source]
        return synthetic.build(options.out, hours, options.utterances, voices, **how)
    if options.utterances:
        raise InputError(f"--utterances is not for the {options.source} corpus, use --hours")
    return open_corpus.build(options.out, options.source, options.hours or 1.0, **how)


def prepare(options: Namespace) -> int:
    """Print the report's counts; 1 where more than a tenth was left out."""
    if options.source in BUILTIN:
        report = build_corpus(options)
    else:
        from llasa_core.data.corpora import prepare, readers

        if options.hours or options.utterances:
            raise InputError("--hours and --utterances belong to the built-in corpora")
        said: list[str] = []
        utterances = readers.read_corpus(
            options.source, options.layout, options.speaker, options.language, said.append
        )
        # A list that only names files is read to its end before anything is written: what it has
        # wrong is then refused at once.
        listed = []
        for utterance in utterances:
            listed.append(utterance)
            if isinstance(utterance.audio, bytes) and utterance.audio:
                break
        for line in said:
            tell(line)
        least = HELD_OUT if options.min_held_out is None else options.min_held_out
        with progress_bar(None, "utterance") as bar:
            report = prepare.prepare(
                itertools.chain(listed, utterances),
                options.out,
                limits_of(options),
                options.split or (0.96, 0.02, 0.02),
                jobs=options.jobs,
                progress=bar.update,
                min_held_out=least,
            )
    print_counts({key: value for key, value in report.items() if not isinstance(value, list)})
    if options.source in BUILTIN:
        return 0
    wanted = zip(("dev", "test"), report["split_fractions"][1:], strict=True)
    held_out = {name: report["splits"][name]["utterances"] for name, share in wanted if share}
    if min(held_out.values(), default=HELD_OUT) < HELD_OUT:
        few = " and ".join(f"{number} {name}" for name, number in held_out.items())
        tell(f"only {few} utterances: scores on them are uncertain; see --split, --min-held-out")
    return tell_dropped(
        report["dropped"], report["first_dropped"], report["kept"], options.allow_dropped
    )


def add_encode(commands: Commands) -> None:
    """The options of `llasa encode`."""
    add = add_command(
        commands,
        "encode",
        "turn the audio of a manifest into a codes dataset",
        "llasa encode artifacts/ljspeech/train.jsonl artifacts/codes/train"
        " --codec xcodec2 --shards 8 --shard 0\n"
        "llasa encode 's3://corpus/{000..511}.tar' artifacts/codes/corpus"
        " --codec xcodec2 --device cuda",
        encode,
    )
    add.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="JSON lines with id, audio and text; or .tar or .parquet files with audio",
    )
    add.add_argument(
        "out", metavar="OUT", help="folder of the codes dataset; a stopped extraction resumes"
    )
    add.add_argument("--codec", required=True, help=codec_names())
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
    add.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    add_limits(add)


def encode(options: Namespace) -> int | None:
    """Print meta.json, or that other shards still have work."""
    from llasa_core.codecs import load_codec
    from llasa_core.data.encode import encode_manifest
    from llasa_core.data.sources import open_source
    from llasa_core.files import read_rows

    if options.shard >= options.shards:
        raise InputError(f"--shard is {options.shard}, expected 0 to {options.shards - 1}")
    source = open_source(options.manifest, options.rows_per_part)
    if options.slurm is not None:
        from llasa_core.cli import slurm

        return slurm.encode(options)
    codec, segmenter = load_codec(options.codec, options.device), None
    if options.bf16:
        from llasa_core.codecs.xcodec2 import Bf16Codec

        codec = Bf16Codec(codec, options.device)
    if options.segment_asr:
        from llasa_core.data.corpora.segmentation import Segmenter
        from llasa_core.judges import load_transcriber

        segmenter = Segmenter(load_transcriber(options.segment_asr))
    settings = {"rows_per_part": options.rows_per_part, "segmenter": segmenter}
    settings["limits"] = limits_of(options)
    settings["workers"] = options.workers if source.parts > 1 else 0
    total = source.rows and source.rows // options.shards
    with progress_bar(total, "utterance") as bar:
        meta = encode_manifest(
            options.manifest,
            options.out,
            codec,
            options.shards,
            options.shard,
            progress=bar.update,
            **settings,
        )
    if meta is None:
        tell(f"shard {options.shard} of {options.shards} is done, others are not")
        return 0
    print_counts({key: value for key, value in meta.items() if not isinstance(value, list)})
    first = {}
    for row in read_rows(Path(options.out, "dropped.jsonl")) if meta["dropped"] else ():
        first.setdefault(row["reason"], f"{row['id']} ({row['part']})")
    if not meta["utterances"] and not meta["dropped"]:
        tell(f"{options.manifest} holds no utterances, and so does {options.out}")
    return tell_dropped(meta["dropped"], first, meta["utterances"], options.allow_dropped)


def add_import_memmap(commands: Commands) -> None:
    """The options of `llasa import-memmap`."""
    add = add_command(
        commands,
        "import-memmap",
        "read the public training format (rows of 2048 ids) into a codes dataset",
        "llasa import-memmap libriheavy artifacts/codes/libriheavy",
        import_memmap,
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


def import_memmap(options: Namespace) -> None:
    """Print meta.json of each split."""
    from llasa_core.data import memmap

    require(options.source)
    tokenizer = merged_tokenizer(options.tokenizer)
    with progress_bar(None, "row") as bar:
        metas = memmap.import_memmap(
            options.source, options.out, tokenizer, options.codec, progress=bar.update
        )
    print_counts(metas)


def add_export_memmap(commands: Commands) -> None:
    """The options of `llasa export-memmap`."""
    add = add_command(
        commands,
        "export-memmap",
        "write a codes dataset in the public training format",
        "llasa export-memmap artifacts/codes/libriheavy rows",
        export_memmap,
    )
    add.add_argument("codes", metavar="CODES", help="folder of a codes dataset")
    add.add_argument("out", metavar="DIR", help="folder for the rows")
    add.add_argument(
        "--tokenizer", help="folder or hub id of the merged tokenizer (default: the released one)"
    )


def export_memmap(options: Namespace) -> None:
    """Print rows and drops of each split."""
    from llasa_core.data import memmap

    require(options.codes)
    tokenizer = merged_tokenizer(options.tokenizer)
    with progress_bar(None, "row") as bar:
        reports = memmap.export_memmap(options.codes, options.out, tokenizer, progress=bar.update)
    print_counts(reports)


def data_report(options: Namespace) -> None:
    """Print the path of the page."""
    from llasa_core.data.report import data_report as report

    with progress_bar(None, "utterance") as bar:
        report(options.codes, options.out, progress=bar.update)
    print(Path(options.out) / "index.html")


def data_filter(options: Namespace) -> None:
    """Print meta.json of what is left."""
    from dataclasses import fields

    from llasa_core.data.filter import Filters, filter_codes

    values = {one.name: getattr(options, one.name) for one in fields(Filters)}
    values["languages"] = values["languages"] and tuple(values["languages"])
    with progress_bar(None, "utterance") as bar:
        meta = filter_codes(
            options.codes, options.out, Filters(**values), options.scores, progress=bar.update
        )
    print_counts({key: value for key, value in meta.items() if not isinstance(value, list)})


def merged_tokenizer(name: str | None):
    """The tokenizer of a folder or hub id; None: the released one, from Meta's file or the hub."""
    from llasa_core.data import text_tokenizers
    from llasa_core.tokenizer import RELEASED_CODEBOOK_SIZE, load_tokenizer, merge_tokenizer

    if name is not None:
        return load_tokenizer(name)
    try:
        vocabulary = text_tokenizers.locate_llama3_vocabulary()
    except InputError:
        return load_tokenizer("HKUSTAudio/Llasa-1B")
    return merge_tokenizer(
        text_tokenizers.build_llama3_tokenizer(vocabulary), RELEASED_CODEBOOK_SIZE
    )
