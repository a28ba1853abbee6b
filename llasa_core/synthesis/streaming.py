"""Codes -> audio while the codes are still being sampled: windows of codes are decoded, their
middles kept.

A window is `left` codes that were heard before, `chunk` new ones, and `right` codes to come; the
wave is cut at hop borders, without a cross-fade. The decoders look at whole utterances, so the
edges of a window sound a little different: results/benchmarks/streaming.json has the error by left
and right. A window that covers the utterance is exact.
"""

from __future__ import annotations

import sys
import wave as wave_file
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from llasa_core.audio import sixteen_bit
from llasa_core.errors import at_least, check_fields
from llasa_core.files import names_full_disk
from llasa_core.manifest import Request
from llasa_core.synthesis.decoding import Row
from llasa_core.synthesis.guards import Guards, longest_loop
from llasa_core.synthesis.sampling import Sampling, candidate_seed

if TYPE_CHECKING:
    from llasa_core.codecs.interface import Codec
    from llasa_core.synthesis.guards import Spoken
    from llasa_core.synthesis.synthesizer import Synthesizer


@dataclass(frozen=True)
class Window:
    """Codes of a decoder's window: `chunk` new ones between `left` old ones and `right` to come;
    `first` is the size of the first chunk, small for an early start."""

    chunk: int = 50
    left: int = 50
    right: int = 25
    first: int = 15

    def __post_init__(self) -> None:
        bounds = {"chunk": at_least(1), "first": at_least(1)}
        check_fields(self, "window", **bounds, left=at_least(0), right=at_least(0))


class StreamDecoder:
    """Takes codes as they come and gives back the samples that are final. `prompt`: codes of a
    voice that was heard before; they are context and never come out. Memory grows by the codes (4
    bytes each), not by the audio."""

    def __init__(
        self, codec: Codec, window: Window | None = None, prompt: np.ndarray | tuple = ()
    ) -> None:
        self.codec, self.window = codec, window or Window()
        self.hop = round(codec.sample_rate / codec.frame_rate)
        self.codes = np.asarray(prompt, np.int32)
        self.done = self.start = len(self.codes)

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Add codes (L,); the wave float32 (n * hop,) of all chunks that have their right context,
        often empty.
        """
        self.codes = np.concatenate([self.codes, np.asarray(codes, np.int32)])
        pieces = [np.zeros(0, np.float32)]
        while len(self.codes) >= self.done + self.size + self.window.right:
            pieces.append(
                self._decoded(self.done + self.size, self.done + self.size + self.window.right)
            )
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        """The wave of what is left; there are no more codes."""
        if self.done == len(self.codes):
            return np.zeros(0, np.float32)
        return self._decoded(len(self.codes), len(self.codes))

    @property
    def size(self) -> int:
        """Codes of the chunk that comes next."""
        return self.window.first if self.done == self.start else self.window.chunk

    def _decoded(self, stop: int, seen: int) -> np.ndarray:
        """The wave of codes done..stop from those up to `seen`; then these are done."""
        begin = max(0, self.done - self.window.left)
        wave = self.codec.decode_window(self.codes, begin, seen)
        piece = wave[(self.done - begin) * self.hop : (stop - begin) * self.hop]
        self.done = stop
        return piece


class SpeechStream:
    """One request, spoken while it is sampled: iterate over waves float32 (n * hop,); afterwards
    `spoken` tells.

    The codes are those of `Synthesizer.speak` with the same request, whatever the window. Guards
    act while nothing has been heard: an utterance that is over before its first chunk and fails is
    sampled again. Later a loop only stops the speech, and `spoken.failed` says so; `spoken.wave` is
    empty, the audio has gone out. The constructor raises InputError for a request that cannot be
    spoken.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        request: Request,
        sampling: Sampling | None = None,
        window: Window | None = None,
        guards: Guards | None = None,
    ) -> None:
        self.synthesizer, self.request, self.guards = synthesizer, request, guards
        self.sampling, self.window = sampling or Sampling(), window or Window()
        (self.prompt,), (self.limit,) = synthesizer.prepare([request], self.sampling, guards)
        self.spoken: Spoken | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        rejected: list[tuple[str, ...]] = []
        attempts = self.guards.attempts if self.guards is not None else 1
        for attempt in range(attempts):
            heat = attempt * self.guards.heat if self.guards is not None else 0.0
            waves, row = self._attempt(candidate_seed(self.request.seed, attempt), heat), None
            # Kept for the guards only while an attempt may still be rejected.
            heard = [np.zeros(0, np.float32)]
            early = True
            for wave, row in waves:
                if row is None:
                    early, heard = False, []
                    yield wave
                else:
                    heard.append(wave)
            last = np.concatenate(heard)
            why = self._reasons(row, last, early)
            if early and why and attempt + 1 < attempts:
                rejected.append(why)
                continue
            self.spoken = self._spoken(row, attempt + 1, tuple(rejected), why)
            yield last
            return

    def _attempt(self, seed: int, heat: float) -> Iterator[tuple[np.ndarray, Row | None]]:
        """(wave, None) for each chunk but the last one, which comes with the Row."""
        synthesizer, voice = self.synthesizer, self.request.voice
        decoder = StreamDecoder(
            synthesizer.codec, self.window, () if voice is None else voice.codes
        )
        sampling = replace(self.sampling, temperature=self.sampling.temperature + heat)
        with synthesizer.drawing(self.prompt, self.limit, seed, sampling) as drawing:
            given, row = 0, None
            while row is None:
                wanted = decoder.done + decoder.size + decoder.window.right - len(decoder.codes)
                drawn = drawing.take(given + wanted)
                new, given = self._codes(drawn.ids[given:]), len(drawn.ids)
                if drawn.reason:
                    row = drawn
                    decoder.codes = np.concatenate([decoder.codes, new])
                else:
                    wave = decoder.push(new)
                    if self._loops(decoder.codes[decoder.start :]):
                        row = replace(drawn, reason="loop")
                    yield wave, None
        yield decoder.finish(), row

    def _codes(self, ids: np.ndarray) -> np.ndarray:
        return self.synthesizer.vocabulary.ids_to_codes(ids)

    def _loops(self, codes: np.ndarray) -> bool:
        return self.guards is not None and longest_loop(codes) >= self.guards.loop_codes

    def _reasons(self, row: Row, wave: np.ndarray, whole: bool) -> tuple[str, ...]:
        """What speaks against the utterance; silence is judged where the wave is still there as a
        whole.
        """
        if self.guards is None:
            return ()
        codec = self.synthesizer.codec
        heard = wave if whole else np.zeros(0, np.float32)
        ended, codes = row.reason == "end", self._codes(row.ids)
        return self.guards.reasons(
            self.request, codes, ended, heard, codec.sample_rate, codec.frame_rate
        )

    def _spoken(self, row: Row, attempts: int, rejected: tuple, failed: tuple) -> Spoken:
        from llasa_core.synthesis.decoding import Generated
        from llasa_core.synthesis.guards import Spoken

        codes = self._codes(row.ids)
        generated = Generated(codes, row.reason == "end", row.reason, row.log_prob, row.steps)
        nothing = np.zeros(0, np.float32)
        return Spoken(
            self.request, nothing, generated, len(self.prompt), attempts, rejected, failed
        )


