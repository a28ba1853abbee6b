"""Quality of speech: DistillMOS (no reference) as a QualityPredictor; PESQ and STOI (against a
reference) as functions.

distillmos and xls-r-sqa import torchaudio for file loading and an unused class. PyPI's torchaudio
is linked against CUDA and fails with a CPU torch, so while the two are imported a stand-in takes
its name where it cannot be imported.
"""

import contextlib
import importlib.machinery
import io
import sys
import types

import numpy as np

from llasa_core.device import choose_device
from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.identity import sums_fingerprint
from llasa_core.judges.interface import (
    SAMPLE_RATE,
    at_16_khz,
    check_sha256,
    distribution_version,
    package_folder,
)

REQUIREMENT = "--no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"

WEIGHTS_SHA256 = "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40"

SHORTEST = SAMPLE_RATE // 10  # samples; a shorter wave is padded with zeros

# samples: a codec drops the last, partial frame, of up to 40 ms in codecs of 25 codes a second
LENGTH_TOLERANCE = 640


class TooLittleSpeechError(InputError):
    """A wave in which PESQ or STOI finds too little speech for a score."""


class DistillMosPredictor:
    """DistillMOS (Stahl and Gamper 2025), a distilled XLS-R speech quality model of 4 M parameters,
    packaged weights.

    Raises InputError when the packages are absent or the weights are not the known ones.
    """

    def __init__(self, name: str = "distillmos", device: str | None = None):
        self.name = name
        weights = package_folder("distillmos", REQUIREMENT) / "weights" / "distill_mos_v7.pt"
        package_folder("xls_r_sqa", REQUIREMENT)
        if not weights.is_file():
            raise InputError(
                f"{weights}: file is missing, expected it from: pip install {REQUIREMENT}"
            )
        check_sha256(weights.read_bytes(), WEIGHTS_SHA256, weights)
        self._device = choose_device(device)
        with _importable_torchaudio():
            distillmos = importlib.import_module("distillmos")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            # It loads with weights_only=True.
            self._model = distillmos.ConvTransformerSQAModel().to(self._device).eval()
        self.version = distribution_version("distillmos")
        self.fingerprint = sums_fingerprint([WEIGHTS_SHA256])

    def score(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N,) float32 mean opinion scores, 1 to 5."""
        import torch

        scores = np.zeros(len(waves), np.float32)
        for i, wave in enumerate(waves):
            wave = at_16_khz(wave, sample_rate)
            wave = np.pad(wave, (0, max(0, SHORTEST - len(wave))))
            with torch.inference_mode():
                scores[i] = self._model(torch.from_numpy(wave)[None].to(self._device)).item()
        return scores


@contextlib.contextmanager
def _importable_torchaudio():
    """Let `import torchaudio` succeed inside the block, and leave no trace of it outside."""
    try:
        importlib.import_module("torchaudio")
        names = ()
    except (ImportError, OSError):  # absent, or linked against a CUDA that is not there
        names = ("torchaudio", "torchaudio.transforms")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    if names:
        sys.modules["torchaudio.transforms"].MFCC = object
        sys.modules["torchaudio"].transforms = sys.modules["torchaudio.transforms"]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def pesq_wideband(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Wide-band PESQ, MOS-LQO of about 1.0 to 4.64 (ITU-T P.862.2), of a degraded wave (T,) against
    its original (T,).

    Raises InputError when the package pesq is absent (a C compiler builds it; an optional extra) or
    the lengths differ by more than one codec frame, TooLittleSpeechError when one wave is silent,
    shorter than 0.25 s, or without an utterance that PESQ finds.
    """
    return _pesq(reference, degraded, sample_rate, "wb")


def pesq_narrowband(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Narrow-band PESQ, MOS-LQO of about 1.0 to 4.55 (ITU-T P.862.1); errors as `pesq_wideband`.

    It is defined for telephone speech: both waves are brought to 8 kHz, where the input filter of
    the package for that band is right; at 16 kHz it hears what a telephone does not carry.
    """
    return _pesq(reference, degraded, sample_rate, "nb")


def _pesq(reference: np.ndarray, degraded: np.ndarray, sample_rate: int, band: str) -> float:
    with needs_extra("PESQ", "judges", "pesq, which a C compiler builds"):
        import pesq
    reference, degraded = _aligned(reference, degraded, sample_rate)
    if not (reference.any() and degraded.any()):
        raise TooLittleSpeechError(
            f"PESQ cannot score a wave of {len(reference)} samples: it, or its reference, is silent"
        )
    rate = SAMPLE_RATE
    if band == "nb":
        import soxr

        rate = 8000
        reference, degraded = (soxr.resample(w, SAMPLE_RATE, rate) for w in (reference, degraded))
    try:
        return float(pesq.pesq(rate, reference, degraded, band))
    except (pesq.PesqError, ValueError) as error:
        raise TooLittleSpeechError(
            f"PESQ cannot score a wave of {len(reference)} samples: {_first_line(error)}"
        ) from None


def stoi(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility, at most 1 (Taal 2011), of a degraded wave (T,) against
    its original (T,).

    Raises InputError when the lengths differ by more than one codec frame, TooLittleSpeechError
    when the original has less than 0.4 s of speech.
    """
    with needs_extra("STOI", "judges", "pystoi"):
        import pystoi
    import warnings

    reference, degraded = _aligned(reference, degraded, sample_rate)
    with warnings.catch_warnings():
        # pystoi warns and returns 1e-5 when there are too few frames.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, degraded, SAMPLE_RATE))
        except (RuntimeWarning, ValueError) as error:
            raise TooLittleSpeechError(
                f"STOI cannot score a wave of {len(reference)} samples: {_first_line(error)}"
            ) from None


def _aligned(
    reference: np.ndarray, degraded: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    reference, degraded = at_16_khz(reference, sample_rate), at_16_khz(degraded, sample_rate)
    if abs(len(reference) - len(degraded)) > LENGTH_TOLERANCE:
        raise InputError(
            f"reference has {len(reference)} samples and the degraded wave {len(degraded)}, "
            f"expected a difference of at most {LENGTH_TOLERANCE}"
        )
    length = min(len(reference), len(degraded))
    return reference[:length], degraded[:length]


def _first_line(error: BaseException) -> str:
    reason = error.args[0] if error.args else type(error).__name__
    return (reason.decode() if isinstance(reason, bytes) else str(reason)).splitlines()[0]
