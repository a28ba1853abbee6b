"""Classical codecs to compare a speech tokenizer with: Opus (libsndfile) and Codec2 (package
pycodec2).

They have no codebook: a wave becomes a `Coded` packet. They work with `roundtrip.resynthesize`, not
with a language model. Bits are counted in the Opus packets alone, because the Ogg container adds a
third.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llasa_core.codecs.interface import Codec
from llasa_core.errors import InputError, needs_extra

OPUS_RANGE = (6_000, 256_000)  # bits a second that libsndfile sets for one channel

CODEC2_MODES = (3200, 2400, 1600, 1400, 1300, 1200, 700)  # bits a second; 700 is mode 700C

# Delay of decoded speech in samples, by bits per second: where STOI of 17 s of speech is highest.
CODEC2_DELAY = {700: 260}

CODEC2_USUAL_DELAY = 160


class Coded(NamedTuple):
    """An encoded wave."""

    data: bytes
    samples: int  # of the wave, at the codec's sample rate
    bits: int  # of speech, without the container


class OpusCodec(Codec):
    """Opus at a target rate, 16 kHz in and out; variable, so bits differ by utterance."""

    sample_rate = 16_000

    def __init__(self, bits_per_second: int):
        low, high = OPUS_RANGE
        if not low <= bits_per_second <= high:
            raise InputError(f"Opus at {bits_per_second} bits a second, expected {low} to {high}")
        self.name = f"opus-{bits_per_second / 1000:g}k"
        # libsndfile: rate = 256,000 - level * 250,000
        self.level = (high - bits_per_second) / (high - low)

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "OpusCodec":
        """`opus-12k`: 12 kbit/s."""
        return cls(round(1000 * _rate(name, name.removeprefix("opus-").removesuffix("k"))))

    def bits(self, codes: Coded) -> float:
        return float(codes.bits)

    def encode(self, waves: Sequence[np.ndarray]) -> list[Coded]:
        """float32 (T,) each -> one packet stream each."""
        import soundfile

        coded = []
        for wave in waves:
            file = io.BytesIO()
            soundfile.write(
                file,
                wave,
                self.sample_rate,
                format="OGG",
                subtype="OPUS",
                compression_level=self.level,
            )
            data = file.getvalue()
            # After the head and the tags
            coded.append(Coded(data, len(wave), 8 * sum(ogg_packets(data)[2:])))
        return coded

    def decode(self, coded: Sequence[Coded]) -> list[np.ndarray]:
        """Streams -> float32 (T,) each, as long as the waves were."""
        import soundfile

        waves = [soundfile.read(io.BytesIO(one.data), dtype="float32")[0] for one in coded]
        return [_fitted(wave, one.samples) for wave, one in zip(waves, coded, strict=True)]


class Codec2Codec(Codec):
    """Codec2, for radio: 8 kHz, 700 to 3,200 bits a second."""

    sample_rate = 8_000

    def __init__(self, bits_per_second: int):
        if bits_per_second not in CODEC2_MODES:
            raise InputError(
                f"Codec2 at {bits_per_second} bits a second, expected one of {CODEC2_MODES}"
            )
        with needs_extra("Codec2", "codecs", "pycodec2"):
            import pycodec2
        self.name = f"codec2-{bits_per_second}"
        self._new = lambda: pycodec2.Codec2(bits_per_second)
        self._delay = CODEC2_DELAY.get(bits_per_second, CODEC2_USUAL_DELAY)

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "Codec2Codec":
        """`codec2-1300`: 1,300 bit/s."""
        return cls(round(_rate(name, name.removeprefix("codec2-"))))

    def bits(self, codes: Coded) -> float:
        return float(codes.bits)

    def encode(self, waves: Sequence[np.ndarray]) -> list[Coded]:
        """float32 (T,) each -> whole frames each, the last one padded with silence."""
        coded = []
        for wave in waves:
            codec = self._new()  # it is stateful
            size = codec.samples_per_frame()
            frames = math.ceil((len(wave) + self._delay) / size)
            padded = np.zeros(frames * size, np.int16)
            padded[: len(wave)] = np.clip(np.round(np.asarray(wave) * 32767), -32768, 32767)
            data = b"".join(codec.encode(frame) for frame in padded.reshape(frames, size))
            coded.append(Coded(data, len(wave), frames * codec.bits_per_frame()))
        return coded

    def decode(self, coded: Sequence[Coded]) -> list[np.ndarray]:
        """Frames -> float32 (T,) each, as long as the original, the codec's delay removed."""
        waves = []
        for one in coded:
            codec = self._new()
            size = (codec.bits_per_frame() + 7) // 8
            frames = [one.data[start : start + size] for start in range(0, len(one.data), size)]
            wave = (
                np.concatenate([codec.decode(frame) for frame in frames]).astype(np.float32) / 32768
            )
            waves.append(_fitted(wave[self._delay :], one.samples))
        return waves


class Metered:
    """Wraps a codec and records the bits and the seconds of every wave that it encodes."""

    def __init__(self, codec: Codec):
        self.codec, self.name, self.sample_rate = codec, codec.name, codec.sample_rate
        self.bits: list[float] = []
        self.seconds: list[float] = []

    def encode(self, waves: Sequence[np.ndarray]) -> list[Any]:
        coded = self.codec.encode(waves)
        self.bits += [self.codec.bits(one) for one in coded]
        self.seconds += [len(wave) / self.sample_rate for wave in waves]
        return coded

    def decode(self, coded: Sequence[Any]) -> list[np.ndarray]:
        return self.codec.decode(coded)


def _rate(name: str, number: str) -> float:
    if not number.replace(".", "", 1).isdigit():
        raise InputError(f"codec {name!r}: expected a rate, as in opus-12k or codec2-1300")
    return float(number)


def ogg_packets(data: bytes) -> list[int]:
    """Sizes in bytes of the packets of one logical stream (RFC 3533, section 6)."""
    sizes, size, place = [], 0, 0
    while place < len(data):
        if data[place : place + 4] != b"OggS":
            raise InputError(f"Ogg: no page at byte {place}")
        segments = data[place + 27 : place + 27 + data[place + 26]]
        for length in segments:
            size += length
            if length < 255:
                sizes.append(size)
                size = 0
        place += 27 + len(segments) + sum(segments)
    return sizes


def _fitted(wave: np.ndarray, samples: int) -> np.ndarray:
    """Cut, or padded with silence."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))
