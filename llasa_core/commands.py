"""What each subcommand of `llasa` does with its parsed options; returns the exit status (None: 0).

Imports stand inside the handlers: a command pays only for what it uses. Results go to standard output, progress and
messages to standard error.
"""

import itertools
import json
import sys
from argparse import Namespace
from pathlib import Path

from llasa_core.errors import InputError


def check(options: Namespace) -> int:
    """Print every difference from the released layout; status 1 if there is one."""
    from llasa_core.speech_settings import checkpoint_file
    from llasa_core.tokens import check_layout, load_tokenizer

    tokenizer = load_tokenizer(options.checkpoint)
    config_file = checkpoint_file(options.checkpoint, "config.json")
    config = None if config_file is None else read_json(config_file)
    differences = check_layout(tokenizer, config)
    for difference in differences:
        print(difference)
    if not differences:
        print(f"{options.checkpoint}: the released layout, {len(tokenizer)} ids")
    return 1 if differences else 0


def prepare(options: Namespace) -> None:
    """Print the report's counts."""
    if options.source == "builtin":
        from llasa_core import builtin

        if options.hours and options.utterances:
            raise InputError("--hours and --utterances exclude each other")
        hours = options.hours or (None if options.utterances else 1.0)
        report = builtin.build(
            options.out, hours, options.utterances, seed=options.seed, jobs=options.jobs, progress=True
        )
    else:
        from llasa_core import corpus

        if options.hours or options.utterances:
            raise InputError("--hours and --utterances belong to the builtin corpus")
        utterances = corpus.read_corpus(options.source, options.layout, options.speaker, options.language)
        listed = []  # a list that only names files is read, and so checked, to its end before anything is written
        for utterance in utterances:
            listed.append(utterance)
            if isinstance(utterance.audio, bytes):
                break
        whole = itertools.chain(listed, utterances)
        with progress_bar(None, "utterance") as bar:
            report = corpus.prepare(whole, options.out, jobs=options.jobs, progress=bar.update)
    print_counts({key: value for key, value in report.items() if not isinstance(value, list)})


def encode(options: Namespace) -> int | None:
    """Print meta.json, or that other shards still have work."""
    from llasa_core.audio_sources import open_source
    from llasa_core.codecs import load_codec
    from llasa_core.codes import encode_manifest

    if options.shard >= options.shards:
        raise InputError(f"--shard is {options.shard}, expected 0 to {options.shards - 1}")
    source = open_source(options.manifest, options.rows_per_part)
    if options.slurm is not None:
        from llasa_core import slurm_commands

        return slurm_commands.encode(options)
    codec, segmenter = load_codec(options.codec, options.device), None
    if options.bf16:
        from llasa_core.codecs.bf16 import Bf16Codec

        codec = Bf16Codec(codec, options.device)
    if options.segment_asr:
        from llasa_core.judges import load_transcriber
        from llasa_core.segments import Segmenter

        segmenter = Segmenter(load_transcriber(options.segment_asr))
    settings = {"rows_per_part": options.rows_per_part, "segmenter": segmenter}
    settings["workers"] = options.workers if source.parts > 1 else 0
    total = source.rows and source.rows // options.shards
    with progress_bar(total, "utterance") as bar:
        meta = encode_manifest(
            options.manifest, options.out, codec, options.shards, options.shard, progress=bar.update, **settings
        )
    if meta is None:
        print(f"shard {options.shard} of {options.shards} is done, others are not", file=sys.stderr)
    else:
        print_counts({key: value for key, value in meta.items() if not isinstance(value, list)})


def import_memmap(options: Namespace) -> None:
    """Print meta.json of each split."""
    from llasa_core import codes_memmap

    require(options.source)
    tokenizer = merged_tokenizer(options.tokenizer)
    with progress_bar(None, "row") as bar:
        metas = codes_memmap.import_memmap(options.source, options.out, tokenizer, options.codec, progress=bar.update)
    print_counts(metas)


def export_memmap(options: Namespace) -> None:
    """Print rows and drops of each split."""
    from llasa_core import codes_memmap

    require(options.codes)
    tokenizer = merged_tokenizer(options.tokenizer)
    with progress_bar(None, "row") as bar:
        reports = codes_memmap.export_memmap(options.codes, options.out, tokenizer, progress=bar.update)
    print_counts(reports)


