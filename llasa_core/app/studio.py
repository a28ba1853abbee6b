"""What the app does with models, without a page: checkpoints by name, one text spoken or searched,
a recording written down.

Everything that a stranger may send is checked here, and every refusal is a sentence (InputError).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llasa_core import judges
from llasa_core.app.work import Job
from llasa_core.audio import decode_audio
from llasa_core.checkpoint import SETTINGS, checkpoint_file, read_settings
from llasa_core.errors import InputError, at_least, between, check_fields, one_of
from llasa_core.judges.interface import Transcriber
from llasa_core.manifest import Request
from llasa_core.search.batch import PAUSE_SECONDS, pieces_of
from llasa_core.search.search import search
from llasa_core.search.strategy import GUIDED, STRATEGIES, Chosen, Strategy
from llasa_core.search.verifiers import VERIFIERS, JudgedVerifier, WantedVoices, WordsVerifier
from llasa_core.synthesis.guards import Guards, Spoken
from llasa_core.synthesis.long_text import speak_text, stream_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.spoken_form import spoken_form
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import CHARACTERS

if TYPE_CHECKING:
    from llasa_core.codecs.interface import Codec

PLAIN = "plain"  # one sample, without a search
WAYS = (PLAIN, *STRATEGIES)
MOST_ATTEMPTS = 20  # of the guards
NAME = "text"  # the id of every request


@dataclass(frozen=True)
class Limits:
    """What one person may ask for. characters: of a text; recording_seconds: of a voice to
    continue; megabytes: of an upload; candidates: of a search; seconds: of work on one request;
    waiting: requests in the queue; kept_seconds: then uploads and speech are deleted.
    """

    characters: int = 1000
    recording_seconds: float = 30.0
    megabytes: int = 20
    candidates: int = 32
    seconds: float = 300.0
    waiting: int = 8
    kept_seconds: int = 900

    def __post_init__(self) -> None:
        counts = ("characters", "megabytes", "candidates", "waiting", "kept_seconds")
        bounds = dict.fromkeys((*counts, "recording_seconds", "seconds"), at_least(1))
        check_fields(self, "limits", **bounds)


@dataclass(frozen=True)
class Order:
    """What a person wants to hear. `recording` and its words are a voice to continue; otherwise
    `speaker` is a tag, "" for none. strategy: plain, or one of search with so many `candidates`.
    attempts: of the guards, 0 for none; they act where nothing is searched. numbers: whether to
    write numbers out first.
    """

    text: str
    speaker: str = ""
    recording: str | None = None
    recording_text: str = ""
    seed: int = 0
    temperature: float = Sampling.temperature
    top_p: float = Sampling.top_p
    strategy: str = PLAIN
    candidates: int = 8
    attempts: int = Guards.attempts
    numbers: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "seed": between(0, 2**53),
            "temperature": between(0, 2),
            "strategy": one_of(*WAYS),
        }
        bounds |= {"top_p": between(0.01, 1), "attempts": between(0, MOST_ATTEMPTS)}
        check_fields(self, "the request", **bounds, candidates=at_least(1))


@dataclass(frozen=True)
class Take:
    """One spoken order: wave float32 (T,) at `rate` Hz and its pieces. chosen: of a search, one a
    piece. first_seconds, seconds: from the start of the work to the first sound and to the end.
    """

    model: str
    order: Order
    rate: int
    wave: np.ndarray
    pieces: tuple[Spoken, ...]
    chosen: tuple[Chosen, ...] = ()
    first_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def codes(self) -> np.ndarray:
        """The codes of all pieces, int (F,)."""
        return np.concatenate([piece.generated.codes for piece in self.pieces])


@dataclass
class Studio:
    """Checkpoints by name, judges, and the thread on which they work. Models are loaded when they
    are first asked for and stay; `codec`: in place of the one that a checkpoint names.
    verifier_models: {verifier: its model, in place of the default}; wanted: the voices of speaker
    tags as a speaker model hears them, without which only recordings have a voice to compare with.
    """

    models: Mapping[str, str | Path]
    codec: str | Codec | None = None
    device: str | None = None
    limits: Limits = field(default_factory=Limits)
    verifier_models: Mapping[str, str] = field(default_factory=dict)
    wanted: Callable[[judges.SpeakerEmbedder], WantedVoices] | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no checkpoint to speak with, expected at least one")
        self._pool = ThreadPoolExecutor(1, "models")
        self._loaded: dict[str, Synthesizer] = {}
        self._verifiers: dict[str, JudgedVerifier] = {}

    def job(self, work: Callable[[Job], object]) -> Job:
        """Work for the thread of the models; iterate over it."""
        return Job(self._pool, work, self.limits.seconds)

    def close(self) -> None:
        """No work after what is being done."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def speakers(self) -> dict[str, tuple[str, ...]]:
        """{checkpoint: its speaker tags}, read from llasa.json without loading a weight."""
        found = {}
        for name, place in self.models.items():
            card = checkpoint_file(place, SETTINGS)
            settings = {} if card is None else read_settings(card)
            found[name] = tuple(settings.get("speakers") or ())
        return found

    def synthesizer(self, name: str) -> Synthesizer:
        """The loaded checkpoint of a name; InputError for any other name."""
        if name not in self.models:
            raise InputError(f"no model {name!r} here, expected {', '.join(self.models)}")
        if name not in self._loaded:
            self._loaded[name] = Synthesizer.from_folder(self.models[name], self.codec, self.device)
        return self._loaded[name]

    def request(self, name: str, order: Order) -> Request:
        """The checked request of an order; InputError with what is wrong with it."""
        text, limits = order.text.strip(), self.limits
        if not text:
            raise InputError("there is no text yet: type what should be said")
        if len(text) > limits.characters:
            raise InputError(
                f"the text has {len(text)} characters, at most {limits.characters} are spoken here"
            )
        if order.strategy != PLAIN and order.candidates > limits.candidates:
            raise InputError(
                f"{order.candidates} candidates, at most {limits.candidates} are searched here"
            )
        synthesizer = self.synthesizer(name)
        voice = None
        if order.recording:
            self.recorded(order.recording)
            if not order.recording_text.strip():
                raise InputError("the recording needs the words that are spoken in it")
            voice = synthesizer.voice(order.recording, order.recording_text)
        if order.numbers:
            text = spoken_form(text)
        speaker = None if voice is not None else order.speaker or None
        return Request(NAME, text, speaker, voice, order.seed)

    def recorded(self, recording: str) -> np.ndarray:
        """The wave float32 (T,) at 16 kHz of a recording; InputError where it is none or too
        long.
        """
        most = self.limits.recording_seconds
        wave, why = decode_audio(recording, 16_000, most + 1)
        if why is not None:
            reasons = {"cut_off": "is cut off", "missing_audio": "is gone: give it again"}
            reasons["needs_ffmpeg"] = "is of a format that is not read here: use wav, flac or mp3"
            raise InputError(f"the recording {reasons.get(why, 'cannot be read as audio')}")
        if len(wave) > most * 16_000:
            raise InputError(
                f"the recording is longer than {most:g} s: give a shorter one, 3 to 10 s are enough"
            )
        if not len(wave) or not np.isfinite(wave).all():
            raise InputError("the recording holds no sound")
        return wave

    def recognised(self, recording: str) -> str:
        """The words that a recogniser hears in a recording."""
        return self._transcriber.transcribe([self.recorded(recording)], 16_000)[0].strip()

    @cached_property
    def _transcriber(self) -> Transcriber:
        name = self.verifier_models.get("words") or WordsVerifier.default
        if name == "none":
            raise InputError("no recogniser listens here: type the words of the recording")
        return judges.load_transcriber(name)

    def perform(self, name: str, order: Order, job: Job, live: bool = False) -> Take:
        """Speak or search an order. With `live` the waves of a plain one are told to the job as
        they are made, and what is heard cannot be sampled again; of a search a sentence is told
        after each score.
        """
        begun = time.perf_counter()
        request = self.request(name, order)
        synthesizer = self.synthesizer(name)
        sampling = Sampling(order.temperature, top_p=order.top_p)
        if order.strategy != PLAIN:
            take = self._searched(name, order, request, sampling, job)
        else:
            guards = None
            if order.attempts:
                guards = replace(synthesizer.guards, attempts=order.attempts)
            take = Take(name, order, synthesizer.codec.sample_rate, np.zeros(0, np.float32), ())
            if live:
                waves, pieces, first = [], [], 0.0
                for wave in stream_long(
                    synthesizer, request, sampling, None, guards, told=pieces.append
                ):
                    first = first or (time.perf_counter() - begun if len(wave) else 0.0)
                    waves.append(wave)
                    job.tell(wave)
                take = replace(
                    take, wave=np.concatenate(waves), pieces=tuple(pieces), first_seconds=first
                )
            else:
                spoken = speak_text(synthesizer, request, sampling, guards)
                take = replace(take, wave=spoken.wave, pieces=spoken.pieces)
        seconds = time.perf_counter() - begun
        return replace(take, seconds=seconds, first_seconds=take.first_seconds or seconds)

    def _searched(self, name, order, request, sampling, job) -> Take:
        synthesizer = self.synthesizer(name)
        rate = synthesizer.codec.sample_rate
        verifiers = self._verifiers_for(order, request, rate)
        strategy = Strategy(order.strategy, candidates=order.candidates)
        chosen = []
        try:
            for verifier in verifiers.values():
                verifier.check([request])
            pieces = pieces_of(request, CHARACTERS)
            for number, piece in enumerate(pieces, 1):
                where = f"part {number} of {len(pieces)}: " if len(pieces) > 1 else ""
                told = _telling(verifiers, job, where)
                chosen += search(synthesizer, [piece], strategy, told, sampling)
        finally:
            for verifier in verifiers.values():
                verifier.forget()
        spoken = tuple(_checked(one, synthesizer) for one in chosen)
        pause = np.zeros(round(PAUSE_SECONDS * rate), np.float32)
        wave = np.concatenate([part for one in spoken for part in (pause, one.wave)][1:])
        return Take(name, order, rate, wave, spoken, tuple(chosen))

    def _verifiers_for(self, order: Order, request: Request, rate: int) -> dict:
        """The verifiers that can score an order: the voice only where there is one to compare
        with.
        """
        compared = request.voice is not None or (self.wanted is not None and request.speaker)
        if order.strategy in GUIDED and not compared:
            raise InputError(
                f"{order.strategy} is guided by the voice and needs one to compare with: give a"
                " recording, or choose best-of-n"
            )
        wanted = self.wanted or (lambda _: WantedVoices({}))
        used = {}
        for name, verifier in VERIFIERS.items():
            asked = self.verifier_models.get(name)
            if asked == "none" or (verifier.needs_voices and not compared):
                continue
            if not (verifier.always or asked or name == Strategy.guide):
                continue
            if name not in self._verifiers:
                model = asked or verifier.default
                self._verifiers[name] = (
                    WordsVerifier(self._transcriber, rate)  # the one that hears recordings too
                    if verifier is WordsVerifier
                    else verifier.load(model, rate, wanted)
                )
            used[name] = self._verifiers[name]
        return used

    def candidate(self, take: Take, piece: int, index: int) -> np.ndarray:
        """The wave float32 (T,) of one candidate of best-of-n, with the voice before it as the
        codec heard it.
        """
        codes = take.chosen[piece].codes[index]
        synthesizer, voice = self.synthesizer(take.model), take.chosen[piece].request.voice
        before = np.zeros(0, np.int32) if voice is None else np.asarray(voice.codes, np.int32)
        (wave,) = synthesizer.codec.decode([np.concatenate([before, codes])])
        return wave[len(before) * synthesizer.hop :]


