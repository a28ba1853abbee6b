"""Copies of recordings that play faster or slower: more training speech from few minutes.

Ko et al., "Audio Augmentation for Speech Recognition" (2015): resampling changes tempo and pitch
together, so a copy is another speaker who says the same.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from llasa_core.audio import SAMPLE_RATE, load_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.manifest import file_name, read_manifest, write_manifest

SLOWEST, FASTEST = 0.5, 2.0


def at_speed(
    manifest: str | Path, out: str | Path, speed: float, ids: Collection[str] | None = None
) -> Path:
    """Copies that play `speed` times as fast, in the folder `out`; the path of their manifest.

    ids: whose recordings are copied (None: all). A copy of id `a` by speaker `b` has id `a-0.9x`
    and speaker `b-0.9x`. What is there already is kept. InputError: a speed below 0.5, above 2 or
    of 1, or a recording that cannot be read.
    """
    import soxr

    if not SLOWEST <= speed <= FASTEST or speed == 1:
        raise InputError(
            f"speed {speed!r}: expected a number from {SLOWEST:g} to {FASTEST:g} other than 1"
        )
    out, copies = Path(out), []
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    for item in read_manifest(manifest):
        if ids is not None and item.id not in ids:
            continue
        wave = load_audio(item.audio)
        wave = soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE)
        name = f"{item.id}-{speed:g}x"
        audio = f"wavs/{file_name(name)}.wav"
        if not (out / audio).is_file():
            write_wav(out / audio, wave)
        copies.append(
            replace(
                item,
                id=name,
                audio=audio,
                speaker=f"{item.speaker}-{speed:g}x" if item.speaker else "",
                seconds=round(len(wave) / SAMPLE_RATE, 4),
            )
        )
    write_manifest(out / "train.jsonl", copies)
    return out / "train.jsonl"
