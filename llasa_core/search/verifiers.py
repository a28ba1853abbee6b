"""Verifiers for `search`: judges turned into scores of one candidate, higher is better.

The paper's two (arXiv 2502.04128, section on inference-time scaling): the words, by a recogniser,
and the voice, by a speaker model. `judge` names what hears, so that `evaluate` can refuse to report
with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.errors import InputError
from llasa_core.judges.interface import SpeakerEmbedder, Transcriber
from llasa_core.metrics import speaker_similarity, word_errors

if TYPE_CHECKING:
    from llasa_core.manifest import Request
    from llasa_core.search.strategy import Verifier


class WordsVerifier:
    """Minus the word error rate of what the transcriber hears, in the request's language: 0 is
    perfect. For whole utterances. Raises InputError for a language that the transcriber does not
    hear."""

    def __init__(self, transcriber: Transcriber, sample_rate: int = 16_000) -> None:
        self.judge, self._transcriber, self._sample_rate = (
            transcriber.name,
            transcriber,
            sample_rate,
        )

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


class VoiceVerifier:
    """Cosine similarity, -1..1, to the voice that is wanted.

    voices: embedding (D,) of each speaker that a request may name, or one under None for all
    requests; such as `SpeakerReferences.centroids` gives. Raises InputError for a request whose
    speaker is not among them.
    """

    def __init__(
        self,
        embedder: SpeakerEmbedder,
        voices: Mapping[str | None, np.ndarray],
        sample_rate: int = 16_000,
    ) -> None:
        self.judge, self._embedder, self._voices, self._sample_rate = (
            embedder.name,
            embedder,
            voices,
            sample_rate,
        )

    @classmethod
    def of_recording(
        cls, embedder: SpeakerEmbedder, wave: np.ndarray, sample_rate: int = 16_000
    ) -> VoiceVerifier:
        """The voice of one recording float32 (T,) is wanted for all requests."""
        return cls(embedder, {None: embedder.embed([wave], sample_rate)[0]}, sample_rate)

    def __call__(self, wave: np.ndarray, request: Request) -> float:
        wanted = self._voices.get(request.wanted_speaker, self._voices.get(None))
        if wanted is None:
            known = ", ".join(sorted(str(name) for name in self._voices))
            raise InputError(
                f"request {request.id}: no recording of voice {request.wanted_speaker!r}, there are"
                f" {known}"
            )
        return float(speaker_similarity(self._embedder.embed([wave], self._sample_rate)[0], wanted))


def judges_of(verifiers: Mapping[str, Verifier]) -> dict[str, str]:
    """{name of the verifier: name of the judge that it listens with}; a callable without one counts
    by its own name.
    """
    return {name: getattr(verifier, "judge", name) for name, verifier in verifiers.items()}
