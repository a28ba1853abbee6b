"""What a judge of speech promises, and what the backends share. Waves are float32 (T,) mono; numpy
goes in and out.

A judge gives every finite wave a value, also silence and an empty one; a batch of n equals n
batches of one. A judge with weights tells their `fingerprint` too (judges.identity). Heavy imports
live in the backends. Packaged weights are checked by sha256 before they are loaded.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from llasa_core.errors import InputError

SAMPLE_RATE = 16000  # Hz, what every judge hears


class Transcriber(Protocol):
    """Speech recogniser. `version` names the library and the weights."""

    name: str
    version: str

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave, without normalisation."""
        ...


class SpeakerEmbedder(Protocol):
    """Speaker verification model."""

    name: str
    version: str

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, D) float32 of unit length."""
        ...


class QualityPredictor(Protocol):
    """Reference-free predictor of a mean opinion score, 1 (bad) to 5 (excellent)."""

    name: str
    version: str

    def score(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N,) float32."""
        ...


def default_threads() -> int:
    """CPU threads: OMP_NUM_THREADS if set, else the process's, at most 4 (clips gain no more)."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    if configured.isdigit() and int(configured) > 0:
        return int(configured)
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(4, available)


def at_16_khz(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Float32 (T',) at 16 kHz from a mono wave (T,); InputError for any other shape, NaN or inf."""
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise InputError(f"a judge hears mono waves of shape (T,), got shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise InputError(
            f"a wave of {len(wave)} samples holds NaN or infinite values, expected finite samples"
        )
    if sample_rate != SAMPLE_RATE and len(wave):
        import soxr

        wave = np.ascontiguousarray(soxr.resample(wave, sample_rate, SAMPLE_RATE), dtype=np.float32)
    return wave


def package_folder(package: str, requirement: str) -> Path:
    """Folder of an installed package, without an import; InputError with the pip line if absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"package {package} is not installed, expected it from: pip install {requirement}"
        )
    return Path(spec.submodule_search_locations[0])


def check_sha256(content: bytes, expected: str, source: Path | str) -> bytes:
    """The content itself when its sha256 is the expected one, else InputError."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"{source}: weights have sha256 {found[:16]}.., expected {expected[:16]}.."
        )
    return content


def distribution_version(distribution: str) -> str:
    """`name version` of an installed distribution."""
    return f"{distribution} {importlib.metadata.version(distribution)}"
