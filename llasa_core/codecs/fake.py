"""A codec without a model, for tests.

Each 20 ms frame becomes its loudness and zero-crossing rate, and a tone again: code = loudness bin
* rate bins + rate bin. It costs microseconds, sounds like nothing, and keeps every promise of the
seam.
"""

import math

import numpy as np

from llasa_core.codecs.interface import Codec
from llasa_core.errors import InputError

HOP = 320  # samples

QUIETEST = -60.0  # dB full scale, the lowest loudness bin


class FakeCodec(Codec):
    """Codec over `codebook_size` codes at 16 kHz, 50 codes/s."""

    name = "fake"
    sample_rate = 16_000
    frame_rate = 50.0

    def __init__(self, codebook_size: int = 4096):
        if codebook_size < 1:
            raise InputError(f"fake codec: codebook_size {codebook_size}, expected 1 or more")
        self.codebook_size = codebook_size
        self._rates = math.isqrt(codebook_size)
        self._levels = codebook_size // self._rates

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "FakeCodec":
        """The codec itself: it has no weights."""
        return cls()

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each -> int32 (floor(T / 320),) each."""
        return [self._encode(np.asarray(wave, np.float32)) for wave in waves]

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes (F,) -> float32 (F * 320,) each. InputError outside the codebook."""
        return [self._decode(np.asarray(row, np.int64)) for row in codes]

    def _encode(self, wave: np.ndarray) -> np.ndarray:
        frames = wave[: len(wave) // HOP * HOP].reshape(-1, HOP)
        # (F,) dB full scale
        loudness = 10 * np.log10((frames.astype(np.float64) ** 2).mean(axis=1) + 1e-12)
        level = np.clip((1 - loudness / QUIETEST) * self._levels, 0, self._levels - 1).astype(
            np.int32
        )
        crossings = np.count_nonzero(np.diff(np.signbit(frames), axis=1), axis=1)  # (F,) 0..319
        return level * self._rates + (crossings * self._rates // HOP).astype(np.int32)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        wrong = (codes < 0) | (codes >= self.codebook_size)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"code {codes[at]} at index {at}: "
                f"the fake codec has codes 0..{self.codebook_size - 1}"
            )
        level, rate = np.minimum(codes // self._rates, self._levels - 1), codes % self._rates
        loudness = QUIETEST * (1 - (level + 0.5) / self._levels)  # (F,) dB
        amplitude = np.sqrt(2) * 10 ** (loudness / 20) * (level > 0)
        frequency = (rate + 0.5) * 8000 / self._rates  # (F,) Hz
        # No jumps between frames
        phase = np.cumsum(np.repeat(2 * np.pi * frequency / self.sample_rate, HOP))
        return np.clip(np.repeat(amplitude, HOP) * np.sin(phase), -1, 1).astype(np.float32)
