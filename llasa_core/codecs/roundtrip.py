"""A codec's round trip over a manifest: originals and decoded codes, ready to be scored."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from llasa_core.audio import load_audio, write_wav
from llasa_core.codecs.interface import Codec
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, evenly, file_name, read_manifest, write_manifest


class RoundTrip(NamedTuple):
    """Two manifests over the same ids."""

    originals: Path
    resynthesis: Path


def select(manifest: str | Path, limit: int = 0) -> list[Utterance]:
    """At most `limit` utterances spread evenly over the manifest; 0 takes all."""
    utterances = read_manifest(manifest)
    if not utterances:
        raise InputError(f"{manifest}: no utterance")
    return evenly(utterances, limit)


def resynthesize(
    manifest: str | Path, out: str | Path, codec: Codec, limit: int = 0, progress: bool = True
) -> RoundTrip:
    """Encode and decode utterances of `manifest`, one at a time, and write both manifests under
    `out`.

    Originals keep their paths; decoded waves are `out/wavs/ID.wav`, 16-bit, `codec.sample_rate` Hz,
    floor(T / hop) * hop samples long. InputError for a wave shorter than one code.
    """
    out = Path(out)
    originals = select(manifest, limit)
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    decoded = []
    for utterance in tqdm(originals, desc="codec round trip", disable=not progress):
        wave = load_audio(utterance.audio, codec.sample_rate)
        path = out / "wavs" / f"{file_name(utterance.id)}.wav"
        again = codec.decode(codec.encode([wave]))[0]
        if not len(again):
            raise InputError(
                f"{manifest}: utterance {utterance.id!r} has {len(wave)} samples, less than a code"
            )
        write_wav(path, again, codec.sample_rate)
        decoded.append(
            replace(utterance, audio=path.resolve(), seconds=len(again) / codec.sample_rate)
        )
    write_manifest(out / "originals.jsonl", originals)
    write_manifest(out / "manifest.jsonl", decoded)
    return RoundTrip(out / "originals.jsonl", out / "manifest.jsonl")
