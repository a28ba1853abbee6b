"""Verifiers for `search`: judges turned into scores of one candidate, higher is better.

The paper's two (arXiv 2502.04128, section on inference-time scaling): the words, by a recogniser,
and the voice, by a speaker model; and the emotion, by an emotion model. A new one is a subclass of
JudgedVerifier and one line in VERIFIERS; the option of `llasa search` and the tables of a study
follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llasa_core import judges
from llasa_core.audio import load_audio, recording_id
from llasa_core.errors import InputError
from llasa_core.judges.identity import weights_of
from llasa_core.judges.interface import SpeakerEmbedder, Transcriber
from llasa_core.metrics import speaker_similarity, word_errors

if TYPE_CHECKING:
    from pathlib import Path

    from llasa_core.manifest import Request
    from llasa_core.search.strategy import Verifier

    Voices = Callable[[SpeakerEmbedder], "WantedVoices"]  # as a speaker model hears them


@dataclass(frozen=True)
class WantedVoices:
    """{speaker, or None for all: embedding (D,)}, and the recordings that it was made of
    (`audio.recording_id`), with which nobody may judge what was found.
    """

    embeddings: Mapping[str | None, np.ndarray]
    recordings: Mapping[str | None, Sequence[str]] = field(default_factory=dict)


class JudgedVerifier:
    """A verifier that listens with a judge; `judge` is its name and `weights` their fingerprint,
    so that `evaluate` can refuse to report with it.
    """

    option: ClassVar[str]  # of `llasa search`: --verifier-OPTION MODEL
    help: ClassVar[str]  # of that option
    default: ClassVar[str]  # model
    always: ClassVar[bool] = False  # used where nobody asks, not only as the guide
    needs_voices: ClassVar[bool] = False  # recordings of the voices that are wanted
    # In a study: (name of the average, key of a row, key that weights the rows or None).
    metric: ClassVar[tuple[str, str, str | None]]
    judge: str
    weights: str | None = None

    @classmethod
    def load(cls, model: str, sample_rate: int, voices: Voices) -> JudgedVerifier:
        """The verifier that listens with a judge of this name to waves at `sample_rate` Hz."""
        raise NotImplementedError

    @classmethod
    def measured(cls, score: float, judged: Mapping) -> float:
        """What a score says in the unit of `metric`, of an utterance scored as `judged`."""
        return round(score, 6)

    def __call__(self, wave: np.ndarray, request: Request) -> float:
        """The score of a wave float32 (T,)."""
        raise NotImplementedError

    def check(self, requests: Sequence[Request]) -> None:
        """InputError, before anything is searched, for a request that it cannot score."""

    def recordings(self, request: Request) -> Sequence[str]:
        """The recordings (`audio.recording_id`) that it compares this request's speech with."""
        return ()

    def forget(self) -> None:
        """Keep nothing of the voice prompts that were heard."""


class WordsVerifier(JudgedVerifier):
    """Minus the word error rate of what the transcriber hears, in the request's language: 0 is
    perfect. For whole utterances. Raises InputError for a language that the transcriber does not
    hear."""

    option, default, always = "asr", "moonshine-tiny.en", True
    help = "recogniser that scores the words, or none; not the one that evaluates"
    metric = ("verifier_wer", "verifier_errors", "words")

    @classmethod
    def load(cls, model: str, sample_rate: int, voices: Voices) -> WordsVerifier:
        return cls(judges.load_transcriber(model), sample_rate)

    @classmethod
    def measured(cls, score: float, judged: Mapping) -> int:
        """Word errors."""
        return round(-score * judged["words"])

    def __init__(self, transcriber: Transcriber, sample_rate: int = 16_000) -> None:
        self.judge, self._transcriber, self._sample_rate = (
            transcriber.name,
            transcriber,
            sample_rate,
        )
        self.weights = weights_of(transcriber)

    def __call__(self, wave: np.ndarray, request: Request) -> float:
        heard = self._transcriber.transcribe([wave], self._sample_rate, request.language)[0]
        errors, words = word_errors(request.text, heard, request.language)
        return -errors / words

    def check(self, requests: Sequence[Request]) -> None:
        """InputError, before anything is searched, for a language that is not heard or a text
        without a word.
        """
        for language in {request.language for request in requests}:
            self._transcriber.transcribe([], self._sample_rate, language)
        for request in requests:
            word_errors(request.text, "", request.language)


