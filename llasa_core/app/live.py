"""Speech that is played while it is made: a WAV of unknown length, sent as it grows, which the
script of the page plays from its first samples. Its address is a secret of the page that asked.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import threading
from collections.abc import AsyncIterator

import numpy as np

from llasa_core.audio import sixteen_bit

POLL_SECONDS = 0.03
UNKNOWN = 0xFFFFFFFF  # the length that a stream announces
MOST_KEPT = 32  # streams; the oldest is forgotten first


def wav_header(rate: int) -> bytes:
    """The header (44 bytes) of a 16-bit mono WAV whose length is not known yet."""
    layout = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", len(layout))
        + layout + b"data" + struct.pack("<I", UNKNOWN)
    )  # fmt: skip


class LiveSpeech:
    """One growing recording; written by one thread, read by any number of listeners."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ended = False

    def begin(self, rate: int) -> None:
        """The sample rate in Hz, before the first wave."""
        self._parts.append(wav_header(rate))

    def write(self, wave: np.ndarray) -> None:
        """Append a wave float32 (T,)."""
        if len(wave):
            self._parts.append(sixteen_bit(wave).tobytes())

    def end(self) -> None:
        """There is no more."""
        self._ended = True

    async def read(self) -> AsyncIterator[bytes]:
        """All bytes from the first, as they come."""
        sent = 0
        while True:
            ended = self._ended  # before looking: nothing is written after it
            while sent < len(self._parts):
                yield self._parts[sent]
                sent += 1
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)


class LiveSpeeches:
    """Streams by their secret names."""

    def __init__(self) -> None:
        self._speeches: dict[str, LiveSpeech] = {}
        self._lock = threading.Lock()

    def open(self) -> tuple[str, LiveSpeech]:
        """A new one and its name."""
        name, speech = secrets.token_urlsafe(16), LiveSpeech()
        with self._lock:
            self._speeches[name] = speech
            while len(self._speeches) > MOST_KEPT:
                self._speeches.pop(next(iter(self._speeches))).end()
        return name, speech

    def get(self, name: str) -> LiveSpeech | None:
        """The one of a name, if it is known still."""
        return self._speeches.get(name)

    def close(self, name: str) -> None:
        """Forget one; who listens hears it to its end."""
        with self._lock:
            self._speeches.pop(name, None)
