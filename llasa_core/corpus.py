"""Corpora: audio in, checks, splits; any corpus becomes 16 kHz mono audio with train, dev and test manifests.

What cannot be training data is dropped, counted by reason and listed in report.json; nothing is skipped silently.
"""

import io
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest, split_of, write_manifest

__all__ = ["Utterance", "load_audio", "read_manifest", "split_of", "write_manifest"]

SAMPLE_RATE = 16_000  # Hz


def load_audio(path: str | Path | bytes, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """An audio file (or the bytes of one) of any rate and number of channels as float32 (T,): mono, `sample_rate` Hz.

    Channels are averaged; resampling is soxr's (very high quality). Raises InputError, which names the file, if it is
    missing, unreadable or empty, or holds samples that are not finite.
    """
    name = "audio" if isinstance(path, bytes) else str(path)
    wave = _decoded(path, name, sample_rate)
    if not len(wave):
        raise InputError(f"{name}: no samples, expected audio")
    if not np.isfinite(wave).all():
        raise InputError(f"{name}: holds NaN or infinite samples, expected audio")
    return wave


def _decoded(source: str | Path | bytes, name: str, sample_rate: int) -> np.ndarray:
    """float32 (T,) at `sample_rate`; empty and non-finite waves pass. InputError if the file cannot be decoded."""
    import soundfile

    if not isinstance(source, bytes) and not Path(source).is_file():
        raise InputError(f"{name}: no such audio file")
    try:
        # always_2d: (T, channels)
        wave, rate = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), dtype="float32", always_2d=True
        )
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{name}: cannot be read as audio ({_brief(error)})") from None
    return _resampled(wave.mean(axis=1, dtype=np.float32) if wave.shape[1] > 1 else wave[:, 0], rate, sample_rate)


def _resampled(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate or not len(wave):
        return np.ascontiguousarray(wave)
    import soxr

    return soxr.resample(wave, rate, sample_rate, quality="VHQ").astype(np.float32, copy=False)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[-100:]
