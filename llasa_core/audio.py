"""Audio files: any rate, channels and format that libsndfile reads -> float32 mono at one rate;
16-bit wavs out.

Files are read in blocks, and what a header announces is never allocated: a forged one costs
nothing.
"""

import io
import re
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.files import brief, is_url, publish, read_bytes

SAMPLE_RATE = 16_000  # Hz

BLOCK = 2**18  # samples of each channel read at a time

MOST_CHANNELS = 64

MOST_SAMPLES = 2**28  # of one recording: 1.5 hours at 48 kHz, 1 GiB


def load_audio(path: str | Path | bytes, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """An audio file (or the bytes of one) of any rate and number of channels as float32 (T,): mono,
    `sample_rate` Hz.

    Channels are averaged; resampling is soxr's (very high quality). Raises InputError, which names
    the file, if it is missing, unreadable, cut off or empty, or holds samples that are not finite.
    """
    name = "audio" if isinstance(path, bytes) else str(path)
    wave = _decoded(path, name, sample_rate)
    if not len(wave):
        raise InputError(f"{name}: no samples, expected audio")
    if not np.isfinite(wave).all():
        raise InputError(f"{name}: holds NaN or infinite samples, expected audio")
    return wave


def decode_audio(
    audio: str | Path | bytes, sample_rate: int = SAMPLE_RATE
) -> tuple[np.ndarray, str | None]:
    """The wave of `load_audio` and None, or an empty wave and "missing_audio" or "unreadable"; any
    samples pass.
    """
    nothing = np.zeros(0, np.float32)
    if is_url(audio):
        try:
            audio = read_bytes(audio)
        except FileNotFoundError:
            return nothing, "missing_audio"
        except OSError as error:  # of the network, not of the recording: nothing is dropped for it
            raise InputError(
                f"{audio}: cannot be read ({brief(error)}); run again to go on"
            ) from None
    elif not isinstance(audio, bytes) and not Path(audio).is_file():
        return nothing, "missing_audio"
    try:
        return _decoded(audio, "audio", sample_rate), None
    except InputError:
        return nothing, "unreadable"


def header_seconds(path: Path, where: str) -> float:
    """Length of an audio file as its header says; InputError, which begins with `where`, if it
    cannot be read.
    """
    import soundfile

    try:
        return soundfile.info(str(path)).duration
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"{where}: audio file {path} cannot be read ({brief(error, 80)})"
        ) from None


def _decoded(source: str | Path | bytes, name: str, sample_rate: int) -> np.ndarray:
    """float32 (T,) at `sample_rate`; empty and non-finite waves pass. InputError if the file cannot
    be decoded.
    """
    import soundfile

    if is_url(source):
        try:
            source = read_bytes(source)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({brief(error)})") from None
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise InputError(f"{name}: no such audio file")
    try:
        with soundfile.SoundFile(
            _Content(source) if isinstance(source, bytes) else str(source)
        ) as file:
            if file.channels > MOST_CHANNELS or not 1000 <= file.samplerate <= 1_000_000:
                raise InputError(
                    f"{name}: {file.channels} channels at {file.samplerate} Hz, expected speech"
                )
            wave, rate, notes = _samples(file), file.samplerate, file.extra_info
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: cannot be read as audio ({brief(error)})") from None
    # libsndfile reads what is left of a WAV that was cut off and only notes it; all ones is the
    # size of a stream.
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)", notes, re.MULTILINE)
    if cut and int(cut[2]) < int(cut[1]) < 0x7FFF0000:
        raise InputError(f"{name}: cut off, {cut[2]} of its {cut[1]} bytes of audio are there")
    return _resampled(wave, rate, sample_rate)


class _Content(io.BytesIO):
    """Bytes in which a damaged file may ask for a place before their start: libsndfile's callbacks
    cannot raise.
    """

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _samples(file) -> np.ndarray:
    """float32 (T,): the mean of the channels, read in blocks until the file ends. InputError beyond
    MOST_SAMPLES.
    """
    blocks, total, size = [], 0, max(1, BLOCK // file.channels)
    while True:
        block = file.read(size, dtype="float32", always_2d=True)
        blocks.append(block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0])
        total += len(block)
        if len(block) < size:
            return np.concatenate(blocks)
        if total > MOST_SAMPLES:
            raise InputError(
                f"{file.name}: more than {MOST_SAMPLES} samples, expected at most 1.5 hours at"
                " 48 kHz"
            )


def _resampled(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate or not len(wave):
        return np.ascontiguousarray(wave)
    import soxr

    return soxr.resample(wave, rate, sample_rate, quality="VHQ").astype(np.float32, copy=False)


def write_wav(path: Path, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """float32 (T,) in -1..1, clipped there, to a 16-bit mono WAV file that appears whole or not at
    all.
    """
    import soundfile

    buffer = io.BytesIO()
    samples = np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    publish(Path(path), buffer.getvalue())
