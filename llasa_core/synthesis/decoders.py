"""One generation, heard through several decoders of the same codes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llasa_core.codecs import load_codec
from llasa_core.errors import InputError
from llasa_core.synthesis.decoding import Answers, Row
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer


class Remembered:
    """An engine (`Synthesizer.through`): the synthesizer's own generation, which what was asked
    before gets again without being generated.
    """

    name = "remembered"

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._generate, self._rows = synthesizer._decode, {}

    def decode(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        answers: Answers,
    ) -> Iterator[tuple[int, Row]]:
        """(index of the prompt, its Row): first those that were asked before."""
        rows = list(zip(prompts, limits, seeds, strict=True))
        keys = [(prompt.tobytes(), limit, seed, sampling, answers) for prompt, limit, seed in rows]
        known = [key in self._rows for key in keys]
        yield from ((n, self._rows[keys[n]]) for n in np.flatnonzero(known).tolist())
        new = np.flatnonzero(np.logical_not(known)).tolist()
        if not new:
            return
        columns = ([rows[n][column] for n in new] for column in range(3))
        for place, row in self._generate(*columns, sampling, answers):
            self._rows[keys[new[place]]] = row
            yield new[place], row


def through_decoders(synthesizer: Synthesizer, codecs: Sequence[str | Path]) -> list[Synthesizer]:
    """The synthesizer with its own codec, then with each of `codecs` (names or folders): what one
    of them has generated, the others only decode.

    Raises InputError for a codec whose codes are others.
    """
    first = synthesizer.through(Remembered(synthesizer))
    found = [first]
    for name in codecs:
        twin, codec = copy.copy(first), load_codec(str(name), str(synthesizer.model.device))
        own = synthesizer.codec
        if codec.name != own.name or codec.other_weights(own.weights):
            raise InputError(
                f"{name}: not a decoder of the codes of codec {own.name}, expected one that"
                " `llasa adapt-codec` made from it"
            )
        twin.codec = codec
        found.append(twin)
    return found
