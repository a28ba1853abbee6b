"""Audio -> codes: a manifest becomes a codes dataset (format: codes_dataset), part by part, resumable and in shards.

Part p holds the utterances p * rows_per_part and following of the manifest, and shard I of N makes the parts with
p % N == I: the finished folder is the same, byte for byte, whatever N was and however often the work was stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llasa_core.audio import decode_audio
from llasa_core.codecs import Codec
from llasa_core.codes_dataset import CodesDataset, finish, part_info, part_name, read_codes, write_part
from llasa_core.codes_memmap import export_memmap, import_memmap
from llasa_core.corpus import Limits, check_utterance
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest

__all__ = [
    "CodesDataset",
    "encode_manifest",
    "export_memmap",
    "import_memmap",
    "join_pairs",
    "nested_subset",
    "read_codes",
]

WINDOW_SECONDS = 600.0  # of audio in memory, among which utterances of equal length meet


def encode_manifest(
    manifest: str | Path,
    out: str | Path,
    codec: Codec,
    shards: int = 1,
    shard: int = 0,
    rows_per_part: int = 1000,
    batch_seconds: float = 60.0,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict | None:
    """Encode the utterances of a manifest into the codes dataset `out`.

    Stopped and started again, it goes on with the parts that are not there. What fails `check_utterance` is left out
    and counted by reason. batch_seconds: audio handed to the codec at once, which bounds its memory and changes no
    code. `progress` is called with the number of utterances just finished.

    Returns the content of meta.json, or None while other shards still have parts to make (the last one writes it).
    Raises InputError for a bad manifest, or an `out` made from something else.
    """
    out, limits = Path(out), limits or Limits()
    if not 0 <= shard < shards or rows_per_part < 1 or batch_seconds <= 0:
        raise InputError(
            f"shard {shard} of {shards}, {rows_per_part} rows a part: expected 0 <= shard < shards, positive rows"
        )
    utterances = read_manifest(manifest)
    if not utterances:
        raise InputError(f"{manifest}: no utterances, expected at least one")
    settings = {"codec": codec.name, "codebook_size": codec.codebook_size, "frame_rate": codec.frame_rate}
    starts = range(0, len(utterances), rows_per_part)
    out.mkdir(parents=True, exist_ok=True)
    for number in range(shard, len(starts), shards):
        members = utterances[starts[number] : starts[number] + rows_per_part]
        info = {**settings, "source": _fingerprint(members)}
        path = out / part_name(number)
        if path.exists():
            _refuse_another(path, info)
            if progress:
                progress(len(members))
            continue
        rows, dropped = _encode_part(members, codec, batch_seconds, limits, progress)
        write_part(path, rows, {**info, "dropped": dropped})
    if not all((out / part_name(number)).exists() for number in range(len(starts))):
        return None
    for number, start in enumerate(starts):
        _refuse_another(
            out / part_name(number), {**settings, "source": _fingerprint(utterances[start : start + rows_per_part])}
        )
    return finish(out, len(starts), settings)


def join_pairs(source: str | Path, out: str | Path, seed: int = 0, rows_per_part: int = 1000) -> dict:
    """Utterances of a codes dataset, two of one speaker at a time, as a codes dataset of their own.

    A row has both ids, texts and codes one behind the other and no speaker, so no tag: what a model must have seen to
    go on in the voice of a prompt (`Prompt.tts_prompt` with a voice). Which two meet depends on `seed` alone; an odd
    one out is left. A finished `out` of the same source and seed is kept. Returns the content of meta.json; raises
    InputError where the source cannot be read, `out` was made from something else, or no speaker has two utterances.
    """
    dataset, out = read_codes(source), Path(out)
    shards = [shard["sha256"] for shard in dataset.meta["shards"]]
    made_from = hashlib.sha256(json.dumps(["pairs", seed, rows_per_part, *shards]).encode()).hexdigest()[:16]
    speakers: dict[str, list[int]] = {}
    for index in np.random.default_rng([seed, 3]).permutation(len(dataset)).tolist():
        speakers.setdefault(dataset[index]["speaker"], []).append(index)
    pairs = sorted(pair for members in speakers.values() for pair in zip(members[::2], members[1::2], strict=False))
    if not pairs:
        raise InputError(f"{source}: no speaker has two utterances, expected at least two to join")
    settings = {name: dataset.meta[name] for name in ("codec", "codebook_size", "frame_rate")}
    starts = range(0, len(pairs), rows_per_part)
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(starts):
        path, info = out / part_name(number), {**settings, "source": made_from}
        if path.exists():
            _refuse_another(path, info)
            continue
        rows = [_joined_row(dataset[first], dataset[second]) for first, second in pairs[start : start + rows_per_part]]
        write_part(path, rows, {**info, "dropped": []})
    return finish(out, len(starts), settings)


def nested_subset(source: str | Path, out: str | Path, hours: float, seed: int = 0, rows_per_part: int = 1000) -> dict:
    """The first `hours` of speech of a codes dataset, in an order drawn by `seed`, as a codes dataset of their own.

    The order is that of a hash of seed and id, so with one seed every smaller subset lies in every larger one, whatever
    the order of the source. A finished `out` of the same source, hours and seed is kept. Returns the content of
    meta.json; raises InputError where the source has less than `hours`, no utterance fits into them, or `out` was made
    from something else.
    """
    dataset, out = read_codes(source), Path(out)
    rows = [(hashlib.sha256(f"{seed}/{dataset[i]['id']}".encode()).digest(), i) for i in range(len(dataset))]
    order = [index for _, index in sorted(rows)]
    heard = np.cumsum([dataset[index]["seconds"] for index in order])
    if not 0 < hours * 3600 <= heard[-1] + 1e-3:
        raise InputError(f"{source}: has {heard[-1] / 3600:.3f} hours, cannot give {hours:g} of them")
    members = sorted(order[: int(np.searchsorted(heard, hours * 3600 + 1e-3, side="right"))])
    if not members:
        raise InputError(f"{source}: no utterance fits into {hours:g} hours, expected at least one")
    shards = [shard["sha256"] for shard in dataset.meta["shards"]]
    made_from = hashlib.sha256(json.dumps(["subset", hours, seed, rows_per_part, *shards]).encode()).hexdigest()[:16]
    settings = {name: dataset.meta[name] for name in ("codec", "codebook_size", "frame_rate")}
    starts = range(0, len(members), rows_per_part)
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(starts):
        path, info = out / part_name(number), {**settings, "source": made_from}
        if path.exists():
            _refuse_another(path, info)
            continue
        chosen = [dataset[index] for index in members[start : start + rows_per_part]]
        write_part(path, chosen, {**info, "dropped": []})
    return finish(out, len(starts), settings)


def _joined_row(first: dict, second: dict) -> dict:
    return {
        "id": f"{first['id']}+{second['id']}",
        "text": f"{first['text']} {second['text']}",
        "codes": np.concatenate([first["codes"], second["codes"]]),
        "speaker": "",
        "language": first["language"],
        "seconds": first["seconds"] + second["seconds"],
    }


def _encode_part(
    members: Sequence[Utterance],
    codec: Codec,
    batch_seconds: float,
    limits: Limits,
    progress: Callable[[int], None] | None,
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Rows in the order of `members`, and (id, reason) of those left out."""
    rows: dict[str, dict] = {}
    reasons: dict[str, str] = {}
    done = 0
    for window in _windows(members, codec.sample_rate, limits, reasons):
        for batch in _batches(window, batch_seconds * codec.sample_rate):
            for (utterance, wave), codes in zip(batch, codec.encode([wave for _, wave in batch]), strict=True):
                if not len(codes):
                    reasons[utterance.id] = "too_short"
                    continue
                row = {"id": utterance.id, "text": utterance.text, "codes": codes, "speaker": utterance.speaker}
                rows[utterance.id] = row | {"language": utterance.language, "seconds": len(wave) / codec.sample_rate}
        if progress:
            progress(len(window))
            done += len(window)
    if progress:
        progress(len(members) - done)
    dropped = [(utterance.id, reasons[utterance.id]) for utterance in members if utterance.id in reasons]
    return [rows[utterance.id] for utterance in members if utterance.id in rows], dropped


