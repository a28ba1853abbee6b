"""Audio files: any rate, channels and format that libsndfile reads -> float32 mono at one rate;
16-bit wavs and MP3 out.

Files are read in blocks, and what a header announces is never allocated: a forged one costs
nothing.
"""

import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.files import brief, is_url, publish, read_bytes

SAMPLE_RATE = 16_000  # Hz

BLOCK = 2**18  # samples of each channel read at a time

MOST_CHANNELS = 64

MOST_SAMPLES = 2**28  # of one recording: 1.5 hours at 48 kHz, 1 GiB

# What libsndfile reads, the preferred first where one recording is there in several formats.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".oga")
AUDIO_SUFFIXES += (".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64")

# Audio of formats that it does not read, and how their files begin.
FFMPEG_SUFFIXES = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".amr", ".3gp", ".ape", ".wv")
_FFMPEG_BEGINNINGS = re.compile(
    rb"....ftyp|\x30\x26\xb2\x75|\x1a\x45\xdf\xa3|#!AMR|\xff[\xf0\xf1\xf8\xf9]|MAC |wvpk", re.DOTALL
)


class AudioError(InputError):
    """A recording that cannot be used; `reason` is "unreadable", "cut_off" or "needs_ffmpeg"."""

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


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


def load_recording(path: str | Path) -> tuple[np.ndarray, int]:
    """`load_audio` at the file's own sample rate -> float32 (T,), Hz."""
    import soundfile

    try:
        rate = soundfile.info(str(path)).samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: no audio ({brief(error, 80)}), expected a recording") from None
    return load_audio(path, rate), rate


def recording_id(wave: np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of a wave's samples at 16 kHz, whatever its file is."""
    return hashlib.sha256(np.ascontiguousarray(wave, np.float32).tobytes()).hexdigest()[:16]


def decode_audio(
    audio: str | Path | bytes, sample_rate: int = SAMPLE_RATE, most_seconds: float | None = None
) -> tuple[np.ndarray, str | None]:
    """The wave of `load_audio` and None, or an empty wave and why there is none; any samples pass.

    Reasons: "missing_audio", "bad_path" (too long for the file system, or no text), "unreadable",
    "cut_off", "needs_ffmpeg". Of a recording of more than `most_seconds` only somewhat more than
    that is decoded: enough to see that it is too long, whatever its file unpacks to.
    """
    nothing = np.zeros(0, np.float32)
    if is_url(audio):
        try:
            audio = read_bytes(audio)
        except FileNotFoundError:
            return nothing, "missing_audio"
        except OSError as error:  # of the network, not of the recording: nothing is dropped for it
            raise InputError(
                f"{audio}: cannot be read ({brief(error)}); run again to resume"
            ) from None
    elif not isinstance(audio, bytes):
        try:
            if "\0" in str(audio) or not Path(audio).is_file():
                return nothing, "bad_path" if "\0" in str(audio) else "missing_audio"
        except (OSError, UnicodeError):
            return nothing, "bad_path"
    try:
        return _decoded(audio, "audio", sample_rate, most_seconds), None
    except InputError as error:
        return nothing, getattr(error, "reason", "unreadable")


def header_seconds(path: Path, where: str) -> float:
    """Seconds of an audio file by its header; InputError, prefixed with `where`, if unreadable."""
    import soundfile

    try:
        return soundfile.info(str(path)).duration
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"{where}: audio file {path} cannot be read ({brief(error, 80)})"
        ) from None


def _decoded(
    source: str | Path | bytes, name: str, sample_rate: int, most_seconds: float | None = None
) -> np.ndarray:
    """float32 (T,) at `sample_rate`, perhaps empty or not finite. AudioError if undecodable."""
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
            _Content(source) if isinstance(source, bytes) else os.fsencode(source)
        ) as file:
            if file.channels > MOST_CHANNELS or not 1000 <= file.samplerate <= 1_000_000:
                raise AudioError(
                    f"{name}: {file.channels} channels at {file.samplerate} Hz, expected speech"
                )
            most = most_seconds and int(most_seconds * file.samplerate) + 1
            wave = _samples(file, most, name)
            if not most or len(wave) < most:
                _refuse_cut_off(file, len(wave), name)
            return _resampled(wave, file.samplerate, sample_rate)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        if _needs_ffmpeg(source):
            raise AudioError(
                f"{name}: unreadable: needs ffmpeg, expected wav, flac, mp3, ogg or aiff; convert"
                " it with ffmpeg",
                "needs_ffmpeg",
            ) from None
        raise AudioError(f"{name}: cannot be read as audio ({brief(error)})") from None