class SpeechFile:
    """16-bit mono audio that grows: a WAV whose header is right after every chunk, or "-", raw
    samples on standard output (little-endian). Use as a context manager; `seconds` says how much
    has been written."""

    def __init__(self, path: str | Path, sample_rate: int) -> None:
        self.sample_rate, self.samples = sample_rate, 0
        self._raw: BinaryIO | None = sys.stdout.buffer if str(path) == "-" else None
        self._wav: wave_file.Wave_write | None = None
        if self._raw is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb")  # noqa: SIM115  both are closed by __exit__
            self._wav = wave_file.open(self._file, "wb")  # noqa: SIM115
            self._wav.setparams((1, 2, sample_rate, 0, "NONE", ""))

    def __enter__(self) -> SpeechFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wav is not None:
            with suppress(OSError):  # a full disk, which `write` has told
                self._wav.close()
            with suppress(OSError):
                self._file.close()

    @property
    def seconds(self) -> float:
        """Seconds written."""
        return self.samples / self.sample_rate

    def write(self, wave: np.ndarray) -> None:
        """Append a wave (T,) in -1..1, clipped there; it is on its way when this returns."""
        data = sixteen_bit(wave).tobytes()
        if self._raw is not None:
            self._raw.write(data)
            self._raw.flush()
        elif self._wav is not None:
            with names_full_disk(self._file.name):
                self._wav.writeframes(data)  # and the sizes in the header
                self._file.flush()
        self.samples += len(wave)

    def write_all(self, waves: Iterable[np.ndarray]) -> None:
        """Append waves as they come."""
        for wave in waves:
            self.write(wave)
