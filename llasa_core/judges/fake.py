"""Judges without models, for tests in milliseconds: they read what `fake_speech` wrote into the
samples.

`fake_speech` holds each character for 20 ms as a constant level and adds a tone for the
speaker; both survive 16-bit PCM at 16 kHz. Any other wave gives some text, vector and score: the
judges are total, like real ones.
"""

import numpy as np

from llasa_core.judges.interface import SAMPLE_RATE, at_16_khz

HOP = 320  # samples a character, 20 ms: a whole number of periods of every tone

TONES = 64  # tones of 50, 100, .. 3200 Hz, one a speaker


def fake_speech(text: str, speaker: int = 0) -> np.ndarray:
    """float32 (320 * characters,) at 16 kHz: this ASCII text by this speaker (0 .. 63)."""
    levels = np.repeat((np.frombuffer(text.encode("ascii"), np.uint8) - 64.0) / 128.0, HOP)
    tone = 0.1 * np.sin(
        2 * np.pi * 50.0 * (speaker % TONES + 1) * np.arange(len(levels)) / SAMPLE_RATE
    )
    return (levels + tone).astype(np.float32)


def _blocks(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    wave = at_16_khz(wave, sample_rate)
    return wave[: len(wave) // HOP * HOP].reshape(-1, HOP)


class FakeTranscriber:
    """Hears the text of `fake_speech`."""

    def __init__(self, name: str = "fake"):
        self.name = self.version = name

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave."""
        return [
            "".join(
                chr(int(np.clip(np.rint(level * 128 + 64), 32, 126)))
                for level in block.mean(axis=1)
            )
            for block in (_blocks(wave, sample_rate) for wave in waves)
        ]


class FakeSpeakerEmbedder:
    """Power of the 64 tones of `fake_speech`, unit length; silence is the constant vector."""

    def __init__(self, name: str = "fake"):
        self.name = self.version = name

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, 64) float32 of unit length."""
        rows = np.full((len(waves), TONES), 1e-6)
        for row, wave in zip(rows, waves, strict=True):
            blocks = _blocks(wave, sample_rate)
            if len(blocks):
                row += (np.abs(np.fft.rfft(blocks)[:, 1 : TONES + 1]) ** 2).mean(axis=0)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class FakeQualityPredictor:
    """1 for silence, 5 for full scale."""

    def __init__(self, name: str = "fake"):
        self.name = self.version = name

    def score(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N,) float32 from 1 to 5."""
        return np.array(
            [
                1 + 4 * min(1.0, float(np.abs(at_16_khz(w, sample_rate)).max(initial=0.0)))
                for w in waves
            ],
            np.float32,
        )