class LikenessVerifier(JudgedVerifier):
    """Cosine similarity, -1..1, to how the wanted recordings sound to an embedder.

    wanted: embedding (D,) of each speaker that a request may name, or one under None for all
    requests; such as `SpeakerReferences.centroids` gives, or with the recordings behind them. A
    request of any other speaker, or of none, is compared with the recording of its own voice
    prompt. Raises InputError for a request with neither.
    """

    def __init__(
        self,
        embedder: SpeakerEmbedder,
        wanted: WantedVoices | Mapping[str | None, np.ndarray],
        sample_rate: int = 16_000,
    ) -> None:
        wanted = wanted if isinstance(wanted, WantedVoices) else WantedVoices(wanted)
        self.judge, self.weights = embedder.name, weights_of(embedder)
        self._embedder, self._sample_rate = embedder, sample_rate
        self._wanted, self._recordings = wanted.embeddings, wanted.recordings
        self._prompts: dict[Path, tuple[np.ndarray, str]] = {}  # embedding and recording_id

    def __call__(self, wave: np.ndarray, request: Request) -> float:
        return float(speaker_similarity(self._embedded(wave), self.wanted(request)))

    def check(self, requests: Sequence[Request]) -> None:
        """InputError, before anything is searched, for a request with nothing to compare with."""
        for request in requests:
            self.wanted(request)

    def wanted(self, request: Request) -> np.ndarray:
        """The embedding (D,) that the speech of a request should be near."""
        recorded = self._wanted.get(request.wanted_speaker, self._wanted.get(None))
        return self._prompt(request)[0] if recorded is None else recorded

    def recordings(self, request: Request) -> Sequence[str]:
        """Those of the voice that the request wants."""
        if self._wanted.keys().isdisjoint((request.wanted_speaker, None)):
            return [self._prompt(request)[1]]
        named = self._recordings.get(request.wanted_speaker)
        return self._recordings.get(None, ()) if named is None else named

    def forget(self) -> None:
        self._prompts.clear()

    def _prompt(self, request: Request) -> tuple[np.ndarray, str]:
        """Embedding and id of the recording of a request's voice prompt, heard once."""
        prompt = None if request.voice is None else request.voice.audio
        if prompt is None:
            known = ", ".join(sorted(map(str, self._wanted))) or "none"
            raise InputError(
                f"request {request.id}: no recording of voice {request.wanted_speaker!r}, there are"
                f" {known}, and no voice prompt"
            )
        if prompt not in self._prompts:
            wave = load_audio(prompt, self._sample_rate)
            self._prompts[prompt] = self._embedded(wave), recording_id(load_audio(prompt))
        return self._prompts[prompt]

    def _embedded(self, wave: np.ndarray) -> np.ndarray:
        return self._embedder.embed([wave], self._sample_rate)[0]


class VoiceVerifier(LikenessVerifier):
    """How near the voice is to that of the speaker's recordings, or of the voice prompt."""

    option, default, needs_voices = "speaker", "resemblyzer", True
    help = "speaker model that scores the voice, or none"
    metric = ("verifier_similarity", "verifier_similarity", None)

    @classmethod
    def load(cls, model: str, sample_rate: int, voices: Voices) -> VoiceVerifier:
        embedder = judges.load_speaker_embedder(model)
        return cls(embedder, voices(embedder), sample_rate)


class EmotionVerifier(LikenessVerifier):
    """How near the emotion is to that of the request's voice prompt (paper, Table 4)."""

    option, default, needs_voices = "emotion", "emotion2vec_plus_large", True
    help = "emotion model that compares with the voice prompt, or none"
    metric = ("verifier_emotion", "verifier_emotion", None)

    @classmethod
    def load(cls, model: str, sample_rate: int, voices: Voices) -> EmotionVerifier:
        return cls(judges.load_emotion_embedder(model), {}, sample_rate)


VERIFIERS: dict[str, type[JudgedVerifier]] = {  # in the order in which they decide
    "words": WordsVerifier,
    "voice": VoiceVerifier,
    "emotion": EmotionVerifier,
}


def judges_of(verifiers: Mapping[str, Verifier]) -> dict[str, str]:
    """{name of the verifier: name of the judge that it listens with}; a callable without one counts
    by its own name.
    """
    return {name: getattr(verifier, "judge", name) for name, verifier in verifiers.items()}


def chosen_by(verifiers: Mapping[str, Verifier], request: Request) -> dict[str, list[str]]:
    """What a line of a search says of those that must not judge it (CHOSEN_BY): the names of the
    verifiers' judges, fingerprints of their weights, and the recordings that they compared with.
    """
    judged = [one for one in verifiers.values() if isinstance(one, JudgedVerifier)]
    found = {
        "verifiers": set(judges_of(verifiers).values()),
        "verifier_weights": {one.weights for one in judged if one.weights},
        "verifier_recordings": {sum_ for one in judged for sum_ in one.recordings(request)},
    }
    return {key: sorted(values) for key, values in found.items() if values}
