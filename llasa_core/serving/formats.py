"""A wave in the formats of the speech endpoint, whole or as it grows; all by libsndfile.

Whole WAV and PCM hold the samples of the files that `llasa synthesize` writes. The trap of streams:
a header is out before the length is known, so a WAV says "unknown" (all ones), and of an MP3 the
first frame, in which LAME would write the length at the end, is left out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from llasa_core.audio import sixteen_bit, wav_bytes
from llasa_core.errors import InputError

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
MP3_RATES = (*OPUS_RATES, 11_025, 22_050, 32_000, 44_100)
MP3_STREAM = {"bitrate_mode": "CONSTANT", "compression_level": 0.6}  # 64 kbit/s


@dataclass(frozen=True)
class Format:
    """One value of `response_format`: its media type, libsndfile's names for it, the sample rates
    that it takes (none: any), and whether it can be sent while it grows.
    """

    media_type: str
    container: str = ""
    subtype: str = "PCM_16"
    rates: tuple[int, ...] = ()
    grows: bool = True


FORMATS = {
    "mp3": Format("audio/mpeg", "MP3", "MPEG_LAYER_III", MP3_RATES),
    "opus": Format("audio/ogg", "OGG", "OPUS", OPUS_RATES),
    "flac": Format("audio/flac", "FLAC", grows=False),
    "wav": Format("audio/wav", "WAV"),
    "pcm": Format("audio/pcm"),
}


def formats_at(sample_rate: int, streamed: bool = False) -> list[str]:
    """The names of the formats for waves of a rate."""
    return [
        name
        for name, form in FORMATS.items()
        if (not form.rates or sample_rate in form.rates) and (form.grows or not streamed)
    ]


def check_format(name: str, sample_rate: int, streamed: bool = False) -> None:
    """InputError for a format that is not there."""
    if name not in (there := formats_at(sample_rate, streamed)):
        how = " while it is spoken" if streamed else ""
        raise InputError(f"`response_format` is {name!r}, expected one of {', '.join(there)}{how}")


def encoded(name: str, wave: np.ndarray, sample_rate: int) -> bytes:
    """A whole wave (T,) as a file of format `name`; pcm: 16 bit, little-endian, no header."""
    import soundfile

    if name == "pcm":
        return sixteen_bit(wave).tobytes()
    if name == "wav":
        return wav_bytes(wave, sample_rate)
    form, file = FORMATS[name], io.BytesIO()
    soundfile.write(
        file, sixteen_bit(wave), sample_rate, format=form.container, subtype=form.subtype
    )
    return file.getvalue()


class GrowingFile:
    """A file of format `name` that is sent while it grows: bytes for every wave, and the last ones.

    InputError for a format that cannot grow.
    """

    def __init__(self, name: str, sample_rate: int) -> None:
        check_format(name, sample_rate, streamed=True)
        self._name, self._sink, self._file = name, _Sink(), None
        form = FORMATS[name]
        if name == "wav":
            self._sink.parts.append(_endless_header(sample_rate))
        elif name != "pcm":
            import soundfile

            self._file = soundfile.SoundFile(
                self._sink,
                "w",
                sample_rate,
                1,
                form.subtype,
                format=form.container,
                **(MP3_STREAM if name == "mp3" else {}),
            )

    def write(self, wave: np.ndarray) -> bytes:
        """The bytes of a wave (T,), perhaps none yet."""
        if self._file is None:
            self._sink.parts.append(sixteen_bit(wave).tobytes())
        elif len(wave):
            self._file.write(sixteen_bit(wave))
            self._file.flush()
        return self._taken()

    def finish(self) -> bytes:
        """What is left; nothing comes after it."""
        if self._file is not None:
            self._file.close()
        return self._taken()

    def _taken(self) -> bytes:
        parts, self._sink.parts = self._sink.parts, []
        if self._name == "mp3" and parts and self._sink.first:
            self._sink.first, parts = False, parts[1:]
        return b"".join(parts)


class _Sink:
    """A file that only grows: what is written again at an earlier place is lost."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.first = True
        self._at = self._size = 0

    def write(self, data) -> int:
        data = bytes(data)
        if self._at == self._size:
            self.parts.append(data)
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        pass


def _endless_header(sample_rate: int) -> bytes:
    """The header of a 16-bit mono WAV whose length is not known."""
    import struct

    size, width = 2**32 - 1, 2
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * width, width, 8 * width)
    return (
        b"RIFF"
        + struct.pack("<I", size)
        + b"WAVEfmt \x10\0\0\0"
        + form
        + struct.pack("<4sI", b"data", size)
    )