def _needs_ffmpeg(source: str | Path | bytes) -> bool:
    """Whether what libsndfile does not read is audio of another kind, by its name or beginning."""
    if isinstance(source, bytes):
        return _FFMPEG_BEGINNINGS.match(source) is not None
    with open(source, "rb") as file:
        found = _FFMPEG_BEGINNINGS.match(file.read(16))
    return found is not None or Path(source).suffix.lower() in FFMPEG_SUFFIXES


def _refuse_cut_off(file, samples: int, name: str) -> None:
    """AudioError where less was decoded than the file announces.

    libsndfile reads what is left of a file that was cut off. Of WAV, AIFF and AU it notes the sizes
    (all ones is the size of a stream), of MP3 it knows the length of the whole, of Ogg it misses
    the end.
    """
    notes = file.extra_info
    sizes = re.search(
        r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", notes, re.MULTILINE
    )
    if sizes and int(sizes[2]) < int(sizes[1]) < 0x7FFF0000:
        raise AudioError(
            f"{name}: cut off, {sizes[2]} of its {sizes[1]} bytes of audio are there", "cut_off"
        )
    if file.format == "MP3" and samples + file.samplerate // 10 < file.frames:
        raise AudioError(
            f"{name}: cut off, {samples} of its {file.frames} samples are there", "cut_off"
        )
    if "without an End-Of-Stream flag" in notes:
        raise AudioError(f"{name}: cut off, its end is missing", "cut_off")


class _Content(io.BytesIO):
    """A damaged file may seek before its start; libsndfile's callbacks cannot raise."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _samples(file, most: int | None, name: str) -> np.ndarray:
    """float32 (T,), channels averaged, `most` samples at most. AudioError beyond MOST_SAMPLES."""
    blocks, total, size = [], 0, max(1, BLOCK // file.channels)
    while True:
        block = file.read(min(size, most - total) if most else size, "float32", always_2d=True)
        blocks.append(block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0])
        total += len(block)
        if len(block) < size or total == most:
            return np.concatenate(blocks)
        if total > MOST_SAMPLES:
            raise AudioError(
                f"{name}: more than {MOST_SAMPLES} samples, expected at most 1.5 hours at 48 kHz"
            )


def _resampled(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate or not len(wave):
        return np.ascontiguousarray(wave)
    import soxr

    return soxr.resample(wave, rate, sample_rate, quality="VHQ").astype(np.float32, copy=False)


def sixteen_bit(wave: np.ndarray) -> np.ndarray:
    """int16 (T,), little-endian, of a wave (T,), clipped to -1..1: the samples of every file that
    is written here.
    """
    return np.round(np.clip(wave, -1, 1) * 32767).astype("<i2")


def wav_bytes(wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit mono WAV file of a wave (T,), as `write_wav` writes it."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, sixteen_bit(wave), sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: Path, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Clip float32 (T,) to -1..1 and write it as a 16-bit mono WAV file, by rename."""
    # Not synced: journals know its sha256
    publish(Path(path), wav_bytes(wave, sample_rate), synced=False)


def write_mp3(path: Path, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Clip float32 (T,) to -1..1 and write it as a mono MP3 file, about 45 kbit/s, by rename.

    Every browser plays it, and the same wave makes the same bytes: Ogg files hold a random number.
    """
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, sixteen_bit(wave), sample_rate, format="MP3", compression_level=0.4)
    publish(Path(path), buffer.getvalue())


def listen(path: str | Path):
    """A player for the last line of a notebook's cell; in batch runs its path, not its sound."""
    if os.environ.get("LLASA_BATCH"):
        return print(f"listen: {path}")
    from IPython.display import Audio

    return Audio(filename=str(path))
