"""What a codec promises: 16 kHz waves <-> speech codes at 50 codes/s, one codebook; numpy goes in
and out.

Backends keep batching, padding and devices inside, and a batch of n equals n batches of one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


class Codec(Protocol):
    """Speech <-> codes. hop = sample_rate / frame_rate samples a code (320).

    A backend is a subclass: what it does not say has the value below.
    """

    name: str
    sample_rate: int  # Hz
    codebook_size: int = 0  # 0: packets of bits, which no language model reads
    frame_rate: float = 0.0  # codes a second

    # A name alone does not say which codes are meant: a codec with weights says which weights.
    fingerprint: str | None = None  # 16 hex digits of the weights, None where not known
    # As `fingerprint`, of what the codes depend on; None where no part of the weights is without.
    codes_fingerprint: str | None = None
    folder: str | None = None  # of the weights, where they are neither released nor tracked here
    precision: str | None = None  # of the encoder, where it is not the one of the published codes
    exact: "Codec | None" = None  # then: the same codec in that precision, to count changed codes
    # Where features are slow: a picklable callable, wave -> features, that worker processes run;
    # `encode` then takes a list of them as `features`.
    front: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "Codec":
        """The codec of a name in `codecs.CODECS`, or in a folder whose config.json names it."""
        ...

    @property
    def weights(self) -> dict[str, str]:
        """What a record of its codes (meta.json, llasa.json) tells: the fingerprints known, as
        codec_fingerprint and codes_fingerprint.
        """
        told = {
            "codec_fingerprint": self.fingerprint,
            "codes_fingerprint": self.codes_fingerprint,
        }
        return {key: value for key, value in told.items() if value}

    @classmethod
    def weights_of(cls, name: str) -> dict[str, str]:
        """`load(name).weights`; without loading where that is slow."""
        return cls.load(name, "cpu").weights

    def other_weights(self, record: Mapping[str, Any]) -> tuple[str, str] | None:
        """As the function `other_weights`, of a record and this codec."""
        return other_weights(record, self.weights)

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each, T may differ -> int32 (floor(T / hop),) each, in 0..codebook_size - 1.
        Without a codebook: a packet each.
        """
        ...

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes (F,) -> float32 (F * hop,) each. InputError outside the codebook."""
        ...

    def decode_window(self, codes: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The wave of codes[start:stop], by default from these alone; what runs through the whole
        utterance (the phase of a pitch) may continue from code 0.
        """
        return self.decode([codes[start:stop]])[0]

    def bits(self, codes: Any) -> float:
        """What one utterance takes: its codes (F,), log2(codebook_size) bits each."""
        return len(codes) * math.log2(self.codebook_size)


def other_weights(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two fingerprints in which records of codes (meta.json, llasa.json, `Codec.weights`)
    differ; None where the codes are of the same weights, or one side does not know its own.

    codes_fingerprint decides where both have it: another decoder does not change codes.
    """
    for key in ("codes_fingerprint", "codec_fingerprint"):
        found = record.get(key), wanted.get(key)
        if None not in found:
            return None if found[0] == found[1] else found
    return None