def _windows(
    members: Sequence[Utterance], sample_rate: int, limits: Limits, reasons: dict[str, str]
) -> Iterator[list[tuple[Utterance, np.ndarray]]]:
    """Sound utterances with their waves, WINDOW_SECONDS at a time; the reasons of the others go to `reasons`."""
    window, samples = [], 0
    for utterance in members:
        wave, reason = decode_audio(utterance.audio, sample_rate)
        reason = reason or check_utterance(utterance, wave, limits, sample_rate)
        if reason:
            reasons[utterance.id] = reason
            continue
        window.append((utterance, wave))
        samples += len(wave)
        if samples >= WINDOW_SECONDS * sample_rate:
            yield window
            window, samples = [], 0
    if window:
        yield window


def _batches(
    window: list[tuple[Utterance, np.ndarray]], most_samples: float
) -> Iterator[list[tuple[Utterance, np.ndarray]]]:
    """By length, so that codecs find utterances of equal length side by side; at least one utterance each."""
    batch, samples = [], 0
    for item in sorted(window, key=lambda item: len(item[1])):
        if batch and samples + len(item[1]) > most_samples:
            yield batch
            batch, samples = [], 0
        batch.append(item)
        samples += len(item[1])
    if batch:
        yield batch


def _fingerprint(members: Sequence[Utterance]) -> str:
    """16 hex digits over the ids, texts, speakers and languages of a part."""
    digest = hashlib.sha256()
    for utterance in members:
        fields = [utterance.id, utterance.text, utterance.speaker, utterance.language]
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()[:16]


def _refuse_another(path: Path, wanted: dict) -> None:
    found = part_info(path)
    for key, value in wanted.items():
        if found.get(key) != value:
            what = "other utterances (or rows_per_part)" if key == "source" else f"{key} {found.get(key)}, not {value}"
            raise InputError(f"{path}: made with {what}; choose another folder")