def data_report(options: Namespace) -> None:
    """Print the path of the page."""
    from llasa_core.data_report import data_report as report

    with progress_bar(None, "utterance") as bar:
        report(options.codes, options.out, progress=bar.update)
    print(Path(options.out) / "index.html")


def data_filter(options: Namespace) -> None:
    """Print meta.json of what is left."""
    from dataclasses import fields

    from llasa_core.data_filter import Filters, filter_codes

    values = {one.name: getattr(options, one.name) for one in fields(Filters)}
    values["languages"] = values["languages"] and tuple(values["languages"])
    with progress_bar(None, "utterance") as bar:
        meta = filter_codes(options.codes, options.out, Filters(**values), options.scores, progress=bar.update)
    print_counts({key: value for key, value in meta.items() if not isinstance(value, list)})


def train(options: Namespace) -> int | None:
    """Print the final metrics."""
    from llasa_core.train_config import TrainConfig

    config = TrainConfig.from_json(options.config)
    for note in config.notes:
        print(note, file=sys.stderr)
    if options.slurm is not None:
        from llasa_core import slurm_commands

        return slurm_commands.train(options, config)
    import contextlib

    from llasa_core.train import train as run_training

    with contextlib.redirect_stdout(sys.stderr):  # the libraries' own lines; standard output is the metrics alone
        metrics = run_training(config, progress=True)
    print_counts(metrics)


def synthesize(options: Namespace) -> None:
    """Print the path of the manifest, or of the file that was streamed."""
    from llasa_core import speech_commands

    speech_commands.synthesize(options)


def learn_guards(options: Namespace) -> None:
    """Print the path of guards.json."""
    from llasa_core import speech_commands

    speech_commands.learn_guards(options)


def search(options: Namespace) -> None:
    """Print the manifest's path; cost, settings and verifiers of the search stand beside it in search.json."""
    from llasa_core import judges
    from llasa_core.audio import load_audio
    from llasa_core.evaluate import embed_references
    from llasa_core.search import Rule, Strategy
    from llasa_core.search_manifest import pieces_of, search_manifest
    from llasa_core.verifiers import VoiceVerifier, WordsVerifier

    guided = options.strategy != "best-of-n"
    by_voice = guided and options.guide == "voice"
    asr, speaker = options.verifier_asr, options.verifier_speaker or ("resemblyzer" if by_voice else "none")
    if asr == speaker == "none":
        raise InputError("--verifier-asr and --verifier-speaker are both none, expected at least one verifier")
    if speaker != "none" and (options.voice is None) == (options.voices is None):
        what = f"--strategy {options.strategy} is guided by the voice" if by_voice else "--verifier-speaker"
        raise InputError(f"{what}, compared with recordings: it needs --voice or --voices, one of the two")
    if guided and (speaker if options.guide == "voice" else asr) == "none":
        raise InputError(f"--strategy {options.strategy} is guided by the {options.guide}: it needs that verifier")
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
            verifiers["voice"] = VoiceVerifier(embedder, embed_references(options.voices, embedder).centroids(), rate)
        else:
            verifiers["voice"] = VoiceVerifier.of_recording(embedder, load_audio(options.voice, rate), rate)
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


def transcribe(options: Namespace) -> None:
    """Print one line a file: path, tab, text."""
    from llasa_core.audio import load_audio
    from llasa_core.synthesize import Synthesizer

    waves = [load_audio(wav) for wav in options.wavs]
    synthesizer = Synthesizer.from_folder(options.model, options.codec, options.device)
    codes = [synthesizer.codec.encode([wave])[0] for wave in waves]
    for wav, row in zip(options.wavs, codes, strict=True):
        if not len(row):
            raise InputError(f"{wav}: shorter than one code ({synthesizer.hop} samples), expected speech")
    texts = synthesizer.transcribe_codes(codes)
    for wav, text in zip(options.wavs, texts, strict=True):
        print(f"{wav}\t{text}")


def evaluate(options: Namespace) -> None:
    """Print the summary."""
    from llasa_core import evaluation_commands

    evaluation_commands.evaluate(options)


def protocol(options: Namespace) -> None:
    """Print what protocol.json says."""
    from llasa_core import evaluation_commands

    evaluation_commands.protocol(options)


