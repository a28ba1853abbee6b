"""The data of a training run, opened and checked: one vocabulary, packed rows to train on, held-out
batches.

A manifest of audio among the datasets is encoded first, once, each process its share; what exists
is reused. Datasets of two codecs, or of a codec that the model does not know, are refused: they
would train without a warning.
"""

import datetime
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from llasa_core.checkpoint import SETTINGS, read_settings
from llasa_core.codecs import load_codec, other_codes, weights_of
from llasa_core.data.dataset import codec_of, read_meta
from llasa_core.data.examples import ChatDataset, ExampleSource, balance
from llasa_core.data.packing import PackedRows
from llasa_core.errors import InputError
from llasa_core.files import is_url
from llasa_core.model import SIZES
from llasa_core.training.config import DataEntry, TrainConfig, read_entry
from llasa_core.training.loss import HeldOut

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What `open_data` found."""

    tokenizer: Any
    vocabulary: Any
    rows: PackedRows
    held_out: HeldOut | None
    codec: dict[str, Any]  # as of `codec_of`
    speakers: list[str]  # of the datasets trained on
    truncated: int  # utterances that lose their end, 0 unless config.overlong is "truncate"
    digests: list[str]  # sha256 of what each dataset trained on holds
    date: str  # of the template
    amounts: list[dict[str, Any]]  # of each dataset trained on, for the model card
    texts: list[dict[str, str]]  # id, text, speaker of the held-out utterances, for spoken samples


def open_data(config: TrainConfig, rank: int, world: int, per_device: int) -> TrainingData:
    """Open the datasets of `config` for process `rank` of `world`; raises InputError on what does
    not fit together.
    """
    from llasa_core.prompts import Prompt
    from llasa_core.tokenizer import vocabulary_of

    entries = [read_entry("codes", entry) for entry in config.codes]
    trained = len(entries)
    entries += [read_entry("eval_codes", entry) for entry in config.eval_codes or []]
    opened = {entry: _open(entry, config, rank, world) for entry in dict.fromkeys(entries)}
    metas = {entry.path: opened[entry].meta for entry in entries if entry.task != "chat"}
    if not metas:
        raise InputError("config: `codes` holds chat alone, expected a codes dataset as well")
    codebook_size, _, frame_rate = (
        _agree(metas, key) for key in ("codebook_size", "codec", "frame_rate")
    )
    codec = codec_of(_of_known_weights(metas))
    _warn_of_another(config.model, codec)

    tokenizer = _tokenizer(config, codebook_size)
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary.codebook_size != codebook_size:
        raise InputError(
            f"{config.tokenizer or config.model}: the tokenizer has {vocabulary.codebook_size}"
            f" speech tokens, {next(iter(metas))} has a codebook of {codebook_size}"
        )
    prompt = Prompt(tokenizer, vocabulary, date=template_date(config.date))
    cut = config.context if config.overlong == "truncate" else None
    sources = [
        ExampleSource(
            opened[entry], prompt, entry.task, entry.weight, float(config.speaker_tags), cut
        )
        for entry in entries
    ]
    balance(sources[:trained], [entry.share for entry in entries[:trained]])
    rows = PackedRows(sources[:trained], config.context, config.seed, packing=config.packing)
    named = [
        (f"{entry.path}:{entry.task}", one) for entry, one in zip(entries, sources, strict=True)
    ][trained:]
    held_out = (
        HeldOut(
            named,
            config.context,
            frame_rate,
            config.eval_utterances,
            per_device,
            config.autocast,
            config.mask_eot,
        )
        if named
        else None
    )
    speakers = sorted({name for source in sources[:trained] for name in source.speakers})
    truncated = sum(source.truncated for source in sources[:trained])
    digests = [_digest(opened[entry]) for entry in entries]
    seen = set(digests[:trained])
    for entry, digest in list(zip(entries, digests, strict=True))[trained:]:
        if digest in seen:
            logger.warning("eval_codes: %s is trained on, its loss is not held out", entry.path)
    if config.speaker_tags and not speakers:
        logger.warning("`speaker_tags` has no effect: no dataset of `codes` names a speaker")
    return TrainingData(
        *(tokenizer, vocabulary, rows, held_out, codec, speakers, truncated, digests[:trained]),
        date=prompt.date,
        amounts=[
            _amount(entry, opened[entry], len(source.lengths), frame_rate)
            for entry, source in zip(entries[:trained], sources, strict=False)
        ],
        texts=[
            row
            for entry in entries[trained:]
            if entry.task == "tts"
            for row in _some_texts(opened[entry], config.sample_texts)
        ],
    )


def _amount(entry: DataEntry, dataset: Any, examples: int, frame_rate: float) -> dict[str, Any]:
    """What llasa.json says of a dataset trained on: its name, examples, hours and languages."""
    row = {
        "name": "/".join(PurePosixPath(entry.path).parts[-2:]),
        "task": entry.task,
        "weight": entry.weight,
        "utterances": examples,
    }
    if entry.task == "chat":
        return row
    languages = {one for column in dataset.column("language") for one in column.unique().tolist()}
    hours = float(dataset.lengths().sum()) / frame_rate / 3600
    return row | {"hours": round(hours, 4), "languages": sorted(filter(None, languages))}


def _some_texts(dataset: Any, count: int) -> list[dict[str, str]]:
    """id, text and speaker of `count` utterances, evenly spaced over a dataset."""
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return [
        {key: dataset.value(key, int(at)) for key in ("id", "text", "speaker")} for at in chosen
    ]


def template_date(date: str) -> str:
    """The date line of the chat template; "today" as Llama's own template writes it."""
    return datetime.date.today().strftime("%d %b %Y") if date == "today" else date


