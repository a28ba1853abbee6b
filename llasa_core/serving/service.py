"""Speech for many at once: a bounded number of requests, each in a thread, one loop for their rows.

A thread runs what `llasa synthesize` runs for one text, so a request sounds as it does offline. The
codec has one thread of its own: codecs keep state while they decode, and every thread that computes
with torch brings a team of OpenMP threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.serving.engine_rows import EngineRows
from llasa_core.serving.formats import GrowingFile, encoded
from llasa_core.serving.requests import RefusedError, SpeechRequest
from llasa_core.serving.shared_loop import GoneError, Line, SharedLoop, Ticket
from llasa_core.serving.voices import NamedVoice, request_in
from llasa_core.synthesis.decoding import generating
from llasa_core.synthesis.guards import Guards, Spoken
from llasa_core.synthesis.long_text import speak_text, stream_long
from llasa_core.synthesis.open_loop import OpenLoop
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.text import CHARACTERS

if TYPE_CHECKING:
    from llasa_core.synthesis.synthesizer import Synthesizer

LOG = logging.getLogger("llasa.serve")


@dataclass(frozen=True)
class Limits:
    """slots: rows drawn at a time, and requests spoken at a time; queue: requests that may wait
    besides; seconds: from a request to its last byte; characters: of a text; window: seconds that a
    row waits for company.
    """

    slots: int = 16
    queue: int = 64
    seconds: float = 120.0
    characters: int = 4096
    window: float = 0.01


@dataclass(frozen=True)
class Speaking:
    """How texts are spoken unless a request says otherwise. guards: None without."""

    sampling: Sampling = field(default_factory=Sampling)
    guards: Guards | None = field(default_factory=Guards)
    piece_characters: int = CHARACTERS


@dataclass(frozen=True)
class Piece:
    """Audio for the client, and its seconds; `last` ends the speech, whose texts are `spoken`."""

    audio: bytes
    seconds: float
    last: bool = False
    spoken: tuple[Spoken, ...] = ()


Tell = Callable[[Piece | BaseException], None]  # called in the thread of the request


class SpeechService:
    """Speaks requests in the voices of `voices`. `start` before the first one, `stop` after the
    last.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        voices: dict[str, NamedVoice],
        speaking: Speaking | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.synthesizer, self.voices = synthesizer, voices
        self.speaking, self.limits = speaking or Speaking(), limits or Limits()
        self.open = 0  # requests that are spoken or wait
        self._counting, self._writing_out = threading.Lock(), threading.Lock()
        self._pool = ThreadPoolExecutor(self.limits.slots, "speaks")
        self._codec = ThreadPoolExecutor(1, "decodes")
        model, engine, slots = synthesizer.model, synthesizer.engine, self.limits.slots
        row = (synthesizer.speech_answers, self.speaking.sampling)
        make = partial(OpenLoop, model, *row, slots, synthesizer.context)
        if engine is not None:
            make = partial(EngineRows, engine, *row, slots)
        drawn = slots if engine is None else 1  # rows a step of the model here
        self.loop = SharedLoop(make, self.limits.window, generating(model, drawn))

    def start(self) -> None:
        """Begin to draw rows."""
        self.loop.start()

    def stop(self) -> None:
        """Finish what is being spoken and end all threads."""
        self._pool.shutdown()
        self._codec.shutdown()
        self.loop.stop()

    @property
    def sample_rate(self) -> int:
        """Of all speech, Hz."""
        return self.synthesizer.codec.sample_rate

    def settings(self, asked: SpeechRequest) -> tuple[Request, Sampling, Guards | None]:
        """What is spoken how. RefusedError for a voice or text that cannot be."""
        if asked.voice not in self.voices:
            raise RefusedError(
                400,
                f"`voice` is {asked.voice[:40]!r}, expected one of {', '.join(self.voices)}",
                code="voice_not_found",
                param="voice",
            )
        if asked.streamed and self.synthesizer.engine is not None:
            name = self.synthesizer.engine.name
            raise RefusedError(
                400, f"the engine {name} draws whole batches, expected no stream", param="stream"
            )
        chosen = {name: getattr(asked, name) for name in ("temperature", "top_k", "top_p")}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        sampling, guards = replace(self.speaking.sampling, **chosen), self.speaking.guards
        if asked.attempts is not None:
            bounds = guards or self.synthesizer.guards
            guards = replace(bounds, attempts=asked.attempts) if asked.attempts else None
        try:
            with self._writing_out:  # inflect keeps state while it counts
                voice = self.voices[asked.voice]
                request = request_in(voice, asked.input, asked.seed, asked.normalise)
            self.synthesizer.speakable([request], sampling, self.speaking.piece_characters, [])
        except InputError as error:
            message = str(error).removeprefix("request utterance: ")
            raise RefusedError(400, f"`input`: {message}", param="input") from None
        return request, sampling, guards

    def speak(self, asked: SpeechRequest, what: tuple, ticket: Ticket, tell: Tell) -> None:
        """Begin to speak `settings(asked)`; `tell` is called with every Piece, or with an error.

        RefusedError (429) where too many requests are open.
        """
        with self._counting:
            self.refuse_if_full()
            self.open += 1
        ticket.future = self._pool.submit(self._in_thread, asked, what, ticket, tell)

    def refuse_if_full(self) -> None:
        """RefusedError (429) where too many requests are open."""
        if self.open >= self.limits.slots + self.limits.queue:
            raise RefusedError(
                429,
                f"{self.open} requests are open, expected another try later",
                kind="rate_limit_error",
                code="queue_full",
                retry_after=1,
            )

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this request any more, whether it is finished or not."""
        if ticket.left:
            return
        ticket.leave()
        if ticket.future is not None and ticket.future.cancel():  # no thread has begun it
            self._close()

    def _in_thread(self, asked: SpeechRequest, what: tuple, ticket: Ticket, tell: Tell) -> None:
        last: Piece | BaseException
        try:
            ticket.check()
            last = self._spoken(asked, what, ticket, tell)
        except GoneError as error:
            last = error
        except Exception as error:
            LOG.exception("a request failed")
            last = error
        self._close()  # first: who has heard the end may ask again
        tell(last)

    def _close(self) -> None:
        with self._counting:
            self.open -= 1

    def _spoken(self, asked: SpeechRequest, what: tuple, ticket: Ticket, tell: Tell) -> Piece:
        """The last piece; those before it are told."""
        rate, name = self.sample_rate, asked.response_format
        synthesizer = self.synthesizer.through(Line(self.loop, ticket, self.synthesizer.hidden))
        synthesizer.codec = _CodecInTurn(self.synthesizer.codec, self._codec, ticket)
        characters = self.speaking.piece_characters
        if not asked.streamed:
            whole = speak_text(synthesizer, *what, characters)
            audio = encoded(name, whole.wave, rate)
            return Piece(audio, len(whole.wave) / rate, True, whole.pieces)
        request, sampling, guards = what
        spoken: list[Spoken] = []
        file = GrowingFile(name, rate)
        for wave in stream_long(
            synthesizer, request, sampling, None, guards, characters, spoken.append
        ):
            if audio := file.write(wave):
                tell(Piece(audio, len(wave) / rate))
            ticket.check()
        return Piece(file.finish(), 0.0, True, tuple(spoken))


class _CodecInTurn:
    """A codec in a thread of its own; a request that is over loses its turn."""

    def __init__(self, codec, thread: ThreadPoolExecutor, ticket: Ticket) -> None:
        self._codec, self._thread, self._ticket = codec, thread, ticket

    def __getattr__(self, name: str):
        return getattr(self._codec, name)

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        return self._in_turn(self._codec.decode, codes)

    def decode_window(self, codes: np.ndarray, start: int, stop: int) -> np.ndarray:
        return self._in_turn(self._codec.decode_window, codes, start, stop)

    def _in_turn(self, work: Callable, *arguments):
        def run():
            self._ticket.check()
            return work(*arguments)

        return self._thread.submit(run).result()