def compare(options: Namespace) -> None:
    """Print the differences, b minus a."""
    from llasa_core import evaluation_commands

    evaluation_commands.compare(options)


def rating_page(options: Namespace) -> None:
    """Print hash and counts of the page."""
    from llasa_core import rating_commands

    rating_commands.rating_page(options)


def rating_scores(options: Namespace) -> None:
    """Print means and agreement."""
    from llasa_core import rating_commands

    rating_commands.rating_scores(options)


def run(options: Namespace) -> int:
    """Show the table of runs; status 1 if one failed."""
    from llasa_core.experiments import load_experiment, run_experiment
    from llasa_core.run_table import RunTable, plan

    experiment = load_experiment(options.experiment, smoke=options.smoke)
    if options.dry_run:
        print(plan(experiment, options.only))
        return 0
    table = RunTable(experiment)
    if options.slurm is not None:
        from llasa_core import slurm_commands

        states = slurm_commands.run(options, experiment, table)
    else:
        states = run_experiment(experiment, options.only, options.force, options.jobs, show=table)
    failed = [state for state in states if state.state == "failed"]
    for state in states:
        if state.state in ("done", "skipped"):
            print(f"{state.run.run_dir}/result.json")
    for state in failed:
        print(f"llasa: {experiment.name}/{state.run.id}: {state.line}", file=sys.stderr)
    return 1 if failed else 0


def speech(options: Namespace) -> tuple:
    """(Synthesizer, requests, Sampling) of synthesize and search; cheap checks come before the model is loaded."""
    from dataclasses import replace

    from llasa_core.sampling import Sampling
    from llasa_core.speech_requests import Request, read_requests
    from llasa_core.synthesize import Synthesizer

    if (options.text is None) == (options.manifest is None):
        raise InputError("expected either a TEXT or --manifest")
    if (options.voice is None) != (options.voice_text is None):
        raise InputError("--voice and --voice-text belong together")
    if options.manifest is not None and (options.voice or options.speaker):
        raise InputError("--voice and --speaker belong to a TEXT; a manifest names voice and speaker in its lines")
    for path in (options.voice, options.manifest):
        if path is not None:
            require(path)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, max_seconds=options.max_seconds)
    if options.text is not None:
        requests = [Request("utterance", options.text, options.speaker, None, options.seed, options.language)]
    engine = None
    if getattr(options, "engine", "torch") == "vllm":
        from llasa_core.vllm_backend import VllmEngine

        engine = VllmEngine(options.model)
    tags = options.tags or options.speaker is not None
    synthesizer = Synthesizer.from_folder(options.model, options.codec, options.device, engine=engine, tags=tags)
    if options.manifest is not None:
        requests = read_requests(options.manifest, synthesizer.voice, options.seed, options.language)
    elif options.voice is not None:
        voice = synthesizer.voice(options.voice, options.voice_text)
        requests = [replace(requests[0], voice=voice)]
    if count := synthesizer.untagged(requests):
        why = "nothing says whether the model knows speaker tags; --tags writes them"
        print(f"llasa: {options.model}: {count} named speakers are no tags: {why}", file=sys.stderr)
    return synthesizer, requests, sampling


def merged_tokenizer(name: str | None):
    """The tokenizer of a folder or hub id; None: the released one, built from Meta's vocabulary file or of the hub."""
    from llasa_core import text_tokenizers
    from llasa_core.tokens import RELEASED_CODEBOOK_SIZE, load_tokenizer, merge_tokenizer

    if name is not None:
        return load_tokenizer(name)
    try:
        vocabulary = text_tokenizers.locate_llama3_vocabulary()
    except InputError:
        return load_tokenizer("HKUSTAudio/Llasa-1B")
    return merge_tokenizer(text_tokenizers.build_llama3_tokenizer(vocabulary), RELEASED_CODEBOOK_SIZE)


def require(path: str) -> None:
    """InputError for a path that does not exist."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder")


def read_json(path: Path) -> dict:
    """A JSON object; InputError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def print_counts(values: dict) -> None:
    """A dict as JSON on standard output."""
    print(json.dumps(values, indent=1, sort_keys=True))


def progress_bar(total: int | None, unit: str):
    """A bar on standard error; its `update` takes what was just finished."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, file=sys.stderr)