def _digest(dataset: Any) -> str:
    """sha256 of the parts that meta.json lists with theirs, or of the conversations."""
    content = dataset.rows if isinstance(dataset, ChatDataset) else dataset.meta["shards"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open(entry: DataEntry, config: TrainConfig, rank: int, world: int) -> Any:
    from llasa_core.data.dataset import read_codes

    if entry.task == "chat":
        return ChatDataset(entry.path)
    if not is_url(entry.path) and list(Path(entry.path).glob("*_input_ids.memmap")):
        raise InputError(
            f"{entry.path}: public memmap rows; first run `llasa import-memmap {entry.path} OUT`"
        )
    folder = entry.path if entry.codec is None else _encoded(entry, config, rank, world)
    return read_codes(folder, cache=config.cache)


def _encoded(entry: DataEntry, config: TrainConfig, rank: int, world: int) -> Path:
    """The codes folder of a manifest of audio, made now by all processes together unless it is
    there already.
    """
    from llasa_core.data.encode import encode_manifest

    if not Path(entry.path).is_file():
        raise InputError(
            f"{entry.path}: no such file, expected a manifest of audio, as `codec` is given"
        )
    made_from = hashlib.sha256(
        Path(entry.path).read_bytes() + f"\0{entry.codec}".encode()
    ).hexdigest()[:16]
    folder = (
        Path(config.cache or Path(config.output_dir) / "codes")
        / f"{Path(entry.path).stem}-{made_from}"
    )
    done = folder / "meta.json"
    if done.is_file():
        differ = other_codes(read_meta(folder), weights_of(entry.codec)) if rank == 0 else None
        if differ is not None:
            raise InputError(
                f"{folder}: made with other weights of codec {entry.codec}: {differ[0]}, not"
                f" {differ[1]}; delete it to encode anew"
            )
    else:
        logger.info("encoding %s with %s into %s", entry.path, entry.codec, folder)
        encode_manifest(entry.path, folder, load_codec(entry.codec), world, rank, rows_per_part=200)
    while not done.is_file():
        # The last process to finish its share writes it; if one dies, all end.
        time.sleep(0.2)
    return folder


def _agree(metas: dict[str, dict[str, Any]], key: str) -> Any:
    first = next(iter(metas))
    for path, meta in metas.items():
        if meta[key] != metas[first][key]:
            raise InputError(
                f"{path}: {key} is {meta[key]}, expected {metas[first][key]} as in {first}"
            )
    return metas[first][key]


def _of_known_weights(metas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The meta.json that tells most of its codec's weights, the first of such; all must agree."""
    for (path, meta), (other, expected) in combinations(reversed(metas.items()), 2):
        if differ := other_codes(meta, expected):
            raise InputError(
                f"{path}: codes of other weights of codec {meta['codec']}: {differ[0]}, expected"
                f" {differ[1]} as in {other}"
            )
    keys = ("codes_fingerprint", "codec_fingerprint")
    return max(metas.values(), key=lambda meta: sum(key in meta for key in keys))


def _warn_of_another(model: str, codec: dict[str, Any]) -> None:
    """Warn when fine-tuning on codes from another codec."""
    learnt = read_settings(Path(model) / SETTINGS)
    if learnt.get("codec", codec["codec"]) != codec["codec"]:
        differ = learnt["codec"], codec["codec"]
    else:
        differ = other_codes(learnt, codec)
    if differ:
        logger.warning("%s learnt codes of codec %s, `codes` are of %s", model, *differ)


def _tokenizer(config: TrainConfig, codebook_size: int) -> Any:
    from llasa_core.tokenizer import MARKERS, load_tokenizer, merge_tokenizer

    if config.tokenizer is None and config.model in SIZES:
        raise InputError(
            f"config: `tokenizer` is missing, a model from scratch ({config.model}) needs one"
        )
    tokenizer = load_tokenizer(config.tokenizer or config.model)
    if MARKERS[0] not in tokenizer.get_vocab():
        tokenizer = merge_tokenizer(tokenizer, codebook_size)
    return tokenizer
