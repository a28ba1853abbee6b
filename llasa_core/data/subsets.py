"""Codes datasets (format: `dataset`): made from audio or memory maps, read, and their
utterances joined.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llasa_core.data.dataset import (
    CodesDataset,
    codec_of,
    finish,
    part_name,
    read_codes,
    write_part,
)
from llasa_core.data.encode import refuse_another
from llasa_core.errors import InputError


def join_pairs(
    source: str | Path, out: str | Path, seed: int = 0, rows_per_part: int = 1000
) -> dict:
    """Utterances of a codes dataset, two of one speaker at a time, as a codes dataset of their own.

    A row concatenates ids, texts and codes and has no speaker, so no tag: what a model must have
    seen to continue in the voice of a prompt (`Prompt.tts_prompt` with a voice). Which two
    meet depends on `seed` alone; an odd one out is left. A finished `out` of the same source and
    seed is kept. Returns the content of meta.json; raises InputError where the source cannot be
    read, `out` was made from something else, or no speaker has two utterances.
    """
    dataset, out = read_codes(source), Path(out)
    shards = [shard["sha256"] for shard in dataset.meta["shards"]]
    made_from = hashlib.sha256(
        json.dumps(["pairs", seed, rows_per_part, *shards]).encode()
    ).hexdigest()[:16]
    speakers: dict[str, list[int]] = {}
    for index in np.random.default_rng([seed, 3]).permutation(len(dataset)).tolist():
        speakers.setdefault(dataset[index]["speaker"], []).append(index)
    pairs = sorted(
        pair
        for members in speakers.values()
        for pair in zip(members[::2], members[1::2], strict=False)
    )
    if not pairs:
        raise InputError(f"{source}: no speaker has two utterances, expected at least two to join")

    def joined(pair: tuple[int, int]) -> dict:
        return _joined_row(dataset[pair[0]], dataset[pair[1]])

    return _write(out, dataset, pairs, joined, made_from, rows_per_part)


def nested_subset(
    source: str | Path,
    out: str | Path,
    hours: float,
    seed: int = 0,
    rows_per_part: int = 1000,
    max_codes: int | None = None,
) -> dict:
    """The first `hours` of speech of a codes dataset, in an order drawn by `seed`, as a codes
    dataset of their own.

    The order is that of a hash of seed and id, so with one seed every smaller subset lies in every
    larger one, whatever the order of the source. Utterances of more than `max_codes` are left out:
    one that training drops as too long for its context would otherwise be most of a small subset. A
    finished `out` of the same source, hours and seed is kept. Returns the content of meta.json;
    raises InputError where the source has less than `hours`, no utterance fits into them, or `out`
    was made from something else.
    """
    dataset, out = read_codes(source), Path(out)
    fitting = [
        i for i, codes in enumerate(dataset.lengths()) if max_codes is None or codes <= max_codes
    ]
    if not fitting:
        raise InputError(
            f"{source}: every utterance has more than {max_codes} codes, expected at least one that"
            " fits"
        )
    rows = [(hashlib.sha256(f"{seed}/{dataset[i]['id']}".encode()).digest(), i) for i in fitting]
    order = [index for _, index in sorted(rows)]
    heard = np.cumsum([dataset[index]["seconds"] for index in order])
    if not 0 < hours * 3600 <= heard[-1] + 1e-3:
        raise InputError(
            f"{source}: has {heard[-1] / 3600:.3f} hours, cannot give {hours:g} of them"
        )
    members = sorted(order[: int(np.searchsorted(heard, hours * 3600 + 1e-3, side="right"))])
    if not members:
        raise InputError(f"{source}: no utterance fits into {hours:g} hours, expected at least one")
    shards = [shard["sha256"] for shard in dataset.meta["shards"]]
    wanted = [
        "subset",
        hours,
        seed,
        rows_per_part,
        *([max_codes] if len(fitting) < len(dataset) else []),
        *shards,
    ]
    made_from = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    return _write(out, dataset, members, dataset.__getitem__, made_from, rows_per_part)


def _write(
    out: Path,
    dataset: CodesDataset,
    members: Sequence,
    row: Callable,
    made_from: str,
    rows_per_part: int,
) -> dict:
    """row(member) for each member, made from `dataset`, as a codes dataset; resumes by parts."""
    settings = codec_of(dataset.meta)
    starts = range(0, len(members), rows_per_part)
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(starts):
        path, info = out / part_name(number), {**settings, "source": made_from}
        if path.exists():
            refuse_another(path, info)
        else:
            rows = [row(member) for member in members[start : start + rows_per_part]]
            write_part(path, rows, {**info, "dropped": []})
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
