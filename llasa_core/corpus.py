"""Corpora: audio in, checks, splits; any corpus becomes 16 kHz mono audio with train, dev and test manifests.

What cannot be training data is dropped, counted by reason and listed in report.json; nothing is skipped silently.
"""

import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest, split_of, write_manifest

__all__ = ["Limits", "Utterance", "check_utterance", "load_audio", "read_manifest", "split_of", "write_manifest"]

SAMPLE_RATE = 16_000  # Hz
_FRAME = 0.02  # seconds, over which loudness is measured
_ANNOTATION = re.compile(r"\[[^\]]*\]|<[^>]*>|\*[^*]*\*")  # [tones], <noise>, *laughs*


@dataclass(frozen=True)
class Limits:
    """What an utterance must be to be training data; `check_utterance` gives the reasons."""

    min_seconds: float = 0.3
    max_seconds: float = 30.0  # a row of 2,048 tokens has room for about 38 s
    silence_dbfs: float = -60.0  # a 20 ms frame below this root mean square holds no sound
    min_sound_seconds: float = 0.1  # of such frames together
    max_clipped: float = 0.1  # share of samples at full scale or beyond
    annotations: bool = True  # words in [], <> or ** say what is heard, not what is said
    characters: str = ""  # regular expression that each character must match, e.g. [a-zA-Z ,.?!'-]; empty: any letter

    def __post_init__(self):
        if not 0 < self.min_seconds < self.max_seconds:
            raise InputError(
                f"limits: min_seconds {self.min_seconds}, max_seconds {self.max_seconds}: expected 0 < min < max"
            )
        try:
            re.compile(self.characters)
        except re.error as error:
            raise InputError(f"limits: characters {self.characters!r} is no regular expression ({error})") from None


def check_text(text: str, limits: Limits) -> str | None:
    """None, or why a text cannot be spoken: "textless" (no letter or digit in it) or "wrong_characters".

    Wrong are control characters, unassigned ones, the replacement character, special tokens (`<|..|>`) and whatever
    `limits.characters` leaves out.
    """
    spoken = _ANNOTATION.sub(" ", text) if limits.annotations else text
    if not any(unicodedata.category(character)[0] in "LN" for character in spoken):
        return "textless"
    if re.search(r"<\|[^|]*\|>", text) or any(_is_broken(character) for character in text):
        return "wrong_characters"
    if limits.characters and not re.fullmatch(f"(?:{limits.characters})*", text):
        return "wrong_characters"
    return None


def _is_broken(character: str) -> bool:
    return character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")


def check_utterance(
    utterance: Utterance, wave: np.ndarray, limits: Limits, sample_rate: int = SAMPLE_RATE
) -> str | None:
    """None, or the reason why an utterance with the audio `wave` (T,) cannot be training data.

    "empty", "not_finite", "too_short", "too_long", "silent" (also where all samples are stuck at one value),
    "clipped", or a reason of `check_text`.
    """
    seconds, frame = len(wave) / sample_rate, round(_FRAME * sample_rate)
    if not len(wave):
        return "empty"
    if not np.isfinite(wave).all():
        return "not_finite"
    if seconds < limits.min_seconds or seconds > limits.max_seconds:
        return "too_short" if seconds < limits.min_seconds else "too_long"
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    loud = frames.std(axis=1, dtype=np.float64) > 10 ** (limits.silence_dbfs / 20)  # a constant is no sound
    if loud.sum() * _FRAME < limits.min_sound_seconds - 1e-9:
        return "silent"
    if (np.abs(wave) >= 1 - 2**-15).mean() > limits.max_clipped:
        return "clipped"
    return check_text(utterance.text, limits)


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


def decode_audio(audio: str | Path | bytes, sample_rate: int = SAMPLE_RATE) -> tuple[np.ndarray, str | None]:
    """The wave of `load_audio` and None, or an empty wave and "missing_audio" or "unreadable"; any samples pass."""
    nothing = np.zeros(0, np.float32)
    if not isinstance(audio, bytes) and not Path(audio).is_file():
        return nothing, "missing_audio"
    try:
        return _decoded(audio, "audio", sample_rate), None
    except InputError:
        return nothing, "unreadable"


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