def _telling(verifiers: Mapping, job: Job, where: str) -> dict:
    """Verifiers that tell the job how many scores there are."""
    count = 0

    def scored(verifier, wave, request) -> float:
        nonlocal count
        score, count = verifier(wave, request), count + 1
        job.tell(f"{where}{count} scores so far")
        return score

    return {name: partial(scored, verifier) for name, verifier in verifiers.items()}


def _checked(chosen: Chosen, synthesizer: Synthesizer) -> Spoken:
    """The chosen utterance with what the guards, which a search does not ask, say of it."""
    spoken, codec = chosen.spoken, synthesizer.codec
    codes, ended = spoken.generated.codes, spoken.generated.ended
    failed = synthesizer.guards.reasons(
        chosen.request, codes, ended, spoken.wave, codec.sample_rate, codec.frame_rate
    )
    return replace(spoken, failed=failed)


def named(places: Sequence[str | Path]) -> dict[str, str | Path]:
    """{name to show: checkpoint}: the last part of its path, or more where two have the same."""
    names: dict[str, str | Path] = {}
    for place in places:
        path = Path(place)
        short = path.name or str(place)
        while short in names and len(short) < len(str(path)):
            parts = len(Path(short).parts) + 1
            short = str(Path(*path.parts[-parts:]))
        if short in names:
            raise InputError(f"{place}: is named twice, expected each checkpoint once")
        names[short] = place
    return names


def tracked_checkpoints(root: str | Path) -> Iterator[Path]:
    """The speaking checkpoints that the repository brings."""
    for card in sorted(Path(root, "results", "checkpoints").glob(f"*/{SETTINGS}")):
        yield card.parent
